"""Every row of the pinned source, once, with a stable id, in shards named by partition: `p00002-00000.parquet`.

What was collected before and still fits its pin is kept byte for byte; only new partitions are read. Built from an
empty folder, the bytes are the same. A model may learn from the labels that came back to predictions as well: their
partitions stand among the source's in the order in which they were pinned, so that none moves another. Rows that were
forgotten (`tasks/forgotten.py`) are in none of them: their shards alone are written again, without them.
"""

import hashlib
import itertools
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from tasks.columns import check_columns, conformed, mapped, separator_of
from tasks.errors import DataError, ParamsError, SourceError
from tasks.forgotten import Forgotten, read_forgotten
from tasks.ids import AFTER_CONTENT, AFTER_KEY, Renumbering, content_hash, renumber
from tasks.params import Collect, CollectFiles
from tasks.problems import Problem
from tasks.progress import progress
from tasks.shards import (
    MANIFEST,
    Shard,
    ShardWriter,
    atomic_folder,
    read_json,
    read_shards,
    require_space,
    sha256_of,
    write_json,
    write_manifest,
    write_parquet,
)
from tasks.sources import Partition, Source, read_pins
from tasks.sources._listing import may_hold_many

# Raise it with a change of this code that makes other shards of the same rows: what was collected before is read again.
_FORM = 1

# Options that say where a source is. A source may move; names and pins tell whether it is the same data.
_WHEREABOUTS = frozenset({"path", "url", "package", "file"})

_ROWS_PER_BATCH = 20_000

Schema = Mapping[str, pl.DataType]


@dataclass(frozen=True)
class Origin:
    """Where rows come from: a source with its options, and the file of its pins."""

    pin: Path | None
    params: Collect
    source: Source[Any]


@dataclass(frozen=True)
class _Part:
    """A partition, where it comes from, and a hash over all that turns its rows into its shards."""

    origin: Origin
    partition: Partition
    recipe: str

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.recipe, self.partition.name, _text(self.partition.pin)


@dataclass(frozen=True)
class Collected:
    """A partition in the folder: how many rows were read, which types their columns had, and the shards they became."""

    partition: Partition
    recipe: str
    num_read: int
    types: Mapping[str, str]  # before they were made the same as in earlier partitions; {} without rows
    shards: tuple[Shard, ...]
    forgotten: Mapping[str, int] = field(default_factory=dict)  # rows that were taken out, by their entry on the list

    @property
    def num_rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def num_forgotten(self) -> int:
        return sum(self.forgotten.values())

    def facts(self, recipe: str) -> dict[str, Any]:
        """What the manifest says of it, beside the recipe that it names for all."""
        return {
            **({"forgotten": dict(sorted(self.forgotten.items()))} if self.forgotten else {}),
            **({"recipe": self.recipe} if self.recipe != recipe else {}),
            "name": self.partition.name,
            "pin": self.partition.pin,
            "read": self.num_read,
            "rows": self.num_rows,
            "shards": [shard.path.name for shard in self.shards],
            "types": dict(self.types),
        }


def collect(
    pin: Path | None,
    forgotten: Path,
    collected: Path,
    report: Path,
    *,
    params: Collect,
    source: Source[Any],
    problem: Problem,
    feedback: Origin | None = None,
) -> None:
    """Write the rows of every partition to `collected`, but for those that are `forgotten`, and a `report` of them.

    Without a `pin` the data is one file of the repository; ParamsError where it is more. Raises SourceError where a
    partition is neither in the folder already nor in the source, and where no row is left.
    """
    parts, recipe = _parts(Origin(pin, params, source), feedback, problem), _recipe(params, problem)
    listed = read_forgotten(forgotten)
    former = _former(collected, listed)
    new = [part.partition for part in parts if part.identity not in former]
    require_space(collected, sum(partition.pin.get("size", 0) for partition in new))
    with (
        atomic_folder(collected) as folder,
        progress("collect", _num_pinned_rows(new), "rows") as advance,
    ):
        reader = Reader(folder, problem, advance)
        results: list[Collected] = []
        schema: Schema | None = None
        for number, part in enumerate(parts):
            result = _kept(former.get(part.identity), number, folder, schema)
            if result is None:
                result = reader.read(part, number, schema)
            if schema is None and result.shards:
                schema = pl.read_parquet_schema(result.shards[0].path)
            results.append(result)
        if schema is None:
            raise SourceError(_no_rows(results, params))
        results = [_without(result, listed, params) for result in results]
        results, renumbering = _renumbered(results, params)
        shards = [shard for result in results for shard in result.shards]
        write_manifest(folder, shards, schema, partitions=[result.facts(recipe) for result in results], recipe=recipe)
        num_bytes = sum(shard.path.stat().st_size for shard in shards)
    _say_repeated(renumbering, params)
    num_read, num_rows = sum(result.num_read for result in results), sum(result.num_rows for result in results)
    num_forgotten = sum(result.num_forgotten for result in results)
    write_json(
        report,
        {
            "bytes": num_bytes,
            "columns": {name: str(kind) for name, kind in schema.items()},
            "excluded": num_read - num_forgotten - num_rows,
            "forgotten": num_forgotten,
            "partitions": len(results),
            **({"rows_of_feedback": _num_rows_of(feedback, parts, results)} if feedback is not None else {}),
            "read": num_read,
            "repeated_keys": renumbering.num_repeated if separator_of(params) == AFTER_KEY else 0,
            "rows": num_rows,
        },
    )


