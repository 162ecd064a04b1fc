"""A query on any database that SQLAlchemy knows, streamed in batches.

With a `watermark`, a column that only grows, a partition is the rows after one value of it and up to another; a pull
pins the rows that have come since. Rows that arrive late, at or below a value that is pinned already, would never be
read: the next pull counts them and says so.

Without a watermark nothing tells new rows from old, so the whole result is one partition, `all`. Where the result has
changed, a pull pins the new one in its place, and says that it did; every row is then read again.

Rows are read in the order of the watermark, then of all other columns, so that equal data gives equal bytes. A pin
holds the columns and their types, the number of rows, and a hash over the rows that does not depend on their order.
"""

import contextlib
import datetime as dt
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import polars as pl

from tasks.errors import SourceError, did_you_mean
from tasks.ids import content_hash
from tasks.params import CollectSql
from tasks.sources import Partition, Source
from tasks.sources._credentials import SecretUrl, from_environment
from tasks.sources._values import NOTHING, Unfit, frame, widened

if TYPE_CHECKING:
    from sqlalchemy import Connection, Select, Subquery

_ROWS_PER_FETCH = 5_000

# The types that a pin may name, by their names.
_KINDS: Mapping[str, pl.DataType] = {
    str(kind): kind
    for kind in (
        pl.Null(),
        pl.Boolean(),
        pl.Int64(),
        pl.Float64(),
        pl.String(),
        pl.Binary(),
        pl.Date(),
        pl.Datetime("us"),
        pl.Datetime("us", "UTC"),
        pl.Time(),
        pl.Duration("us"),
        *(pl.Decimal(38, scale) for scale in range(39)),
    )
}


class Sql:
    """A partition for each step of the watermark, or one for the whole result."""

    def partitions(self, options: CollectSql, known: Sequence[Partition]) -> list[Partition]:
        for partition in known:
            _check_asked(options, partition)
        with _connected(options) as database:
            if options.watermark is None:
                pin = database.pin(options, None, None)
                if not pin["rows"] and not known:
                    raise SourceError("params.yaml: collect.query gives no rows; there is nothing to pin.")
                return [Partition("all", pin)]
            after = known[-1].pin["until"] if known else None
            until = database.newest(options.watermark, after, sum(partition.pin["rows"] for partition in known))
            if until is None:
                raise SourceError("params.yaml: collect.query gives no rows; there is nothing to pin.")
            if until == after:
                return list(known)
            name = f"{options.watermark} to {until.partition(':')[2]}"
            return [*known, Partition(name, database.pin(options, after, until))]

    def read(self, options: CollectSql, partition: Partition, rows_per_batch: int) -> Iterator[pl.DataFrame]:
        _check_asked(options, partition)
        pin = partition.pin
        kinds = {name: _KINDS[kind] for name, kind in pin["columns"].items()}
        num_rows, digest = 0, _Digest()
        with _connected(options) as database:
            for columns in database.stream(list(kinds), options.watermark, pin["after"], pin["until"], rows_per_batch):
                digest.add(columns)
                try:
                    rows = frame(columns, kinds)
                except (TypeError, ValueError, pl.exceptions.PolarsError):
                    raise SourceError(_changed(partition, "a column's type is another")) from None
                num_rows += len(rows)
                yield rows
        if num_rows != pin["rows"]:
            raise SourceError(_changed(partition, f"{num_rows:,} rows now, {pin['rows']:,} then"))
        if str(digest) != pin["sha256"]:
            raise SourceError(_changed(partition, "the values of some are others"))


