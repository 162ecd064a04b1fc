"""Where rows come from, one file per kind. This is the contract; a new file in this folder is a new kind of source.

A source is a list of partitions. Each partition is pinned: read again, it gives the same rows or raises SourceError. New
data is a new partition; earlier ones never change.
"""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import polars as pl

from tasks.params import Collect


@dataclass(frozen=True)
class Partition:
    """A part of a source that does not change: a file, or the rows between two watermarks."""

    name: str
    pin: dict[str, Any]  # JSON: hashes, ETags, watermarks, whatever proves that the rows are the same


class Source(Protocol):
    """One kind of source. Neither method may write, and neither may put a credential into a message."""

    def partitions(self, options: Collect, known: Sequence[Partition]) -> list[Partition]:
        """Look at the source: the known partitions in their order, then what is new.

        A known partition whose data has gone from the source stays in the list; one whose data has changed raises
        SourceError. Only `mill pull` asks this, and collect where the pin is a file of the repository.
        """
        ...

    def read(self, options: Collect, partition: Partition, rows_per_batch: int) -> Iterator[pl.DataFrame]:
        """The partition's rows with the source's own columns, a batch at a time.

        Raises SourceError, with the file and row or column, where it is gone, is damaged, or is not what the pin says.
        """
        ...


def load(name: str) -> Source:
    """The source of that file's name; params has checked that there is one."""
    source: Source = importlib.import_module(f"tasks.sources.{name}").SOURCE
    return source
