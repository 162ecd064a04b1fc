"""`mill score`: a file or a folder of rows, answered part by part, so that a killed run goes on where it was.

Finished parts stand in `OUT.parquet.partial/<version>/`, each named by the hash of its input file and its place in it.
So a part is taken over only where file, place and version are the same, and the end has the same bytes as a run in one
go.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from flows.store import usable
from tasks import sources
from tasks.answers import Answerer, open_answerer
from tasks.errors import DataError, did_you_mean
from tasks.params import CollectFiles, load_model
from tasks.problems import Problem
from tasks.progress import progress
from tasks.shards import atomic_file, explained_when_full, require_space, write_parquet
from tasks.sources import Partition, Source

if TYPE_CHECKING:
    import pyarrow

# What a kill costs at most. The batches of the model are cut inside a part, so this is part of what decides the bits.
ROWS_PER_PART = 2048

# Parts that become one row group of the result, and are in memory together.
_PARTS_PER_GROUP = 16

_STAMP = b"modelmill"


@dataclass(frozen=True)
class Input:
    """One file of the input, read through once: it is whole, and this is what it holds."""

    partition: Partition
    sha256: str
    num_rows: int
    schema: pl.Schema


def score(model: str, rows: Path, scored: Path, *, force: bool) -> None:
    """Write `scored`: the rows of `rows` in their order, each with its answer or the reason why it has none.

    Raises DataError where `scored` came from something else and `force` is not given, and where a column is missing.
    """
    load_model(model)
    _check_places(rows, scored)
    release, note = usable(model)
    if note:
        print(note, file=sys.stderr)
    answerer = open_answerer(release)
    source = sources.load("files")
    # Which columns there are is checked below, where the message can say what the problem reads.
    options = CollectFiles(
        columns={"id": "id"}, where=None, rows_per_shard=ROWS_PER_PART, path=str(rows), format="auto"
    )
    inputs = [_look_at(source, options, found, answerer.runtime.problem) for found in source.partitions(options, [])]
    num_rows = sum(given.num_rows for given in inputs)
    if num_rows == 0:
        raise DataError(f"{rows} has no rows, so there is nothing to answer to.")
    stamp = _stamp(model, answerer.version, inputs)
    if scored.exists() and not force:
        if _stamp_of(scored) == stamp:
            print(f"{scored} has these {num_rows:,} rows already, answered by {answerer.version}.", file=sys.stderr)
            return
        raise DataError(f"{scored} exists, from other rows or another version. Move it away, or replace it: --force.")
    # The parts and the result; a row's answer takes about a hundred bytes.
    require_space(scored.parent, 2 * (_bytes_of(rows) + 100 * num_rows))
    partial = scored.with_name(f"{scored.name}.partial")
    with explained_when_full(scored):
        parts = _answer_all(answerer, source, options, inputs, partial / answerer.version)
        _join(parts, _together([given.schema for given in inputs], rows), answerer, scored, stamp)
    shutil.rmtree(partial, ignore_errors=True)
    print(f"{scored}: {num_rows:,} rows, answered by {answerer.version}.", file=sys.stderr)


def answered(rows: pl.DataFrame, answerer: Answerer) -> pl.DataFrame:
    """The rows with their answers beside them. A column with the name of one of the answer's becomes input_<name>."""
    problem = answerer.runtime.problem
    try:
        asked = rows.select(pl.col(name).cast(problem.columns[name]) for name in problem.inputs)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{problem.name} cannot read the columns {', '.join(problem.inputs)}: {error}") from None
    answers = answerer.answer(asked, batch_size=64)
    return pl.concat([rows.rename(_renamed(rows.columns, answers.columns)), answers], how="horizontal")


def _check_places(rows: Path, scored: Path) -> None:
    if not rows.exists():
        raise DataError(f"{rows} is not here. IN is a file of Parquet, CSV or JSON lines, or a folder of them.")
    if scored.suffix != ".parquet":
        raise DataError(f"{scored} does not end in .parquet, which is what is written.")
    if rows.resolve() == scored.resolve() or (rows.is_dir() and rows.resolve() in scored.resolve().parents):
        raise DataError(f"{scored} is, or lies inside of, {rows}, so it would be read as input. Choose another place.")
    if not scored.parent.is_dir():
        raise DataError(f"{scored.parent} is not a folder, so {scored} cannot be written. Create it, or correct OUT.")


def _look_at(source: Source[CollectFiles], options: CollectFiles, partition: Partition, problem: Problem) -> Input:
    rows, num_rows, schemas = Path(options.path), 0, []
    place = rows / partition.name if rows.is_dir() else rows
    for batch in source.read(options, partition, ROWS_PER_PART):
        for name in problem.inputs:
            if name not in batch.columns:
                raise DataError(
                    f"{place} has no column {name!r}, which {problem.name} reads."
                    f"{did_you_mean(name, batch.columns)} It has: {', '.join(batch.columns)}."
                )
        num_rows += len(batch)
        if batch.schema not in schemas:
            schemas.append(batch.schema)
    pin = json.dumps(partition.pin, sort_keys=True)
    return Input(partition, hashlib.sha256(pin.encode()).hexdigest(), num_rows, _together(schemas, place))


