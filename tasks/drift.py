"""How far a window of predictions stands from a release's reference: one figure for each thing that is watched.

Every figure is between 0 and 1, and 0 where nothing has moved:
- a number's is the Kolmogorov-Smirnov distance, the largest difference of the two cumulative shares;
- a kind's (a label, a language) is the total variation distance, half the sum of the differences of shares;
- the embedding's is the root of the coefficient of inhomogeneity, E² / 2 E|X-Y|, with the energy distance
  E² = 2 E|X-Y| - E|X-X'| - E|Y-Y'| (Székely and Rizzo 2013, "Energy statistics", sections 2 and 4).

The first two say directly what share of a window's rows would at least have to be others. None of them has to do with
how many rows there are: whether a figure could be chance is what tasks/calibration.py says.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.descriptors import EMBEDDING
from tasks.errors import DataError

Floats = NDArray[np.float64]

# The tests that come from the embedding: all of it at once, and how far each row is from the reference's middle.
ENERGY = "embedding"
DISTANCE = "embedding_distance"

MOST_AXES = 15  # and one more for what they leave out: sixteen dimensions
_ROWS_PER_AXIS = 20
_MOST_KINDS = 50
_OTHER = -1
_ROWS_AT_ONCE = 1_000


@dataclass(frozen=True)
class Watched:
    """One thing that is watched, and what it is about: the inputs, the answers, the confidence, the embedding."""

    name: str
    family: str
    kind: Literal["number", "category", "energy"]


@dataclass(frozen=True)
class Projection:
    """From an embedding to at most sixteen numbers of variance 1 on the rows that it was fitted on.

    The first principal axes, and the length of what they leave out. Unseen text shows in the axes of little variance
    and in the rest, which no axis of large variance has; so each counts the same.
    """

    mean: Floats  # D
    axes: Floats  # ED
    scale: Floats  # E
    rest_mean: float
    rest_scale: float

    def __call__(self, embedding_ND: NDArray[Any]) -> Floats:
        """The projection of each row."""
        centred_ND = embedding_ND.astype(np.float64) - self.mean
        along_NE = centred_ND @ self.axes.T
        rest_N = _rest(centred_ND, along_NE)
        return np.column_stack([along_NE / self.scale, (rest_N - self.rest_mean) / self.rest_scale])


def fit_projection(embedding_ND: NDArray[Any]) -> Projection | None:
    """Fit it, the same from the same rows; None where the rows are too few for an axis."""
    num_axes = min(MOST_AXES, embedding_ND.shape[1] - 1, len(embedding_ND) // _ROWS_PER_AXIS)
    if num_axes < 1:
        return None
    mean_D = embedding_ND.astype(np.float64).mean(axis=0)
    centred_ND = embedding_ND.astype(np.float64) - mean_D
    axes_DD = np.linalg.svd(centred_ND, full_matrices=False)[2]
    axes_ED = axes_DD[:num_axes]
    # An axis has no direction of its own: its largest entry is positive.
    largest_E = axes_ED[np.arange(num_axes), np.abs(axes_ED).argmax(axis=1)]
    axes_ED = axes_ED * np.sign(largest_E)[:, None]
    along_NE = centred_ND @ axes_ED.T
    rest_N = _rest(centred_ND, along_NE)
    return Projection(mean_D, axes_ED, _scale(along_NE), float(rest_N.mean()), float(_scale(rest_N[:, None])[0]))


@dataclass(frozen=True)
class Sample:
    """Rows as the tests read them: numbers, and kinds as their places in the reference's list, -1 for any other."""

    columns: Mapping[str, NDArray[Any]]
    embedding: Floats | None  # NE, projected; may be of fewer rows than the columns

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.columns.values())))


class Reference:
    """A release's held-out rows, prepared for comparisons.

    The projection of the embedding is fitted on every other row, and windows are compared with the rows between: to
    the rows that it is fitted on it fits better than to any others, and the difference would pass for drift.
    """

    def __init__(self, rows: pl.DataFrame, families: Mapping[str, str]) -> None:
        """`rows` are a release's reference.parquet; `families` says what each column is about."""
        if rows.is_empty():
            raise DataError("The release's reference has no rows, so there is nothing to compare with.")
        self.watched = [*_watched(rows, families)]
        self.kinds = {
            one.name: rows[one.name].cast(pl.String).fill_null("").unique().sort().to_list()
            for one in self.watched
            if one.kind == "category"
        }
        self.projection: Projection | None = None
        compared_NE = None
        if families.get("embedding") == EMBEDDING:
            embedding_ND = as_served(rows["embedding"].to_numpy())
            self.projection = fit_projection(embedding_ND[0::2])
            if self.projection is not None:
                compared_NE = self.projection(embedding_ND[1::2])
                self.watched += [Watched(ENERGY, EMBEDDING, "energy"), Watched(DISTANCE, EMBEDDING, "number")]
        self.sample = self._sample(rows, compared_NE)
        self._within = mean_distance_within(compared_NE) if compared_NE is not None else 0.0

    def sample_of(self, rows: pl.DataFrame, embedding_ND: NDArray[Any] | None) -> Sample:
        """A window's rows as the tests read them. Columns that it lacks are not compared."""
        projected_NE = None
        if self.projection is not None and embedding_ND is not None and len(embedding_ND) > 1:
            projected_NE = self.projection(embedding_ND)
        return self._sample(rows, projected_NE)

    def figures(self, window: Sample) -> dict[str, float]:
        """How far the window stands from the reference, by what is watched."""
        found = {}
        for one in self.watched:
            if one.kind == "energy":
                if window.embedding is not None:
                    found[one.name] = self._energy(window.embedding)
            elif one.name in window.columns:
                of_window, of_reference = window.columns[one.name], self.sample.columns[one.name]
                if one.kind == "number":
                    found[one.name] = kolmogorov_smirnov(of_window, of_reference)
                else:
                    found[one.name] = total_variation(of_window, of_reference)
        return {name: rounded(figure) for name, figure in found.items()}

    def _energy(self, window_NE: Floats) -> float:
        reference_ME = self.sample.embedding
        assert reference_ME is not None  # noqa: S101
        between = mean_distance_between(window_NE, reference_ME)
        return float(inhomogeneity(between, mean_distance_within(window_NE), self._within))

    def _sample(self, rows: pl.DataFrame, projected_NE: Floats | None) -> Sample:
        columns: dict[str, NDArray[Any]] = {}
        for one in self.watched:
            if one.name not in rows.columns or one.kind == "energy":
                continue
            if one.kind == "number":
                columns[one.name] = _numbers(rows[one.name])
            else:
                places = {kind: place for place, kind in enumerate(self.kinds[one.name])}
                named = rows[one.name].cast(pl.String).fill_null("")
                columns[one.name] = named.replace_strict(places, default=_OTHER, return_dtype=pl.Int64).to_numpy()
        if projected_NE is not None:
            columns[DISTANCE] = np.sqrt((projected_NE**2).sum(axis=1))
        return Sample(columns, projected_NE)


