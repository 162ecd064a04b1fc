"""The journal's tables as they are now; how they came to be is in tasks/migrations."""

import sqlalchemy as sa

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TABLES = sa.MetaData()

PREDICTIONS = sa.Table(
    "predictions",
    _TABLES,
    sa.Column("seq", _BIG, primary_key=True),
    sa.Column("id", sa.String(32)),
    sa.Column("at_us", sa.BigInteger()),
    sa.Column("model", sa.String()),
    sa.Column("version", sa.String()),
    sa.Column("client", sa.String()),
    sa.Column("is_shadow", sa.Boolean()),
    sa.Column("shadow_of", sa.String(32)),
    sa.Column("inputs", sa.Text()),
    sa.Column("answer", sa.Text()),
    sa.Column("latency_ms", sa.Float()),
    sa.Column("embedding", sa.LargeBinary()),
)

FEEDBACK = sa.Table(
    "feedback",
    _TABLES,
    sa.Column("seq", _BIG, primary_key=True),
    sa.Column("prediction_id", sa.String(32)),
    sa.Column("at_us", sa.BigInteger()),
    sa.Column("client", sa.String()),
    sa.Column("label", sa.Text()),
)