def _answer_all(
    answerer: Answerer, source: Source[CollectFiles], options: CollectFiles, inputs: Sequence[Input], folder: Path
) -> list[Path]:
    """Answer what no earlier run has answered; give all parts in the order of the rows."""
    parts = [(given, _parts_of(given, folder)) for given in inputs]
    num_done = sum(rows for _, of_one in parts for path, rows in of_one if path.exists())
    total = sum(given.num_rows for given in inputs)
    if num_done:
        print(f"Going on: {num_done:,} of {total:,} rows are answered already.", file=sys.stderr)
    with progress("score", total=total - num_done, unit="rows") as advance:
        for given, of_one in parts:
            if all(path.exists() for path, _ in of_one):
                continue
            read = _cut(source.read(options, given.partition, ROWS_PER_PART), ROWS_PER_PART)
            for (path, _), rows in zip(of_one, read, strict=True):
                if not path.exists():
                    write_parquet(path, answered(rows, answerer))
                    advance(len(rows))
    return [path for _, of_one in parts for path, _ in of_one]


def _parts_of(given: Input, folder: Path) -> list[tuple[Path, int]]:
    """Where each part of a file stands, and how many rows it has."""
    starts = range(0, given.num_rows, ROWS_PER_PART)
    return [
        (folder / f"{given.sha256[:32]}-{number:06d}.parquet", min(ROWS_PER_PART, given.num_rows - start))
        for number, start in enumerate(starts)
    ]


def _cut(batches: Iterable[pl.DataFrame], num_rows: int) -> Iterator[pl.DataFrame]:
    """The same rows in pieces of `num_rows`, the last one shorter, however the source cut them."""
    waiting: list[pl.DataFrame] = []
    for batch in batches:
        waiting.append(batch)
        while sum(map(len, waiting)) >= num_rows:
            together = pl.concat(waiting, how="diagonal_relaxed")
            yield together.head(num_rows)
            waiting = [together.slice(num_rows)]
    if sum(map(len, waiting)):
        yield pl.concat(waiting, how="diagonal_relaxed")


def _join(parts: Sequence[Path], schema: pl.Schema, answerer: Answerer, scored: Path, stamp: bytes) -> None:
    """One file of all parts, a few of them in memory at a time."""
    import pyarrow.parquet

    empty = answered(pl.DataFrame(schema=schema), answerer)
    arrow = _to_arrow(empty).schema.with_metadata({_STAMP: stamp})
    with (
        atomic_file(scored) as unfinished,
        pyarrow.parquet.ParquetWriter(unfinished, arrow, compression="zstd") as writer,
    ):
        for start in range(0, len(parts), _PARTS_PER_GROUP):
            group = [pl.read_parquet(path) for path in parts[start : start + _PARTS_PER_GROUP]]
            rows = pl.concat([empty, *group], how="diagonal_relaxed")
            writer.write_table(_to_arrow(rows).replace_schema_metadata(arrow.metadata))


def _to_arrow(rows: pl.DataFrame) -> "pyarrow.Table":
    return rows.to_arrow(compat_level=pl.CompatLevel.oldest())


def _together(schemas: Sequence[pl.Schema], where: Path) -> pl.Schema:
    """One schema that holds all of them."""
    if not schemas:
        return pl.Schema()
    try:
        return pl.concat([pl.DataFrame(schema=schema) for schema in schemas], how="diagonal_relaxed").schema
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{where}: a column has two types that do not go together. {error}") from None


def _renamed(columns: Sequence[str], answers: Sequence[str]) -> dict[str, str]:
    names, taken = {}, {*columns, *answers}
    for name in columns:
        if name in answers:
            names[name] = f"input_{name}"
            while names[name] in taken:
                names[name] = f"input_{names[name]}"
            taken.add(names[name])
    return names


def _stamp(model: str, version: str, inputs: Sequence[Input]) -> bytes:
    rows = hashlib.sha256("".join(given.sha256 for given in inputs).encode()).hexdigest()
    return json.dumps({"model": model, "rows_sha256": rows, "version": version}, sort_keys=True).encode()


def _stamp_of(scored: Path) -> bytes | None:
    import pyarrow
    import pyarrow.parquet

    try:
        return (pyarrow.parquet.read_metadata(scored).metadata or {}).get(_STAMP)
    except pyarrow.ArrowException:
        return None


def _bytes_of(rows: Path) -> int:
    return sum(path.stat().st_size for path in (rows.rglob("*") if rows.is_dir() else [rows]) if path.is_file())