@dataclass(frozen=True)
class Reader:
    """Turns partitions of the source into shards of the folder."""

    folder: Path
    problem: Problem
    advance: Callable[[int], None]

    def read(self, part: _Part, number: int, schema: Schema | None) -> Collected:
        """Write the partition's rows, in the types of `schema` where an earlier partition has decided on them."""
        params, partition, writer = part.origin.params, part.partition, None
        types: dict[str, str] = {}
        num_read = 0
        for batch in part.origin.source.read(params, partition, min(params.rows_per_shard, _ROWS_PER_BATCH)):
            rows = mapped(batch, params, self.problem, partition.name, num_read + 1)
            num_read += len(batch)
            self.advance(len(batch))
            if rows.is_empty():
                continue
            types = types or {name: str(kind) for name, kind in rows.schema.items()}
            schema = schema or rows.schema
            writer = writer or ShardWriter(self.folder, params.rows_per_shard, schema, _shard_name(number))
            writer.write(conformed(rows, schema, partition.name))
        if writer is not None:
            writer.end_shard()
        return Collected(partition, part.recipe, num_read, types, tuple(writer.shards) if writer else ())


def _parts(origin: Origin, feedback: Origin | None, problem: Problem) -> list[_Part]:
    """Every partition in its place: one of feedback's stands behind those of the source that were pinned before it."""
    check_columns(origin.params, problem)
    recipe = _recipe(origin.params, problem)
    parts = [_Part(origin, partition, recipe) for partition in _partitions(origin)]
    if feedback is None:
        return parts
    check_columns(feedback.params, problem)
    recipe = _recipe(feedback.params, problem)
    behind = [(partition.pin["behind"], _Part(feedback, partition, recipe)) for partition in _partitions(feedback)]
    num_before = len(parts)
    for place, part in reversed(behind):
        parts.insert(min(place, num_before), part)
    return parts


def _num_rows_of(feedback: Origin, parts: Sequence[_Part], results: Sequence[Collected]) -> int:
    pairs = zip(parts, results, strict=True)
    return sum(result.num_rows for part, result in pairs if part.origin is feedback)


def _partitions(origin: Origin) -> list[Partition]:
    params = origin.params
    if origin.pin is not None:
        return read_pins(origin.pin)
    if not isinstance(params, CollectFiles):
        raise ParamsError(
            "params.yaml: `pin` names a file of the repository, and the source is outside of it. Write pin: "
            "data/<model>/source.json, and run `mill pull`."
        )
    if may_hold_many(params.path):  # only a pin knows which file came first
        raise ParamsError(
            f"params.yaml: collect.path is {params.path!r}, a folder or a glob, and `pin` names no list of its files. "
            "Write pin: data/<model>/source.json, and run `mill pull`: files that come later are then added behind."
        )
    return origin.source.partitions(params, [])


def _recipe(params: Collect, problem: Problem) -> str:
    """A hash over all that turns a partition's rows into its shards. Shards of another recipe are not kept."""
    said = {
        "form": _FORM,
        "params": params.model_dump(mode="json", exclude=set(_WHEREABOUTS)),
        "types": {name: str(kind) for name, kind in problem.columns.items()},
    }
    return hashlib.sha256(_text(said).encode()).hexdigest()


