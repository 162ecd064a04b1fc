"""From which figure on a window has drifted, so that chance alone says so as rarely as params allow.

The figures of tasks/drift.py are many, and go together: a long text has many words. What counts is how often *any* of
them would alarm where nothing has moved. So nothing is assumed of them: from the release's held-out rows pairs of a
window and a reference are drawn, both with replacement and of their own sizes, since the reference is a sample too, and
in each pair all figures are taken at once (the bootstrap of two samples under the null, Efron and Tibshirani 1993,
chapter 16). From these the thresholds follow by the single-step min-P procedure of Westfall and Young 1993,
section 2.3:

- a figure's p-value is the share of pairs whose figure is as large;
- of every pair the smallest of its p-values is kept, and the α-quantile of those is what a window's smallest p-value
  has to stay above. By that the chance that one figure or more passes is α, whatever depends on what.

In terms of ranks: with the largest e such that at most a share α of the pairs is among the e largest of any figure, a
figure's threshold is its (e+1)-th largest. The embedding's figures are drawn apart from the others, from the rows that
its projection was not fitted on; they are then counted as independent of the others, and where they go together with
them the rate is a little below α.
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.drift import DISTANCE, ENERGY, Floats, Reference, inhomogeneity, rounded
from tasks.shards import atomic_file

# Single precision: 250 pairs of a reference of 2,000 rows are 2 MB, and matrices of them are multiplied.
Counts = NDArray[np.float32]
_PAIRS_AT_ONCE = 250

# Part of a stored calibration's name: raised where the figures or the draws change.
_FORMAT = 1


@dataclass(frozen=True)
class Calibration:
    """What chance alone does to the figures of a window of `num_rows` rows."""

    num_rows: int
    rate: float
    names: tuple[str, ...]
    null: NDArray[np.float32]  # BJ: figures of B pairs under the null; each column by itself, the largest first
    ranks: NDArray[np.int32]  # B: of each pair the best of its ranks, sorted

    @property
    def thresholds(self) -> dict[str, float]:
        """The figure that is not yet drift, by name."""
        allowed = self._allowed
        return {name: float(self.null[allowed, place]) for place, name in enumerate(self.names)}

    def has_drifted(self, name: str, figure: float) -> bool:
        """Whether a figure is past its threshold."""
        return bool(np.float32(figure) > self.null[self._allowed, self.names.index(name)])

    def p_values(self, figures: Mapping[str, float]) -> dict[str, float]:
        """How often chance makes any figure as unlikely as this one, for each: adjusted for there being many."""
        found = {}
        for place, name in enumerate(self.names):
            if name in figures:
                rank = self._num_as_large(place, figures[name])
                as_good = int(np.searchsorted(self.ranks, rank, side="right"))
                found[name] = (1 + as_good) / (1 + len(self.ranks))
        return found

    @property
    def _allowed(self) -> int:
        """The largest e such that at most a share of `rate` of the pairs has a rank of e or better."""
        num_pairs = len(self.ranks)
        most = int(np.floor(self.rate * num_pairs + 1e-9))
        # The pair after the last that may pass bounds the rank from above.
        return int(self.ranks[most]) - 1 if most < num_pairs else num_pairs - 1

    def _num_as_large(self, place: int, figure: float) -> int:
        ascending = self.null[::-1, place]
        # Stored in single precision: the figure is compared in the same.
        return len(ascending) - int(np.searchsorted(ascending, np.float32(figure), side="left"))


def calibrate(reference: Reference, num_rows: int, rate: float, resamples: int, seed: int) -> Calibration:
    """Draw pairs of a window of `num_rows` rows and a reference, both from the reference's rows. Seeded."""
    names = tuple(one.name for one in reference.watched)
    generator = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, _PAIRS_AT_ONCE):
        num_pairs = min(_PAIRS_AT_ONCE, resamples - start)
        figures = {**_columns_under_null(reference, num_rows, num_pairs, generator)}
        if reference.sample.embedding is not None:
            figures |= _embedding_under_null(reference, num_rows, num_pairs, generator)
        parts.append(rounded(np.column_stack([figures[name] for name in names])).astype(np.float32))
    null_BJ = np.concatenate(parts)
    descending_BJ = -np.sort(-null_BJ, axis=0)
    # The number of pairs whose figure is as large, itself among them.
    ranks_BJ = np.column_stack(
        [np.searchsorted(-descending_BJ[:, place], -null_BJ[:, place], side="right") for place in range(len(names))]
    )
    return Calibration(num_rows, rate, names, descending_BJ, np.sort(ranks_BJ.min(axis=1)).astype(np.int32))