@dataclass(frozen=True)
class _Database:
    """A connection, and the query as a table with these columns."""

    connection: "Connection"
    table: "Subquery"
    names: Sequence[str]

    def pin(self, options: CollectSql, after: str | None, until: str | None) -> dict[str, Any]:
        """Read the rows once, for what proves that they are the same when they are read again."""
        kinds = dict.fromkeys(self.names, NOTHING)
        num_rows, digest = 0, _Digest()
        for columns in self.stream(self.names, options.watermark, after, until, _ROWS_PER_FETCH):
            for name, values in columns.items():
                kinds[name] = _kind_of_all(kinds[name], name, values)
            digest.add(columns)
            num_rows += len(columns[self.names[0]])
        return {
            "after": after,
            "asked": _asked(options),
            "columns": {name: str(kind) for name, kind in kinds.items()},
            "rows": num_rows,
            "sha256": str(digest),
            "until": until,
        }

    def newest(self, watermark: str, after: str | None, num_pinned: int) -> str | None:
        """The largest watermark, as a pin says it; `after` where nothing has come since; None without any row.

        Raises SourceError for rows that no pull would ever take: without a watermark, or come late.
        """
        from sqlalchemy import func, select

        if watermark not in self.names:
            raise SourceError(
                f"params.yaml: collect.watermark is {watermark!r}, and the query has no such column."
                f"{did_you_mean(watermark, self.names)} It has: {', '.join(self.names)}."
            )
        column = self.table.c[watermark]
        num_rows, num_marked, newest = self.connection.execute(
            select(func.count(), func.count(column), func.max(column)).select_from(self.table)
        ).one()
        if num_rows != num_marked:
            raise SourceError(
                f"{num_rows - num_marked:,} rows have no {watermark!r}, so they would never be collected. Give them "
                f"one, or leave them out by WHERE {watermark} IS NOT NULL in collect.query."
            )
        if after is None:
            return None if newest is None else _as_pin(newest, watermark)
        num_below = self.connection.execute(
            select(func.count()).select_from(self.table).where(column <= _bound(after))
        ).scalar_one()
        if num_below > num_pinned:
            raise SourceError(
                f"{num_below - num_pinned:,} rows have come late: their {watermark!r} is at or below "
                f"{after.partition(':')[2]}, up to which the data is pinned, so they would never be collected. Take a "
                "column that only grows, such as a serial number or the time of insertion; or delete source.json and "
                "run `mill pull`, which pins all rows anew."
            )
        return after if num_below == num_rows else _as_pin(newest, watermark)

    def stream(
        self, names: Sequence[str], watermark: str | None, after: str | None, until: str | None, rows_per_batch: int
    ) -> Iterator[dict[str, list[Any]]]:
        """Columns of rows after one watermark and up to another, in order, fetched a batch at a time."""
        from sqlalchemy import select

        missing = [name for name in names if name not in self.names]
        if missing:
            raise SourceError(
                f"The query's result no longer has the column {missing[0]!r}, which is pinned. It has: "
                f"{', '.join(self.names)}."
            )
        chosen: Select[Any] = select(*(self.table.c[name] for name in names))
        if watermark is not None and after is not None:
            chosen = chosen.where(self.table.c[watermark] > _bound(after))
        if watermark is not None and until is not None:
            chosen = chosen.where(self.table.c[watermark] <= _bound(until))
        order = sorted(names, key=lambda name: (name != watermark, names.index(name)))
        result = self.connection.execute(
            chosen.order_by(*(self.table.c[name] for name in order)), execution_options={"yield_per": rows_per_batch}
        )
        # SQLAlchemy leaves the cursor open when its server has gone.
        with contextlib.closing(result.cursor):
            for rows in result.partitions():
                yield {
                    name: [_plain(value, name) for value in values]
                    for name, values in zip(names, zip(*rows, strict=True), strict=True)
                }


class _Digest:
    """The sum of the rows' hashes: the same for the same rows in any order."""

    def __init__(self) -> None:
        self._sum = 0

    def add(self, columns: Mapping[str, list[Any]]) -> None:
        for values in zip(*columns.values(), strict=True):
            self._sum += int(content_hash(dict(zip(columns, values, strict=True))), 16)

    def __str__(self) -> str:
        return f"{self._sum % 2**256:064x}"


@contextlib.contextmanager
def _connected(options: CollectSql) -> Iterator[_Database]:
    import sqlalchemy as sa

    url = from_environment(options.url)
    with _explained(url):
        address = sa.make_url(url.url)
        if address.get_backend_name() == "sqlite" and not Path(address.database or "").is_file():
            # SQLite would make an empty one, and a source writes nothing.
            raise SourceError(f"{url.shown}: there is no such SQLite file.")
        engine = sa.create_engine(address, poolclass=sa.NullPool, hide_parameters=True)
        with engine.connect() as connection:
            # A colon is SQL here, never the mark of a parameter.
            query = sa.text(_query(options).replace(":", r"\:") + "\n")
            names = list(
                connection.execute(
                    sa.select(sa.text("*")).select_from(query.columns().subquery("pinned")).where(sa.false())
                ).keys()
            )
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise SourceError(
                    f"params.yaml: collect.query gives more than one column named {', '.join(map(repr, twice))}. Name "
                    "each by AS."
                )
            table = query.columns(*(sa.column(name) for name in names)).subquery("pinned")
            yield _Database(connection, table, names)