def _num_pinned_rows(partitions: Sequence[Partition]) -> int | None:
    """How many rows there are to read, where the source counted all of them when it was pulled."""
    counted = [partition.pin["rows"] for partition in partitions if "rows" in partition.pin]
    return sum(counted) if len(counted) == len(partitions) else None


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _former(collected: Path, listed: Forgotten) -> dict[tuple[str, str, str], Collected]:
    """What an earlier run left, by recipe, name and pin; {} where nothing did.

    Without the partitions that lack a row which is on the list no more: they have to be read again.
    """
    try:
        manifest = read_json(collected / MANIFEST)
        shards = {shard.path.name: shard for shard in read_shards(collected)}
    except DataError:
        return {}
    results = [
        Collected(
            Partition(facts["name"], facts["pin"]),
            facts.get("recipe", manifest.get("recipe")),
            facts["read"],
            facts["types"],
            tuple(shards[name] for name in facts["shards"]),
            facts.get("forgotten", {}),
        )
        for facts in manifest["partitions"]
        if all(entry in listed for entry in facts.get("forgotten", {}))
    ]
    return {(result.recipe, result.partition.name, _text(result.partition.pin)): result for result in results}


def _kept(former: Collected | None, number: int, folder: Path, schema: Schema | None) -> Collected | None:
    """The partition as it was collected before, in its new place; None where that is damaged or has other types."""
    if former is None:
        return None
    if any(not shard.path.is_file() or sha256_of(shard.path) != shard.sha256 for shard in former.shards):
        return None
    if former.shards:
        stored = {name: str(kind) for name, kind in pl.read_parquet_schema(former.shards[0].path).items()}
        # The first partition with rows decides on types: it must stand as it came, the others as the first says.
        if stored != (former.types if schema is None else {name: str(kind) for name, kind in schema.items()}):
            return None
    shards = []
    for index, shard in enumerate(former.shards):
        path = folder / f"{_shard_name(number)}-{index:05d}.parquet"
        try:
            os.link(shard.path.resolve(), path)
        except OSError:  # a file system without hard links
            shutil.copyfile(shard.path, path)
        shards.append(Shard(path, shard.rows, shard.sha256))
    return replace(former, shards=tuple(shards))


def _shard_name(number: int) -> str:
    return f"p{number:05d}"


def _without(result: Collected, listed: Forgotten, params: Collect) -> Collected:
    """The partition without its forgotten rows: the shards that held some are written again, under their names.

    After they were cut to their size, so that the other rows stay in their shards, whenever a row was forgotten.
    """
    shards, gone = [], Counter(result.forgotten)
    for shard in result.shards if not listed.is_empty else ():
        ids = pl.read_parquet(shard.path, columns=["id"])["id"]
        entries = listed.entries_of(ids, separator_of(params))
        if entries.null_count() < len(entries):
            gone.update(entries.drop_nulls())
            shard = write_parquet(shard.path, shard.read().filter(entries.is_null()))
        shards.append(shard)
    return replace(result, shards=tuple(shards), forgotten=gone) if gone else result


def _renumbered(results: list[Collected], params: Collect) -> tuple[list[Collected], Renumbering]:
    """Give every repeated key its number, over all partitions, and write again the shards in which an id changes."""
    shards = [shard for result in results for shard in result.shards]
    separator = separator_of(params)

    def contents(shard: int, rows: pl.Series) -> list[str]:
        if separator == AFTER_CONTENT:  # rows of one id have one content
            return [""] * len(rows)
        return [content_hash(row) for row in shards[shard].read().drop("id").gather(rows).iter_rows(named=True)]

    renumbering = renumber(
        [number for number, result in enumerate(results) for _ in result.shards],
        lambda shard: pl.read_parquet(shards[shard].path, columns=["id"])["id"],
        contents,
        separator,
    )
    for shard, ids in renumbering.ids.items():
        shards[shard] = write_parquet(shards[shard].path, shards[shard].read().with_columns(ids.alias("id")))
    written = iter(shards)
    return (
        [replace(result, shards=tuple(itertools.islice(written, len(result.shards)))) for result in results],
        renumbering,
    )


def _say_repeated(renumbering: Renumbering, params: Collect) -> None:
    if renumbering.num_repeated and separator_of(params) == AFTER_KEY:
        print(
            f"collect: {renumbering.num_repeated:,} rows repeat an earlier row's key, {renumbering.an_example!r} among "
            "them; their ids end in #1, #2, …",
            file=sys.stderr,
        )


def _no_rows(results: list[Collected], params: Collect) -> str:
    num_read = sum(result.num_read for result in results)
    if num_read:
        return f"None of the source's {num_read:,} rows passes collect.where ({params.where}); nothing is left."
    names = ", ".join(result.partition.name for result in results[:3]) or "no partition at all"
    return f"The source has no rows ({names}); there is nothing to collect."
