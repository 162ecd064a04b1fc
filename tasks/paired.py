"""Two models on the same rows, where an answer is right or wrong: tests, intervals, and what could have been shown.

Only the rows count on which just one of the two is right. Errors are one-sided, since a promotion is wrong in one
direction only. A difference is a difference in the share of right answers, and positive where the challenger's is
larger.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# What could have been shown rests on how much the two differ, which these rows know only about; so it is taken to be as
# much as it is with this confidence, and then the power is at least the one that is asked for.
CAUTION = 0.9

# What lies further out adds less than this to a probability.
_TAIL = 1e-10

# Halvings of an interval of width 1: to a millionth.
_HALVINGS = 20


class Evidence(Protocol):
    """What a test set says about a difference, challenger minus champion, of which more is better."""

    @property
    def num_rows(self) -> int: ...

    @property
    def effect(self) -> float:
        """The difference on these rows."""
        ...

    def p_above(self, bound: float) -> float:
        """How likely a difference like this, or a larger one, is where the true one is `bound` at most."""
        ...

    def p_below(self, bound: float) -> float:
        """How likely a difference like this, or a smaller one, is where the true one is `bound` at least."""
        ...

    def interval(self, level: float) -> tuple[float, float]:
        """The ends between which the true difference lies; each is wrong with a probability of `level`."""
        ...

    def smallest_gain(self, level: float, power: float) -> float:
        """The smallest true gain that rows like these show with that power, with an error of `level`."""
        ...

    def smallest_margin(self, level: float, power: float) -> float:
        """The smallest margin within which rows like these show equals to be equal, with that power."""
        ...

    def rows_for(self, margin: float, level: float, power: float) -> int:
        """About how many rows like these a margin takes."""
        ...


@dataclass(frozen=True)
class Discordance:
    """Of `num_rows` independent rows, how many only the challenger answers rightly, and how many only the champion."""

    num_rows: int
    gained: int
    lost: int

    @property
    def effect(self) -> float:
        return (self.gained - self.lost) / self.num_rows

    def p_above(self, bound: float) -> float:
        """McNemar's exact test where the bound is 0, and Tango's score test for any other."""
        if bound == 0:
            from scipy.special import betainc

            # The upper tail of a binomial distribution, from `gained` on.
            return float(betainc(self.gained, self.lost + 1, 0.5)) if self.gained else 1.0
        return _upper_tail(float(score(self.gained, self.lost, self.num_rows, bound)))

    def p_below(self, bound: float) -> float:
        return Discordance(self.num_rows, self.lost, self.gained).p_above(-bound)

    def interval(self, level: float) -> tuple[float, float]:
        """Tango 1998: the differences that the score test does not reject."""
        return -self._highest(self.lost, self.gained, level), self._highest(self.gained, self.lost, level)

    def _highest(self, gained: int, lost: int, level: float) -> float:
        limit = -_quantile(level)
        low, high = (gained - lost) / self.num_rows, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            is_within = score(gained, lost, self.num_rows, middle) >= limit
            low, high = (middle, high) if is_within else (low, middle)
        return high

    def smallest_gain(self, level: float, power: float) -> float:
        """By the exact power of McNemar's test."""
        return _smallest_gain(self.num_rows, self.gained + self.lost, level, power)

    def smallest_margin(self, level: float, power: float) -> float:
        """By the exact power of the score test."""
        return _smallest_margin(self.num_rows, self.gained + self.lost, level, power)

    def rows_for(self, margin: float, level: float, power: float) -> int:
        """Tango 1998, the sample size of the score test, by the normal approximation."""
        differing = _differing(self.num_rows, self.gained + self.lost)
        null = float(_restricted(differing / 2, differing / 2, 1.0, -margin))
        spread = _quantile(level) * math.sqrt(2 * null - margin * (1 + margin))
        spread += _quantile(1 - power) * math.sqrt(differing)
        return math.ceil((spread / margin) ** 2)


