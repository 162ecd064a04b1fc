"""Rows that wait on disk, to be read again in another order."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

_ROWS_PER_BATCH = 1_024


class Parts:
    """Frames of the same columns in files of a folder. Their rows are numbered from 0 in the order of `add`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._starts = [0]  # the number of each file's first row, and of the next row at the end

    def add(self, rows: pl.DataFrame) -> None:
        """Append these rows."""
        if len(rows):
            # Uncompressed and in batches, so that a few rows of a file can be read without the others.
            rows.write_ipc(self._path(len(self._starts) - 1), record_batch_size=_ROWS_PER_BATCH)
            self._starts.append(self._starts[-1] + len(rows))

    def read(self, numbers: NDArray[np.int64]) -> pl.DataFrame:
        """The rows of these numbers, at least one, in their order."""
        order = np.argsort(numbers)
        return pl.concat(self._ascending(numbers[order]))[np.argsort(order)]

    def _ascending(self, numbers: NDArray[np.int64]) -> Iterator[pl.DataFrame]:
        parts, starts = np.unique(np.searchsorted(self._starts, numbers, side="right") - 1, return_index=True)
        for part, of_part in zip(parts.tolist(), np.split(numbers, starts[1:]), strict=True):
            first_row = int(of_part[0])
            piece = pl.scan_ipc(self._path(part)).slice(
                first_row - self._starts[part], int(of_part[-1]) - first_row + 1
            )
            yield piece.collect()[of_part - first_row]

    def _path(self, part: int) -> Path:
        return self._folder / f"part-{part:06d}.arrow"
