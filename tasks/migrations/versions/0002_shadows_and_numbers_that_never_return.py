"""Which answer a challenger's stands beside; and numbers that are never given twice, so that a watermark holds.

SQLite gives the highest number again once its row is deleted, unless the table says AUTOINCREMENT, which only a new
table can.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("predictions", sa.Column("shadow_of", sa.String(32), nullable=True))
    op.create_index("predictions_by_shadow", "predictions", ["shadow_of"])
    for table in ("predictions", "feedback"):
        with op.batch_alter_table(table, recreate="auto", table_kwargs={"sqlite_autoincrement": True}) as batch:
            if op.get_bind().dialect.name == "sqlite":
                batch.alter_column("seq", existing_type=sa.Integer(), nullable=False, autoincrement=True)
