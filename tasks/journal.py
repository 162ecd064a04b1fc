"""Every prediction that was answered, and every label that came later.

In SQLite (write-ahead log, synced at each commit) or on any server that SQLAlchemy knows. Predictions that wait are
committed together, and an answer goes out only after its commit: an answered request is in the journal, whatever
happens next.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import polars as pl
import sqlalchemy as sa
from numpy.typing import NDArray

from tasks.commits import GroupCommit
from tasks.database import JournalError, empty_log, in_turn, open_engine, reading, touch, writing
from tasks.errors import quoted
from tasks.journal_tables import FEEDBACK, PREDICTIONS
from tasks.labels import Label

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Row

_ROWS_PER_BATCH = 1_000

# Between two parts of many labels, predictions are written: SQLite lets one write at a time, and whoever waits looks
# only now and then whether it may.
_PAUSE_SECONDS = 0.02

_EMBEDDING = np.dtype("<f2")


@dataclass(frozen=True)
class Prediction:
    """One row that was answered; `inputs` are redacted already."""

    id: str
    at_us: int  # microseconds since 1970, UTC
    model: str
    version: str
    client: str | None
    inputs: Mapping[str, Any]
    answer: Mapping[str, Any]
    latency_ms: float
    embedding: NDArray[np.floating[Any]] | None = None
    shadow_of: str | None = None  # the prediction that was given, where this is a challenger's that was not

    def row(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "at_us": self.at_us,
            "model": self.model,
            "version": self.version,
            "client": self.client,
            "is_shadow": self.shadow_of is not None,
            "shadow_of": self.shadow_of,
            "inputs": _text_of(self.inputs),
            "answer": _text_of(self.answer),
            "latency_ms": self.latency_ms,
            "embedding": None if self.embedding is None else self.embedding.astype(_EMBEDDING).tobytes(),
        }


class UnknownPrediction(JournalError):
    """A label is about what no model has answered."""


class Journal:
    """An open journal. Threads may share it."""

    def __init__(self, engine: "Engine", name: str) -> None:
        self._engine = engine
        self._name = name  # for messages: never the URL, which may hold a password
        self._commits = GroupCommit(self._write, self._touch)
        self._is_log_due = False  # whether something was deleted that may still stand in SQLite's log

    @property
    def num_waiting(self) -> int:
        """Predictions that were recorded and are not on the disk yet."""
        return self._commits.num_waiting

    @property
    def stall(self) -> str | None:
        """What hangs, in a sentence; None where nothing does."""
        seconds = self._commits.stalled_seconds
        return None if seconds is None else f"The journal {self._name} has not finished a commit for {seconds:.0f} s."

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written, as far as is known: the last commit failed, or one hangs."""
        return self.stall or self._commits.failure

    def record(self, predictions: Sequence[Prediction]) -> "Future[None]":
        """Write predictions down. The future ends when they are on the disk, or with JournalError.

        Cancelled before their turn has come, they are not written.
        """
        return self._commits.submit(predictions)

    def close(self) -> None:
        """Write what waits, and let go of the database."""
        self._commits.close()
        self._engine.dispose()

    def add_labels(self, labels: Sequence[Label], *, model: str, client: str | None) -> int:
        """Keep labels, and say how many are new; a label that stands already is not kept twice.

        A later label for the same prediction is the one that counts. None is kept where one is about what this model
        has not answered: raises UnknownPrediction naming the first such id. More than a thousand are written in parts,
        so that predictions do not wait for all of them; where that is broken off, the same labels again complete it.
        """
        new, seen = self._news(labels, model)
        num_kept = 0
        for start in range(0, len(new), _ROWS_PER_BATCH):
            if start:
                time.sleep(_PAUSE_SECONDS)
            kept, seen = self._keep(new[start : start + _ROWS_PER_BATCH], seen, model, client)
            num_kept += kept
        return num_kept

    def _news(self, labels: Sequence[Label], model: str) -> tuple[list[tuple[str, str]], int]:
        """The labels that do not stand yet, id and JSON, and the number of the last label that there was then.

        It looks before it writes: looking takes longer, and nobody waits for it.
        """
        ids = list(dict.fromkeys(label.prediction_id for label in labels))
        with reading(self._engine, self._name) as connection:
            known = self._known_ids(connection, model, ids)
            for prediction_id in ids:
                if prediction_id not in known:
                    raise UnknownPrediction(f"{model} has no prediction {quoted(prediction_id)} in the journal.")
            standing = self._standing_labels(connection, ids)
            seen = int(connection.execute(sa.select(sa.func.max(FEEDBACK.c.seq))).scalar_one() or 0)
        texts = ((label.prediction_id, json.dumps(label.label, sort_keys=True, ensure_ascii=False)) for label in labels)
        return _unlike(texts, standing), seen

    def _keep(self, new: list[tuple[str, str]], seen: int, model: str, client: str | None) -> tuple[int, int]:
        """Write labels in one commit: how many, and the number of the last label then.

        Without those that others have written since `seen`. Raises UnknownPrediction where a prediction was forgotten
        meanwhile.
        """
        newest = sa.select(sa.func.max(FEEDBACK.c.seq))
        about = {prediction_id for prediction_id, _ in new}
        with self._begin() as connection:
            in_turn(connection)
            since = sa.select(FEEDBACK.c.prediction_id, FEEDBACK.c.label).where(FEEDBACK.c.seq > seen)
            others = {row.prediction_id: row.label for row in connection.execute(since.order_by(FEEDBACK.c.seq))}
            new = _unlike(new, {found: text for found, text in others.items() if found in about})
            gone = about - self._known_ids(connection, model, sorted(about))
            if gone:
                raise UnknownPrediction(f"The journal has forgotten the prediction {min(gone)} meanwhile.")
            at_us = time.time_ns() // 1000
            names = ("prediction_id", "label")
            rows = [{**dict(zip(names, one, strict=True)), "at_us": at_us, "client": client} for one in new]
            if rows:
                connection.execute(sa.insert(FEEDBACK), rows)
            return len(rows), int(connection.execute(newest).scalar_one() or 0)

    def find(self, prediction_id: str) -> dict[str, Any] | None:
        """One prediction with its newest label, or None."""
        with reading(self._engine, self._name) as connection:
            row = connection.execute(sa.select(PREDICTIONS).where(PREDICTIONS.c.id == prediction_id)).one_or_none()
            if row is None:
                return None
            label = self._standing_labels(connection, [prediction_id]).get(prediction_id)
            return {**_read(row), "label": None if label is None else json.loads(label)}

    def window(
        self,
        model: str,
        *,
        last: int | None = None,
        after: int = 0,
        version: str | None = None,
        is_shadow: bool = False,
    ) -> pl.DataFrame:
        """A model's predictions in the order in which they came: all after a `seq`, or only the `last` of them.

        Columns: seq, id, at_us, version, client, shadow_of, latency_ms, inputs and answer and label (JSON; label null
        where none has come), embedding (a list of floats, or null). In the shadow, a challenger's answers that nobody
        was given: `shadow_of` is the id under which the champion answered the same, and the label is that one's.
        """
        newest = sa.select(sa.func.max(FEEDBACK.c.seq)).group_by(FEEDBACK.c.prediction_id).scalar_subquery()
        current = sa.select(FEEDBACK.c.prediction_id, FEEDBACK.c.label).where(FEEDBACK.c.seq.in_(newest)).subquery()
        chosen = (
            sa.select(PREDICTIONS, current.c.label)
            .outerjoin(current, current.c.prediction_id == sa.func.coalesce(PREDICTIONS.c.shadow_of, PREDICTIONS.c.id))
            .where(PREDICTIONS.c.model == model, PREDICTIONS.c.is_shadow == is_shadow, PREDICTIONS.c.seq > after)
            .order_by(PREDICTIONS.c.seq.desc())
        )
        if version is not None:
            chosen = chosen.where(PREDICTIONS.c.version == version)
        if last is not None:
            chosen = chosen.limit(last)
        with reading(self._engine, self._name) as connection:
            rows = [_frame_row(row) for row in connection.execute(chosen)]
        return pl.DataFrame(rows[::-1], schema=_WINDOW, orient="row")

    def count(self, model: str, *, after: int = 0) -> int:
        """How many predictions a model has answered since a `seq`."""
        counted = sa.select(sa.func.count()).where(
            PREDICTIONS.c.model == model, PREDICTIONS.c.seq > after, ~PREDICTIONS.c.is_shadow
        )
        with reading(self._engine, self._name) as connection:
            return int(connection.execute(counted).scalar_one())

    def traffic(self, model: str, *, since_us: int, width_us: int) -> dict[int, int]:
        """How many answers a model gave in each stretch of time since a moment, by the stretch's number from 0."""
        number = (PREDICTIONS.c.at_us - since_us) // width_us
        counted = (
            sa.select(number, sa.func.count())
            .where(PREDICTIONS.c.model == model, PREDICTIONS.c.at_us >= since_us, ~PREDICTIONS.c.is_shadow)
            .group_by(number)
        )
        with reading(self._engine, self._name) as connection:
            return {int(key): int(count) for key, count in connection.execute(counted)}

    def latencies(self, model: str, *, since_us: int, most: int = 50_000) -> pl.DataFrame:
        """When a model's answers since a moment were given, and how long each took: at_us, latency_ms; the newest."""
        chosen = (
            sa.select(PREDICTIONS.c.at_us, PREDICTIONS.c.latency_ms)
            .where(PREDICTIONS.c.model == model, PREDICTIONS.c.at_us >= since_us, ~PREDICTIONS.c.is_shadow)
            .order_by(PREDICTIONS.c.seq.desc())
            .limit(most)
        )
        with reading(self._engine, self._name) as connection:
            rows = [tuple(row) for row in connection.execute(chosen)]
        return pl.DataFrame(rows, schema={"at_us": pl.Int64(), "latency_ms": pl.Float64()}, orient="row")

    def purge(self, before_us: int) -> int:
        """Forget the predictions from before that time, with their labels; how many they were.

        A thousand at a time: whoever writes meanwhile waits for those alone. Raises LogNotEmptied where they have gone,
        and SQLite's log holds them still; the next purge tries that again.
        """
        old = sa.select(PREDICTIONS.c.id).where(PREDICTIONS.c.at_us < before_us).limit(_ROWS_PER_BATCH)
        num_gone = 0
        while True:
            with self._begin() as connection:
                num_found = self._delete(connection, list(connection.execute(old).scalars()))
            num_gone += num_found
            self._is_log_due |= num_found > 0
            if num_found < _ROWS_PER_BATCH:
                break
        if self._is_log_due:
            self._empty_log()
        return num_gone

    def forget(self, prediction_ids: Sequence[str]) -> int:
        """Take predictions out, with their labels and what a challenger said to the same; how many there were.

        Raises LogNotEmptied where they have gone, and SQLite's log holds them still. The same once more tries that
        again, though there is nothing left to take out.
        """
        num_gone = 0
        for start in range(0, len(prediction_ids), _ROWS_PER_BATCH):
            some = prediction_ids[start : start + _ROWS_PER_BATCH]
            with self._begin() as connection:
                chosen = sa.select(PREDICTIONS.c.id).where(
                    PREDICTIONS.c.id.in_(some) | PREDICTIONS.c.shadow_of.in_(some)
                )
                num_gone += self._delete(connection, list(connection.execute(chosen).scalars()))
        self._empty_log()
        return num_gone

    def asked(self, inputs: Sequence[Mapping[str, Any]]) -> list[str]:
        """The ids of the predictions, of whichever model, that had exactly one of these inputs."""
        texts = sorted({_text_of(one) for one in inputs})
        ids: list[str] = []
        with reading(self._engine, self._name) as connection:
            for start in range(0, len(texts), _ROWS_PER_BATCH):
                some = texts[start : start + _ROWS_PER_BATCH]
                found = sa.select(PREDICTIONS.c.id).where(PREDICTIONS.c.inputs.in_(some)).order_by(PREDICTIONS.c.seq)
                ids += connection.execute(found).scalars()
        return ids

    def backup(self, path: Path) -> int:
        """Copy the journal as it stands at one moment into a new SQLite file; how many predictions it holds.

        The copy is a journal by itself, whatever database this one is in.
        """
        if path.exists():
            raise JournalError(f"{path} exists already. Name a new file; a backup is never written over.")
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            copy = open_journal(f"sqlite:///{unfinished}")
            try:
                with reading(self._engine, self._name) as source, copy._begin() as target:
                    source = source.execution_options(yield_per=_ROWS_PER_BATCH)
                    for table in (PREDICTIONS, FEEDBACK):
                        for batch in source.execute(sa.select(table).order_by(table.c.seq)).partitions():
                            target.execute(sa.insert(table), [dict(row._mapping) for row in batch])
                    number = int(target.execute(sa.select(sa.func.count()).select_from(PREDICTIONS)).scalar_one())
            finally:
                copy.close()
            unfinished.replace(path)
        finally:
            for leftover in unfinished.parent.glob(f"{unfinished.name}*"):
                leftover.unlink(missing_ok=True)
        return number

    def _write(self, predictions: Sequence[Prediction]) -> None:
        rows = [prediction.row() for prediction in predictions]
        if rows:
            with self._begin() as connection:
                connection.execute(sa.insert(PREDICTIONS), rows)

    def _touch(self) -> None:
        with self._begin() as connection:
            touch(connection)

    def _empty_log(self) -> None:
        """Bring what was deleted out of SQLite's log as well, where its pages stand until they are written over."""
        empty_log(self._engine, self._name)
        self._is_log_due = False

    @contextmanager
    def _begin(self) -> "Iterator[Connection]":
        with writing(self._engine, self._name) as connection:
            yield connection

    @staticmethod
    def _delete(connection: "Connection", ids: Sequence[str]) -> int:
        in_turn(connection)  # no label may come to what goes at the same time
        connection.execute(sa.delete(FEEDBACK).where(FEEDBACK.c.prediction_id.in_(ids)))
        return int(connection.execute(sa.delete(PREDICTIONS).where(PREDICTIONS.c.id.in_(ids))).rowcount)

    @staticmethod
    def _known_ids(connection: "Connection", model: str, ids: Sequence[str]) -> set[str]:
        known: set[str] = set()
        for start in range(0, len(ids), _ROWS_PER_BATCH):
            some = ids[start : start + _ROWS_PER_BATCH]
            # By id alone: asked for the model too, SQLite reads all that the model has answered, for each thousand ids.
            found = sa.select(PREDICTIONS.c.id, PREDICTIONS.c.model).where(PREDICTIONS.c.id.in_(some))
            known.update(row.id for row in connection.execute(found) if row.model == model)
        return known

    @staticmethod
    def _standing_labels(connection: "Connection", ids: Sequence[str]) -> dict[str, str]:
        standing: dict[str, str] = {}
        for start in range(0, len(ids), _ROWS_PER_BATCH):
            some = ids[start : start + _ROWS_PER_BATCH]
            rows = sa.select(FEEDBACK.c.prediction_id, FEEDBACK.c.label).where(FEEDBACK.c.prediction_id.in_(some))
            standing.update((row.prediction_id, row.label) for row in connection.execute(rows.order_by(FEEDBACK.c.seq)))
        return standing


