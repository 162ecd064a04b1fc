"""Where rows come from, one file per kind. This is the contract; a new file in this folder is a new kind of source.

A source is a list of partitions. Each partition is pinned: read again, it gives the same rows or raises SourceError.
New data is a new partition; earlier ones never change.
"""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import polars as pl

from tasks.errors import DataError, SourceError
from tasks.params import Collect
from tasks.shards import read_json, write_json


@dataclass(frozen=True)
class Partition:
    """A part of a source that does not change: a file, or the rows between two watermarks."""

    name: str
    pin: dict[str, Any]
    """JSON that proves that the rows are the same: hashes, ETags, watermarks. Where the source knows them, `size` (the
    bytes to read) and `rows`."""


Options = TypeVar("Options", bound=Collect, contravariant=True)


class Source(Protocol[Options]):
    """One kind of source. Neither method may write, and neither may put a credential into a message."""

    def partitions(self, options: Options, known: Sequence[Partition]) -> list[Partition]:
        """Look at the source: the known partitions in their order, then what is new.

        A known partition whose data has gone from the source stays in the list; one whose data has changed raises
        SourceError, or is given with another pin where the source cannot tell new rows from old. Only `mill pull` asks
        this, and collect where the pin is a file of the repository.
        """
        ...

    def read(self, options: Options, partition: Partition, rows_per_batch: int) -> Iterator[pl.DataFrame]:
        """The partition's rows with the source's own columns, a batch at a time.

        Raises SourceError, with the file and row or column, where it is gone, is damaged, or is not what the pin says.
        """
        ...


def load(name: str) -> Source[Any]:
    """The source of that file's name; params has checked that there is one."""
    source: Source[Any] = importlib.import_module(f"tasks.sources.{name}").SOURCE
    return source


def read_pins(path: Path) -> list[Partition]:
    """The partitions as `mill pull` wrote them. Raises SourceError where it has not, or somebody else did."""
    if not path.exists():
        raise SourceError(
            f"{path} is not here, so nothing says which data to read. `mill pull {path.parent.name}` writes it."
        )
    try:
        entries = read_json(path)["partitions"]
        partitions = [Partition(entry["name"], entry["pin"]) for entry in entries]
        whole = isinstance(entries, list) and all(
            isinstance(part.name, str) and isinstance(part.pin, dict) for part in partitions
        )
    except (DataError, KeyError, TypeError):
        whole = False
    if not whole:
        raise SourceError(
            f"{path} is not as `mill pull` writes it. `git checkout -- {path}` brings back the last that was."
        )
    return partitions


def write_pins(path: Path, partitions: Sequence[Partition]) -> None:
    """The same partitions give the same bytes."""
    write_json(path, {"partitions": [{"name": part.name, "pin": part.pin} for part in partitions]})
