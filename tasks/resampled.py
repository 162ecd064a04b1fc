"""Two models on the same rows, by any metric: the paired bootstrap, studentised.

The plain percentile interval misses its level in the tails, which is where a level of a few in a thousand lies. So each
resample's difference is divided by its own standard error (the bootstrap-t: Efron and Tibshirani 1993, section 12.5),
which a metric that is no mean has by its influence values: how it changes as one row's weight does (the infinitesimal
jackknife: Jaeckel 1972; Efron 1982, chapter 6).

A sample in which few rows tell the two apart knows nothing of its tails, and where most of its resamples are alike it
is too sure of itself. So two rows are added that nobody has seen, one for the challenger and one against it, each as
telling as the most telling row that there is; Agresti and Min 2005 do so with counts. tests/test_gate_simulation.py
counts how often the result is wrong.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# The difference of two models under R weightings of the N rows.
Difference = Callable[[Floats], Floats]

# As in tasks/paired.py, and surer: where few rows decide, they know less of their spread than counts do. With 0.9 the
# power at a level of a few in a thousand is 0.78 where 0.8 is asked for (tests/test_gate_simulation.py).
CAUTION = 0.95

# So many weights are held at a time, 32 MB.
_AT_ONCE = 4_000_000

# By how much a row's weight of 1 is raised to see what the row does to a metric: small, and far above rounding.
_RAISE = 1e-3


@dataclass(frozen=True)
class Resampled:
    """A difference, its standard error, and by how many of its own errors each resample's difference lies off."""

    num_rows: int
    effect: float
    error: float
    largest_error: float  # that the true one is not above, with the confidence of CAUTION
    offs: Floats  # sorted; without the resamples that leave the metric undefined
    num_undefined: int  # which count against every claim

    def p_above(self, bound: float) -> float:
        place = np.searchsorted(self.offs, self._off(bound), side="left")
        return self._p(len(self.offs) - int(place))

    def p_below(self, bound: float) -> float:
        return self._p(int(np.searchsorted(self.offs, self._off(bound), side="right")))

    def interval(self, level: float) -> tuple[float, float]:
        low, high = self._quantiles(level)
        return self.effect - high * self.error, self.effect - low * self.error

    def smallest_gain(self, level: float, power: float) -> float:
        from scipy.special import ndtri

        return (self._critical(level) + float(ndtri(power))) * self.largest_error

    def smallest_margin(self, level: float, power: float) -> float:
        return self.smallest_gain(level, power)

    def rows_for(self, margin: float, level: float, power: float) -> int:
        return math.ceil(self.num_rows * (self.smallest_margin(level, power) / margin) ** 2)

    def _off(self, bound: float) -> float:
        if self.error > 0:
            return (self.effect - bound) / self.error
        return math.copysign(math.inf, self.effect - bound) if self.effect != bound else 0.0

    def _p(self, num_as_far: int) -> float:
        """Counting the sample itself among the resamples: Davison and Hinkley 1997, equation 4.11."""
        return (1 + num_as_far + self.num_undefined) / (1 + len(self.offs) + self.num_undefined)

    def _critical(self, level: float) -> float:
        """From how many errors on `p_above` is at the level; where no resample is as far, the furthest one.

        A quantile lies between two resamples, and the gaps between the last few are wide.
        """
        if not len(self.offs):
            return math.inf
        as_far = math.floor(level * (1 + len(self.offs) + self.num_undefined)) - 1 - self.num_undefined
        return float(self.offs[-1 - min(max(as_far, 0), len(self.offs) - 1)])

    def _quantiles(self, level: float) -> tuple[float, float]:
        if not len(self.offs):
            return -math.inf, math.inf
        low, high = np.quantile(self.offs, [level, 1 - level])
        return float(low), float(high)


def resample(
    difference: Difference,
    influence_N: Floats,
    *,
    resamples: int,
    seed: int,
    units_N: NDArray[np.int64] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Resampled:
    """Draw the rows again and again, and see how far the difference moves.

    Rows of one unit (numbers from 0) are drawn together: they are not independent. Without units each row is its own.
    """
    num_rows = len(influence_N)
    units_N = np.arange(num_rows) if units_N is None else units_N
    seen_U = np.bincount(units_N, influence_N)
    num_units, most = len(seen_U), float(np.abs(seen_U).max())
    influence_U: Floats = np.array([*seen_U, most, -most])
    sizes_U: Floats = np.array([*np.bincount(units_N), *[num_rows / num_units] * 2])
    effect = float(difference(np.ones((1, num_rows)))[0])
    error = float(_errors(np.ones((1, len(sizes_U))), influence_U, sizes_U)[0])
    parts, errors = [], []
    for counts_RU in _draws(len(sizes_U), num_rows, resamples, seed):
        drawn_RU = counts_RU[:, :num_units]
        moved_R = difference(drawn_RU if num_units == num_rows else drawn_RU[:, units_N]) - effect
        moved_R += (counts_RU[:, -2] - counts_RU[:, -1]) * most / num_rows
        errors_R = _errors(counts_RU, influence_U, sizes_U)
        errors.append(errors_R)
        # Where a resample has no spread, its difference either has not moved or lies as far off as can be.
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append(np.where(np.abs(moved_R) > 1e-12, moved_R / errors_R, np.where(np.isnan(moved_R), np.nan, 0)))
        advance(len(counts_RU))
    offs_R = np.concatenate(parts)
    defined_R = np.sort(offs_R[~np.isnan(offs_R)])
    largest = max(error, float(np.quantile(np.concatenate(errors), CAUTION)))
    return Resampled(num_rows, effect, error, largest, defined_R, len(offs_R) - len(defined_R))


def mean_of(differences_N: Floats) -> Difference:
    """For a metric that is a mean over rows, the difference under weights; a row adds its own to it."""

    def difference(weights_RN: Floats) -> Floats:
        # Unlike BLAS it adds in one order always, so that the same rows give the same p-value.
        total_R = np.einsum("rn,n->r", weights_RN, differences_N)
        return np.asarray(total_R / weights_RN.sum(axis=1))

    return difference


def influence_of(difference: Difference, num_rows: int) -> Floats:
    """What each row adds to a difference that is no mean: its slope in the row's weight."""
    at_once = max(1, _AT_ONCE // num_rows)
    effect = difference(np.ones((1, num_rows)))[0]
    parts = []
    for start in range(0, num_rows, at_once):
        places = np.arange(start, min(start + at_once, num_rows))
        weights_RN = np.ones((len(places), num_rows))
        weights_RN[np.arange(len(places)), places] += _RAISE
        parts.append((difference(weights_RN) - effect) * (num_rows + _RAISE) / _RAISE)
    return np.concatenate(parts)


def _errors(counts_RU: Floats, influence_U: Floats, sizes_U: Floats) -> Floats:
    """The standard error of a difference under counts of the units, by the units' influence values."""
    num_units = len(sizes_U)
    total_R = np.einsum("ru,u->r", counts_RU, influence_U)
    squares_R = np.einsum("ru,u->r", counts_RU, influence_U**2)
    num_rows_R = np.einsum("ru,u->r", counts_RU, sizes_U)
    spread_R = np.maximum(squares_R - total_R**2 / num_units, 0) * num_units / max(num_units - 1, 1)
    return np.asarray(np.sqrt(spread_R) / num_rows_R)


def _draws(num_units: int, num_rows: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each unit is drawn, a resample a row."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // num_rows)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = generator.integers(0, num_units, size=(size, num_units))
        drawn += num_units * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * num_units).reshape(size, num_units).astype(np.float64)
