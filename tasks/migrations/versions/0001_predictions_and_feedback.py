"""Predictions as they were answered, and the labels that came later."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite counts up INTEGER keys alone
    op.create_table(
        "predictions",
        sa.Column("seq", big, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("client", sa.String(), nullable=True),
        sa.Column("is_shadow", sa.Boolean(), nullable=False),
        sa.Column("inputs", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("latency_ms", sa.Float(), nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=True),
    )
    op.create_index("predictions_by_model", "predictions", ["model", "is_shadow", "seq"])
    op.create_index("predictions_by_time", "predictions", ["at_us"])
    op.create_table(
        "feedback",
        sa.Column("seq", big, primary_key=True, autoincrement=True),
        sa.Column("prediction_id", sa.String(32), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("client", sa.String(), nullable=True),
        sa.Column("label", sa.Text(), nullable=False),
    )
    op.create_index("feedback_by_prediction", "feedback", ["prediction_id", "seq"])