@contextlib.contextmanager
def _explained(url: SecretUrl) -> Iterator[None]:
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    try:
        yield
    except ModuleNotFoundError as error:
        extra = "modelmill[postgres]" if url.url.startswith("postgres") else f"the driver {error.name}"
        raise SourceError(f"Please install {extra} to read {url.url.partition(':')[0]}:// databases.") from None
    except DBAPIError as error:
        said = url.scrubbed(error.orig)
        if "ordering operator" in said:
            said += ". Cast that column to text in collect.query"
        elif error.connection_invalidated:
            said += ". Nothing was replaced; run it again"
        raise SourceError(f"{url.shown}: the database says: {said}.") from None
    except SQLAlchemyError as error:
        raise SourceError(f"params.yaml: collect.url {url.shown!r}: {url.scrubbed(error)}") from None


def _query(options: CollectSql) -> str:
    return options.query.strip().rstrip(";")


def _asked(options: CollectSql) -> str:
    """A mark of the question. Another question has other rows, and none of its pins can be compared."""
    return hashlib.sha256(json.dumps([_query(options), options.watermark]).encode()).hexdigest()[:16]


def _check_asked(options: CollectSql, partition: Partition) -> None:
    if partition.pin["asked"] != _asked(options):
        raise SourceError(
            "params.yaml: collect.query or collect.watermark has changed since the data was pinned. Delete "
            "source.json and run `mill pull`: the new result is pinned, and every row is read again."
        )


def _changed(partition: Partition, how: str) -> str:
    return (
        f"The rows of the partition {partition.name!r} are no longer those that were pinned: {how}. Restore them in "
        "the database; or bring them over from another copy of this repository with `dvc pull`; or delete source.json "
        "and run `mill pull`, which pins what is there now."
    )


def _kind_of_all(kind: pl.DataType, name: str, values: Sequence[Any]) -> pl.DataType:
    try:
        return functools.reduce(widened, values, kind)
    except Unfit as unfit:
        raise SourceError(f"The query's column {name!r} holds {unfit}. CAST it to one type in collect.query.") from None


def _plain(value: Any, name: str) -> Any:
    """A driver's value as one that a column holds; JSON as its text."""
    match value:
        case None | bool() | int() | float() | str() | bytes() | dt.date() | dt.timedelta() | Decimal():
            return value.astimezone(dt.UTC) if isinstance(value, dt.datetime) and value.tzinfo else value
        case dt.time() if value.tzinfo is None:
            return value
        case memoryview() | bytearray():
            return bytes(value)
        case UUID():
            return str(value)
        case dict() | list():
            return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    raise SourceError(
        f"The query's column {name!r} holds a value of type {type(value).__name__}. CAST it to text in collect.query."
    )


def _as_pin(value: Any, watermark: str) -> str:
    """A watermark as text that says its type."""
    value = _plain(value, watermark)
    match value:
        case bool():
            pass
        case int():
            return f"integer:{value}"
        case float():
            return f"float:{value!r}"
        case Decimal():
            return f"decimal:{value}"
        case str():
            return f"text:{value}"
        case dt.datetime():
            return f"timestamp:{value.isoformat()}"
        case dt.date():
            return f"date:{value.isoformat()}"
    raise SourceError(
        f"params.yaml: collect.watermark {watermark!r} is of type {type(value).__name__}; a watermark is a number, a "
        "date, a timestamp or text."
    )


def _bound(pinned: str) -> Any:
    """The watermark as a parameter of its own type: a database may otherwise compare by a cast that loses something."""
    import sqlalchemy as sa

    kind, _, said = pinned.partition(":")
    match kind:
        case "integer":
            return sa.literal(int(said), sa.BigInteger())
        case "float":
            return sa.literal(float(said), sa.Double())
        case "decimal":
            return sa.literal(Decimal(said), sa.Numeric())
        case "timestamp":
            moment = dt.datetime.fromisoformat(said)
            return sa.literal(moment, sa.DateTime(timezone=moment.tzinfo is not None))
        case "date":
            return sa.literal(dt.date.fromisoformat(said), sa.Date())
    return sa.literal(said, sa.String())


SOURCE: Source[CollectSql] = Sql()
