"""Predictions whose right answers came later, out of the journal: what the model got wrong is what it learns next.

A partition is the predictions whose first label came after one label and up to another, by the numbers that the journal
gives to labels. A row has `id` (the prediction's), the model's inputs as the journal has them (tidied, with pseudonyms
for personal data), what the label says by name, and `prediction_at`, `prediction_client` and `prediction_version`.

Each prediction is in one partition, whatever is said of it later. A label that was corrected gives its partition
another pin, and the row keeps its id. Predictions that the journal has forgotten leave their partitions pinned as they
were. A label that is not of its column's type, which a journal may still hold from before that was checked, is null:
the row stays, and validate says what is wrong with it.
"""

import contextlib
import datetime as dt
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from tasks.errors import SourceError
from tasks.labels import told
from tasks.params import CollectFeedback
from tasks.sources import Partition, Source

if TYPE_CHECKING:
    from sqlalchemy import Connection

# Where the server of this checkout keeps its journal, unless `url` says another.
JOURNAL = "sqlite:///.mill/journal.sqlite"

_META = {
    "id": pl.String(),
    "prediction_at": pl.Datetime("us", "UTC"),
    "prediction_client": pl.String(),
    "prediction_version": pl.String(),
}


class Feedback:
    """A partition for each pull that found new labels.

    `kinds` are the types of the columns of the problem that the labels are about. What is not among them has to be of
    one type in all rows of a batch.
    """

    def __init__(self, kinds: Mapping[str, pl.DataType] | None = None) -> None:
        self._kinds = kinds or {}

    def partitions(self, options: CollectFeedback, known: Sequence[Partition]) -> list[Partition]:
        with _connected(options) as connection:
            newest = _newest_label(connection, options.model)
            found = [_as_of(connection, options, partition, newest) for partition in known]
            after = max((partition.pin["until"] for partition in known), default=0)
            if newest > after:
                pin = _pin(connection, options, after=after, until=newest, as_of=newest)
                if pin["rows"]:  # else all that came was about predictions that are in a partition already
                    found.append(Partition(f"labels {after + 1} to {newest}", pin))
        return found

    def read(self, options: CollectFeedback, partition: Partition, rows_per_batch: int) -> Iterator[pl.DataFrame]:
        pin, digest, num_rows = partition.pin, hashlib.sha256(), 0
        with _connected(options) as connection:
            for batch in _batches(connection, options.model, pin["after"], pin["until"], pin["as_of"], rows_per_batch):
                digest.update(_text(batch))
                num_rows += len(batch)
                yield _frame(batch, partition.name, self._kinds)
        if (num_rows, digest.hexdigest()) != (pin["rows"], pin["sha256"]):
            raise SourceError(
                f"{partition.name}: the journal no longer has these rows as they were pinned ({num_rows:,} now, "
                f"{pin['rows']:,} then): it forgets what is older than flows.journal.keep_days, and what it was told "
                "to. Bring the rows over from another copy of this repository with `dvc pull`; or delete "
                "feedback.json and run `mill pull`, which pins what is there now."
            )


@contextlib.contextmanager
def _connected(options: CollectFeedback) -> "Iterator[Connection]":
    from tasks.database import JournalError, open_to_read, reading
    from tasks.sources._credentials import from_environment

    url = from_environment(options.url).url if options.url is not None else JOURNAL
    try:
        engine, name = open_to_read(url)
        try:
            with reading(engine, name) as connection:
                yield connection
        finally:
            engine.dispose()
    except JournalError as error:
        raise SourceError(str(error)) from None


def _newest_label(connection: "Connection", model: str) -> int:
    import sqlalchemy as sa

    from tasks.journal_tables import FEEDBACK, PREDICTIONS

    joined = FEEDBACK.join(PREDICTIONS, PREDICTIONS.c.id == FEEDBACK.c.prediction_id)
    newest = sa.select(sa.func.max(FEEDBACK.c.seq)).select_from(joined).where(PREDICTIONS.c.model == model)
    return int(connection.execute(newest).scalar_one() or 0)