def open_journal(url: str) -> Journal:
    """Open the journal at an SQLAlchemy URL, and bring its schema up to date. Raises JournalError."""
    engine, name = open_engine(url)
    return Journal(engine, name)


_WINDOW = {
    "seq": pl.Int64(),
    "id": pl.String(),
    "at_us": pl.Int64(),
    "version": pl.String(),
    "client": pl.String(),
    "shadow_of": pl.String(),
    "latency_ms": pl.Float64(),
    "inputs": pl.String(),
    "answer": pl.String(),
    "label": pl.String(),
    "embedding": pl.List(pl.Float32()),
}


def _unlike(labels: Iterable[tuple[str, str]], standing: Mapping[str, str]) -> list[tuple[str, str]]:
    """The labels, id and JSON, that say something else than what stands when they come."""
    stands, found = dict(standing), []
    for prediction_id, text in labels:
        if stands.get(prediction_id) != text:
            stands[prediction_id] = text
            found.append((prediction_id, text))
    return found


def _text_of(values: Mapping[str, Any]) -> str:
    return orjson.dumps(values).decode()


def _frame_row(row: "Row[Any]") -> tuple[Any, ...]:
    embedding = None if row.embedding is None else np.frombuffer(row.embedding, _EMBEDDING).astype(np.float32).tolist()
    return (
        row.seq, row.id, row.at_us, row.version, row.client, row.shadow_of, row.latency_ms, row.inputs, row.answer,
        row.label, embedding,
    )  # fmt: skip


def _read(row: "Row[Any]") -> dict[str, Any]:
    return {
        **{name: value for name, value in row._mapping.items() if name != "embedding"},
        "inputs": json.loads(row.inputs),
        "answer": json.loads(row.answer),
    }