def score(gained: "Integers | int", lost: "Integers | int", num_rows: int, difference: float) -> Floats:
    """Tango's score statistic for a difference of two shares from the same rows; standard normal where it is true.

    Tango 1998, Equivalence test and confidence interval for the difference in proportions for the paired-sample design,
    Statistics in Medicine 17, equations 5 to 7. Its exact size hardly ever passes the level, and stays below it where
    levels are small; tests/test_paired.py computes it.
    """
    b, c = np.asarray(gained, dtype=np.float64), np.asarray(lost, dtype=np.float64)
    only_champion = _restricted(b, c, num_rows, difference)
    variance = num_rows * (2 * only_champion + difference * (1 - difference))
    return np.asarray((b - c - num_rows * difference) / np.sqrt(np.maximum(variance, np.finfo(float).tiny)))


def _restricted(gained: "Floats | float", lost: "Floats | float", num_rows: float, difference: float) -> Floats:
    """The likeliest share of rows that only the champion answers rightly, where the difference is the given one."""
    a = 2 * num_rows
    b = (2 * num_rows - gained + lost) * difference - gained - lost
    c = -np.asarray(lost) * difference * (1 - difference)
    return np.asarray((np.sqrt(np.maximum(b * b - 4 * a * c, 0)) - b) / (2 * a))


def mcnemar_power(num_rows: int, differing: float, gain: float, level: float) -> float:
    """How often McNemar's exact test shows a true gain, where the two differ on a share `differing` of all rows."""
    from scipy.stats import binom

    totals = _likely(num_rows, differing)
    needed = binom.isf(level, totals, 0.5).astype(np.int64) + 1
    shown = binom.sf(needed - 1, totals, (differing + gain) / 2 / differing)
    return float((binom.pmf(totals, num_rows, differing) * shown).sum())


def score_power(num_rows: int, differing: float, margin: float, level: float, difference: float = 0.0) -> float:
    """How often the score test shows the difference to be above -margin, where it truly is `difference`, exactly."""
    from scipy.stats import binom

    only_champion, only_challenger = (differing - difference) / 2, (differing + difference) / 2
    lost = _likely(num_rows, only_champion)
    limit = _quantile(level)
    low, high = np.full(len(lost), -1), num_rows - lost + 1  # too few gained rows, and enough of them
    while (high - low > 1).any():
        middle = (low + high) // 2
        is_enough = score(np.clip(middle, 0, num_rows - lost), lost, num_rows, -margin) >= limit
        low, high = np.where(is_enough, low, middle), np.where(is_enough, middle, high)
    shown = binom.sf(high - 1, num_rows - lost, min(only_challenger / (1 - only_champion), 1.0))
    return float((binom.pmf(lost, num_rows, only_champion) * shown).sum())


def _likely(num_rows: int, share: float) -> Integers:
    """The counts that so many rows may well have."""
    from scipy.stats import binom

    return np.arange(int(binom.ppf(_TAIL, num_rows, share)), int(binom.isf(_TAIL, num_rows, share)) + 1)


@cache
def _smallest_gain(num_rows: int, num_differing: int, level: float, power: float) -> float:
    differing = _differing(num_rows, num_differing)
    return _smallest(lambda gain: mcnemar_power(num_rows, max(differing, gain), gain, level), power)


@cache
def _smallest_margin(num_rows: int, num_differing: int, level: float, power: float) -> float:
    differing = _differing(num_rows, num_differing)
    return _smallest(lambda margin: score_power(num_rows, differing, margin, level), power)


def _differing(num_rows: int, num_differing: int) -> float:
    """The largest share on which two may truly differ that do so on some of these rows: Clopper and Pearson 1934."""
    from scipy.special import betaincinv

    if num_differing == num_rows:
        return 1.0
    return float(betaincinv(num_differing + 1, num_rows - num_differing, CAUTION))


def _smallest(power_of: Callable[[float], float], power: float) -> float:
    """The smallest difference whose power is enough, by bisection; 1 where none is."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of(middle) >= power else (middle, high)
    return high


def _upper_tail(statistic: float) -> float:
    from scipy.special import ndtr

    return float(ndtr(-statistic))


def _quantile(level: float) -> float:
    """What a standard normal exceeds with a probability of `level`."""
    from scipy.special import ndtri

    return -float(ndtri(level))