def kolmogorov_smirnov(one_N: NDArray[Any], other_M: NDArray[Any]) -> float:
    """The largest difference of the two shares of rows up to any value."""
    one_N, other_M = np.sort(one_N), np.sort(other_M)
    values = np.concatenate([one_N, other_M])
    shares = _shares_up_to(one_N, values) - _shares_up_to(other_M, values)
    return float(np.abs(shares).max())


def total_variation(one_N: NDArray[Any], other_M: NDArray[Any]) -> float:
    """Half the sum of the differences of the shares of each kind."""
    num_kinds = int(max(one_N.max(initial=0), other_M.max(initial=0))) + 2
    one_K = np.bincount(one_N + 1, minlength=num_kinds) / max(len(one_N), 1)
    other_K = np.bincount(other_M + 1, minlength=num_kinds) / max(len(other_M), 1)
    return float(np.abs(one_K - other_K).sum() / 2)


def inhomogeneity(between: Any, within_one: Any, within_other: Any) -> Any:
    """The root of E² / 2 E|X-Y| from the three mean distances; 0 where chance has made E² negative."""
    energy = 2 * between - within_one - within_other
    return np.sqrt(np.maximum(energy, 0.0) / np.maximum(2 * between, 1e-12))


def rounded(figures: Any) -> Any:
    """Six decimals: a window's figure and one of the calibration's that are equal have to be equal in bits."""
    return np.round(figures, 6)


def mean_distance_between(one_NE: Floats, other_ME: Floats) -> float:
    """E|X-Y|."""
    return _sum_of_distances(one_NE, other_ME) / (len(one_NE) * len(other_ME))


def mean_distance_within(one_NE: Floats) -> float:
    """E|X-X'| over pairs of two different rows, which is unbiased however few they are."""
    return _sum_of_distances(one_NE, one_NE) / max(len(one_NE) * (len(one_NE) - 1), 1)


def distances(one_NE: Floats, other_ME: Floats) -> Iterator[Floats]:
    """The distances of some rows of the one to all of the other, a thousand at a time."""
    from scipy.spatial.distance import cdist

    for start in range(0, len(one_NE), _ROWS_AT_ONCE):
        yield cdist(one_NE[start : start + _ROWS_AT_ONCE], other_ME)


def as_served(embedding_ND: NDArray[Any]) -> NDArray[np.float32]:
    """Embeddings as they are after they have been in the journal, which keeps half of float32."""
    return embedding_ND.astype(np.float16).astype(np.float32)


def evenly(num_rows: int, num_wanted: int) -> NDArray[np.int64]:
    """The places of so many rows, spread evenly over all; of all where they are fewer."""
    return np.linspace(0, num_rows - 1, min(num_rows, num_wanted)).round().astype(np.int64)


def in_words(figure: float) -> str:
    """How large a drift is, for people."""
    for least, word in ((0.5, "very large"), (0.3, "large"), (0.2, "clear"), (0.1, "small")):
        if figure >= least:
            return word
    return "negligible"


def _watched(rows: pl.DataFrame, families: Mapping[str, str]) -> Iterator[Watched]:
    for name, family in families.items():
        kind = rows.schema[name]
        if family == EMBEDDING or kind.is_nested():
            continue
        if kind.is_numeric():
            yield Watched(name, family, "number")
        elif kind in (pl.String(), pl.Boolean()) and rows[name].n_unique() <= _MOST_KINDS:
            yield Watched(name, family, "category")


def _numbers(column: pl.Series) -> Floats:
    """What is missing counts as larger than any number, so that more of it is a shift as well."""
    numbers = column.cast(pl.Float64).fill_null(np.inf).to_numpy()
    return np.where(np.isnan(numbers), np.inf, numbers)


def _shares_up_to(sorted_N: NDArray[Any], values: NDArray[Any]) -> Floats:
    return np.asarray(np.searchsorted(sorted_N, values, side="right") / max(len(sorted_N), 1))


def _sum_of_distances(one_NE: Floats, other_ME: Floats) -> float:
    return float(sum(part.sum() for part in distances(one_NE, other_ME)))


def _rest(centred_ND: Floats, along_NE: Floats) -> Floats:
    squares_N = (centred_ND**2).sum(axis=1) - (along_NE**2).sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(squares_N, 0.0)))


def _scale(values_NE: Floats) -> Floats:
    """Standard deviations; 1 where there is no deviation."""
    scale_E = values_NE.std(axis=0)
    return np.where(scale_E > 1e-9, scale_E, 1.0)