def _as_of(connection: "Connection", options: CollectFeedback, partition: Partition, newest: int) -> Partition:
    """The partition with the labels of now; as it was where none was corrected, or where rows of it have gone."""
    pin = partition.pin
    now = _pin(connection, options, after=pin["after"], until=pin["until"], as_of=max(newest, pin["as_of"]))
    if now["rows"] != pin["rows"] or now["sha256"] == pin["sha256"]:
        return partition
    return Partition(partition.name, {**pin, **now})


def _pin(connection: "Connection", options: CollectFeedback, *, after: int, until: int, as_of: int) -> dict[str, Any]:
    num_rows, digest = 0, hashlib.sha256()
    for batch in _batches(connection, options.model, after, until, as_of, 5_000):
        digest.update(_text(batch))
        num_rows += len(batch)
    return {"after": after, "as_of": as_of, "rows": num_rows, "sha256": digest.hexdigest(), "until": until}


def _batches(
    connection: "Connection", model: str, after: int, until: int, as_of: int, rows_per_batch: int
) -> Iterator[list[dict[str, Any]]]:
    """The predictions first labelled after one label and up to another, in that order, with the labels of `as_of`."""
    import sqlalchemy as sa

    from tasks.journal_tables import FEEDBACK, PREDICTIONS

    numbers = (
        sa.select(
            FEEDBACK.c.prediction_id,
            sa.func.min(FEEDBACK.c.seq).label("first"),
            sa.func.max(FEEDBACK.c.seq).label("latest"),
        )
        .where(FEEDBACK.c.seq <= as_of)
        .group_by(FEEDBACK.c.prediction_id)
        .having(sa.func.min(FEEDBACK.c.seq) > after, sa.func.min(FEEDBACK.c.seq) <= until)
        .subquery()
    )
    chosen = (
        sa.select(
            PREDICTIONS.c.id,
            PREDICTIONS.c.at_us,
            PREDICTIONS.c.client,
            PREDICTIONS.c.version,
            PREDICTIONS.c.inputs,
            FEEDBACK.c.label,
        )
        .join(numbers, numbers.c.prediction_id == PREDICTIONS.c.id)
        .join(FEEDBACK, FEEDBACK.c.seq == numbers.c.latest)
        .where(PREDICTIONS.c.model == model)
        .order_by(numbers.c.first)
    )
    result = connection.execute(chosen, execution_options={"yield_per": rows_per_batch})
    with contextlib.closing(result.cursor):
        for rows in result.partitions():
            yield [
                {
                    "id": row.id,
                    "at_us": row.at_us,
                    "client": row.client,
                    "version": row.version,
                    "inputs": json.loads(row.inputs),
                    "label": json.loads(row.label),
                }
                for row in rows
            ]


def _text(batch: Sequence[Any]) -> bytes:
    """A line for each row, so that how rows fall into batches does not matter."""
    return "".join(f"{json.dumps(row, sort_keys=True, ensure_ascii=False)}\n" for row in batch).encode()


def _frame(batch: Sequence[dict[str, Any]], place: str, kinds: Mapping[str, pl.DataType]) -> pl.DataFrame:
    meta = pl.DataFrame(
        {
            "id": [row["id"] for row in batch],
            "prediction_at": [dt.datetime.fromtimestamp(row["at_us"] / 1e6, dt.UTC) for row in batch],
            "prediction_client": [row["client"] for row in batch],
            "prediction_version": [row["version"] for row in batch],
        },
        schema=_META,
    )
    said = [{**row["inputs"], **row["label"]} for row in batch]
    known = {name: kind for name, kind in kinds.items() if any(name in row for row in said)}
    try:
        frame = pl.DataFrame(
            [{**row, **told(row, known)} for row in said], schema_overrides=known, infer_schema_length=None
        )
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise SourceError(f"{place}: the journal's rows do not have one type by column: {error}") from None
    return meta.hstack(frame)


SOURCE: Source[CollectFeedback] = Feedback()
