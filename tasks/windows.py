"""Windows of the journal: what a version of a model has answered, in the order in which it did, as frames.

A window may be a million rows. So columns are read and not objects, a part at a time, and embeddings, which are most of
what a row holds, only of the rows that the tests look at.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import sqlalchemy as sa
from numpy.typing import NDArray

from tasks.database import open_engine, reading
from tasks.journal_tables import FEEDBACK, PREDICTIONS

if TYPE_CHECKING:
    from sqlalchemy import Engine, Select

_ROWS_PER_PART = 20_000
_IDS_PER_QUERY = 500
_EMBEDDING = np.dtype("<f2")

# Where several servers write, a number may come to be seen after a higher one. By then its commit is over.
_COMMIT_US = 10_000_000


@dataclass(frozen=True)
class Window:
    """So many predictions of one version that came one after another, by the numbers of the first and the last."""

    version: str
    first: int
    last: int
    num_rows: int


def cut(version: str, numbers: Sequence[int] | NDArray[np.int64], window: int, most: int) -> list[Window]:
    """Cut predictions into windows of `window` rows; a rest that fills none is left.

    What is more than `most` windows becomes as many that are larger, without a rest: each further window would be one
    more chance of a false alarm, and larger ones see more.
    """
    if len(numbers) // window <= most:
        ends = list(range(window, len(numbers) + 1, window))
    else:
        ends = [len(numbers) * number // most for number in range(1, most + 1)]
    return [
        Window(version, int(numbers[start]), int(numbers[end - 1]), end - start) for start, end in pairwise([0, *ends])
    ]


class Windows:
    """A model's part of the journal, to be read."""

    def __init__(self, engine: "Engine", name: str, model: str) -> None:
        self._engine, self._name, self._model = engine, name, model

    def pending(self, after: int, now_us: int) -> pl.DataFrame:
        """The predictions behind a number: `seq` and `version`, in their order."""
        chosen = self._given(PREDICTIONS.c.seq, PREDICTIONS.c.version).where(PREDICTIONS.c.seq > after)
        if self._engine.dialect.name != "sqlite":  # SQLite lets one write at a time
            chosen = chosen.where(PREDICTIONS.c.at_us < now_us - _COMMIT_US)
        return self._read(chosen.order_by(PREDICTIONS.c.seq), {"seq": pl.Int64(), "version": pl.String()})

    def rows(
        self, window: Window, inputs: Mapping[str, pl.DataType], answer: Mapping[str, pl.DataType]
    ) -> pl.DataFrame:
        """A window's rows: seq, id, at_us, latency_ms, has_embedding, and the columns of the inputs and the answer."""
        taken = PREDICTIONS.c
        chosen = self._given(
            taken.seq, taken.id, taken.at_us, taken.latency_ms, taken.embedding.is_not(None), taken.inputs, taken.answer
        ).where(taken.version == window.version, taken.seq >= window.first, taken.seq <= window.last)
        rows = self._read(
            chosen.order_by(taken.seq),
            {
                "seq": pl.Int64(),
                "id": pl.String(),
                "at_us": pl.Int64(),
                "latency_ms": pl.Float64(),
                "has_embedding": pl.Boolean(),
                "inputs": pl.String(),
                "answer": pl.String(),
            },
        )
        return _unfolded(rows, inputs, answer)

    def embeddings(self, numbers: Sequence[int]) -> NDArray[np.float32]:
        """The embeddings of predictions by their numbers, in the numbers' order; those that have none are left out."""
        found: dict[int, bytes] = {}
        with self._reading() as connection:
            for start in range(0, len(numbers), _IDS_PER_QUERY):
                some = [int(number) for number in numbers[start : start + _IDS_PER_QUERY]]
                chosen = sa.select(PREDICTIONS.c.seq, PREDICTIONS.c.embedding).where(
                    PREDICTIONS.c.seq.in_(some), PREDICTIONS.c.embedding.is_not(None)
                )
                found.update((row.seq, bytes(row.embedding)) for row in connection.execute(chosen))
        kept = [found[number] for number in numbers if number in found]
        if not kept:
            return np.empty((0, 0), dtype=np.float32)
        return np.frombuffer(b"".join(kept), _EMBEDDING).reshape(len(kept), -1).astype(np.float32)

    def labelled(
        self, version: str, inputs: Mapping[str, pl.DataType], answer: Mapping[str, pl.DataType], most: int
    ) -> pl.DataFrame:
        """The predictions of a version whose label has come, the newest labels: seq, id, label (JSON), and the columns.

        Of several labels of one prediction the last one counts.
        """
        taken = PREDICTIONS.c
        chosen = (
            self._given(
                FEEDBACK.c.seq.label("label_seq"), taken.seq, taken.id, FEEDBACK.c.label, taken.inputs, taken.answer
            )
            .join(FEEDBACK, FEEDBACK.c.prediction_id == taken.id)
            .where(taken.version == version)
            .order_by(FEEDBACK.c.seq.desc())
            .limit(most)
        )
        kinds = dict.fromkeys(("label_seq", "seq"), pl.Int64()) | dict.fromkeys(
            ("id", "label_json", "inputs", "answer"), pl.String()
        )
        rows = self._read(chosen, kinds).unique("id", keep="first", maintain_order=True).sort("seq")
        return _unfolded(rows.drop("label_seq"), inputs, answer)

    def labels_of(self, version: str, first: int, last: int) -> pl.DataFrame:
        """The labels that have come for predictions between two numbers: `id`, `label_json`, the last of each."""
        chosen = (
            self._given(PREDICTIONS.c.id, FEEDBACK.c.label)
            .join(FEEDBACK, FEEDBACK.c.prediction_id == PREDICTIONS.c.id)
            .where(PREDICTIONS.c.version == version, PREDICTIONS.c.seq >= first, PREDICTIONS.c.seq <= last)
            .order_by(FEEDBACK.c.seq)
        )
        found = self._read(chosen, {"id": pl.String(), "label_json": pl.String()})
        return found.unique("id", keep="last", maintain_order=True)

    def num_labelled(self, version: str) -> int:
        """How many predictions of a version have a label."""
        chosen = (
            self._given(sa.func.count(sa.distinct(PREDICTIONS.c.id)))
            .join(FEEDBACK, FEEDBACK.c.prediction_id == PREDICTIONS.c.id)
            .where(PREDICTIONS.c.version == version)
        )
        with self._reading() as connection:
            return int(connection.execute(chosen).scalar_one())

    def unlabelled(
        self,
        version: str,
        after: int,
        inputs: Mapping[str, pl.DataType],
        answer: Mapping[str, pl.DataType],
        most: int,
    ) -> pl.DataFrame:
        """The newest predictions of a version from a number on that nobody has labelled: seq, id, and the columns."""
        taken = PREDICTIONS.c
        has_label = sa.select(FEEDBACK.c.seq).where(FEEDBACK.c.prediction_id == taken.id).exists()
        chosen = (
            self._given(taken.seq, taken.id, taken.inputs, taken.answer)
            .where(taken.version == version, taken.seq >= after, ~has_label)
            .order_by(taken.seq.desc())
            .limit(most)
        )
        kinds = {"seq": pl.Int64(), "id": pl.String(), "inputs": pl.String(), "answer": pl.String()}
        return _unfolded(self._read(chosen, kinds).sort("seq"), inputs, answer)

    def shadows(self, version: str, answer: Mapping[str, pl.DataType], most: int) -> pl.DataFrame:
        """Where a challenger answered the same: `challenger`, the columns of the answer, and of its own as `shadow.…`.

        Besides `label_json` where a label has come; the newest of them.
        """
        given, shadow = PREDICTIONS.alias("given"), PREDICTIONS.alias("shadow")
        label = (
            sa.select(FEEDBACK.c.label)
            .where(FEEDBACK.c.prediction_id == given.c.id)
            .order_by(FEEDBACK.c.seq.desc())
            .limit(1)
            .scalar_subquery()
        )
        chosen = (
            sa.select(given.c.id, shadow.c.version, given.c.answer, shadow.c.answer, label)
            .select_from(shadow.join(given, given.c.id == shadow.c.shadow_of))
            .where(shadow.c.model == self._model, shadow.c.is_shadow, given.c.version == version)
            .order_by(shadow.c.seq.desc())
            .limit(most)
        )
        names = ("id", "challenger", "answer", "shadow", "label_json")
        rows = self._read(chosen, dict.fromkeys(names, pl.String()))
        decoded = _decoded(rows, "shadow", answer).rename({name: f"shadow.{name}" for name in answer})
        return pl.concat([_unfolded(rows.drop("shadow"), {}, answer), decoded], how="horizontal")

    def texts(self, ids: Sequence[str], inputs: Mapping[str, pl.DataType]) -> pl.DataFrame:
        """The inputs of predictions, by id; those that the journal has forgotten are left out."""
        chosen = self._given(PREDICTIONS.c.id, PREDICTIONS.c.inputs).where(PREDICTIONS.c.id.in_(list(ids)))
        return _unfolded(self._read(chosen, {"id": pl.String(), "inputs": pl.String()}), inputs, {})

    def close(self) -> None:
        self._engine.dispose()

    def _given(self, *columns: Any) -> "Select[Any]":
        """Of the answers that somebody was given."""
        return sa.select(*columns).where(PREDICTIONS.c.model == self._model, ~PREDICTIONS.c.is_shadow)

    def _read(self, chosen: "Select[Any]", schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
        parts = [pl.DataFrame(schema=schema)]
        with self._reading() as connection:
            for part in connection.execution_options(stream_results=True).execute(chosen).partitions(_ROWS_PER_PART):
                columns = zip(*part, strict=True)
                parts.append(
                    pl.DataFrame(
                        [
                            pl.Series(name, column, dtype=kind)
                            for (name, kind), column in zip(schema.items(), columns, strict=True)
                        ]
                    )
                )
        return pl.concat(parts)

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        with reading(self._engine, self._name) as connection:
            yield connection


def open_windows(url: str, model: str) -> Windows:
    """A model's part of the journal at an SQLAlchemy URL. Raises JournalError."""
    engine, name = open_engine(url)
    return Windows(engine, name, model)


def _unfolded(rows: pl.DataFrame, inputs: Mapping[str, pl.DataType], answer: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """With the JSON of `inputs` and `answer` as columns instead. An answer's column wins over an input of its name."""
    parts = [rows.drop("inputs", "answer", strict=False)]
    own = {name: kind for name, kind in inputs.items() if name not in answer}
    if own:
        parts.append(_decoded(rows, "inputs", own))
    if answer:
        parts.append(_decoded(rows, "answer", answer))
    return pl.concat(parts, how="horizontal")


def _decoded(rows: pl.DataFrame, name: str, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    lists = {key: pl.List(kind.inner) if isinstance(kind, pl.Array) else kind for key, kind in schema.items()}
    decoded = rows[name].str.json_decode(pl.Struct(lists)).struct.unnest()
    return decoded.with_columns(
        pl.col(key).cast(kind) for key, kind in schema.items() if isinstance(kind, pl.Array) and len(rows)
    )