def calibrated(
    folder: Path, release: str, reference: Reference, num_rows: int, rate: float, resamples: int, seed: int
) -> Calibration:
    """The same, kept in a file of `folder` named by all that it depends on; `release` is the release's hash."""
    asked = [_FORMAT, release, [one.name for one in reference.watched], num_rows, rate, resamples, seed]
    file = folder / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}.npz"
    names = tuple(one.name for one in reference.watched)
    try:
        with np.load(io.BytesIO(file.read_bytes())) as kept:
            return Calibration(num_rows, rate, names, kept["null"], kept["ranks"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):  # not there yet, or damaged
        made = calibrate(reference, num_rows, rate, resamples, seed)
        with atomic_file(file) as unfinished, unfinished.open("wb") as stream:
            np.savez_compressed(stream, null=made.null, ranks=made.ranks)
        return made


def size_looked_at(num_rows: int, window: int, num_reference: int) -> tuple[int, int]:
    """How many rows of a window the tests look at, and the size that they are calibrated for.

    No more than three times the reference's rows: beyond that the figures become no surer, since the reference's own
    chance stays. Calibrated is the window of params and its doublings: a threshold for fewer rows is a little higher.
    """
    looked_at = min(num_rows, max(window, 3 * num_reference))
    size = min(window, num_rows)
    while size * 2 <= looked_at:
        size *= 2
    return looked_at, size


def _columns_under_null(
    reference: Reference, num_rows: int, num_pairs: int, generator: np.random.Generator
) -> dict[str, Floats]:
    columns = {name: column for name, column in reference.sample.columns.items() if name != DISTANCE}
    num_reference = len(next(iter(columns.values())))
    difference_MB = (
        _draws(num_pairs, num_rows, num_reference, generator) / num_rows
        - _draws(num_pairs, num_reference, num_reference, generator) / num_reference
    )
    kinds = {one.name: one.kind for one in reference.watched}
    return {name: _distances_of(difference_MB, column, kinds[name]) for name, column in columns.items()}


def _embedding_under_null(
    reference: Reference, num_rows: int, num_pairs: int, generator: np.random.Generator
) -> dict[str, Floats]:
    compared_ME = reference.sample.embedding
    assert compared_ME is not None  # noqa: S101
    num_compared = len(compared_ME)
    distances_MM = _all_distances(compared_ME)
    window_MB = _draws(num_pairs, num_rows, num_compared, generator)
    drawn_MB = _draws(num_pairs, num_compared, num_compared, generator)
    from_window_MB, from_drawn_MB = distances_MM @ window_MB, distances_MM @ drawn_MB
    between_B = (from_window_MB * drawn_MB).sum(axis=0, dtype=np.float64) / (num_rows * num_compared)
    within_window_B = (from_window_MB * window_MB).sum(axis=0, dtype=np.float64) / (num_rows * (num_rows - 1))
    within_drawn_B = (from_drawn_MB * drawn_MB).sum(axis=0, dtype=np.float64) / (num_compared * (num_compared - 1))
    difference_MB = window_MB / num_rows - drawn_MB / num_compared
    return {
        ENERGY: inhomogeneity(between_B, within_window_B, within_drawn_B),
        DISTANCE: _distances_of(difference_MB, reference.sample.columns[DISTANCE], "number"),
    }


def _draws(num_pairs: int, size: int, num_rows: int, generator: np.random.Generator) -> Counts:
    """How often each of `num_rows` rows is drawn in samples of `size` with replacement, a sample a column."""
    drawn = generator.integers(0, num_rows, size=(num_pairs, size))
    flat = drawn * num_pairs + np.arange(num_pairs)[:, None]
    return np.bincount(flat.ravel(), minlength=num_rows * num_pairs).reshape(num_rows, num_pairs).astype(np.float32)


def _distances_of(difference_MB: NDArray[np.floating[Any]], column_M: NDArray[Any], kind: str) -> Floats:
    """Of each pair the Kolmogorov-Smirnov distance, or the total variation, from its difference of the rows' shares."""
    order_M = np.argsort(column_M, kind="stable")
    sorted_M = column_M[order_M]
    first_K = np.flatnonzero(np.append(True, sorted_M[1:] != sorted_M[:-1]))
    if len(first_K) == 1:
        return np.zeros(difference_MB.shape[1])
    shares_KB = difference_MB[order_M].astype(np.float64)
    if len(first_K) < len(sorted_M):
        shares_KB = np.add.reduceat(shares_KB, first_K, axis=0)
    if kind == "category":
        return np.asarray(np.abs(shares_KB).sum(axis=0) / 2)
    np.cumsum(shares_KB, axis=0, out=shares_KB)
    return np.asarray(np.maximum(shares_KB.max(axis=0), -shares_KB.min(axis=0)))


def _all_distances(rows_ME: Floats) -> Counts:
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(rows_ME, rows_ME), dtype=np.float32)
