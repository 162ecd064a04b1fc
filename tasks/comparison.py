"""Two releases' answers to the same rows, as evidence of which is better by one metric of their problem.

Nothing here knows a metric by name. One that is the mean of a per-row score is told by trying: then its rows speak for
themselves, and where each of them is right or wrong the tests need no resamples. Any other metric is what `measure`
gives under resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.errors import DataError, ParamsError, did_you_mean
from tasks.judgement import score_behind
from tasks.paired import Discordance, Evidence
from tasks.problems import Problem, Signature
from tasks.resampled import Difference, influence_of, mean_of, resample

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# With fewer rows, or groups of rows, a bootstrap knows too little of its own error.
FEWEST_RESAMPLED = 100


class Incomparable(DataError):
    """The two cannot be compared on these rows; a person has to decide."""


@dataclass(frozen=True)
class Side:
    """One release's answers to the rows, in their order, and what its numbers mean."""

    answers: pl.DataFrame
    signature: Signature


@dataclass(frozen=True)
class Setting:
    """What is compared, and how."""

    metric: str
    bins: int  # of a calibration metric
    resamples: int
    seed: int
    group: str | None = None  # rows that share its value are drawn together, since they are not independent


@dataclass(frozen=True)
class Compared:
    """What some rows say. `gains` is by how much each of them speaks for the challenger."""

    evidence: Evidence
    challenger: float
    champion: float
    gains: Floats


@dataclass(frozen=True)
class Comparison:
    """Both sides on the same rows; `comparison_of` makes one."""

    rows: pl.DataFrame
    sides: tuple[Side, Side]  # challenger, champion
    problem: Problem
    setting: Setting
    score: str | None  # the per-row score whose mean the metric is

    @property
    def sign(self) -> int:
        return direction(self.problem, self.setting.metric)

    def units(self) -> NDArray[np.int64] | None:
        """The number of each row's group; None where every row is its own."""
        if self.setting.group is None:
            return None
        keys = self.rows[self.setting.group].cast(pl.String).fill_null(self.rows["id"])
        return (keys.rank("dense").cast(pl.Int64) - 1).to_numpy() if keys.is_duplicated().any() else None

    def compare(self, where_N: Mask | None = None, advance: Callable[[int], None] = lambda _: None) -> Compared | None:
        """Compare on all rows or a part of them; None where the metric is not defined there, or they are too few."""
        if where_N is not None:
            rows = self.rows.filter(where_N)
            challenger, champion = (replace(side, answers=side.answers.filter(where_N)) for side in self.sides)
            return replace(self, rows=rows, sides=(challenger, champion)).compare(advance=advance)
        now, before = (float(values_R[0]) for values_R in self._values(np.ones((1, len(self.rows)))))
        if not np.isfinite([now, before]).all():
            return None
        if self.score is None:
            return self._resampled(now, before, self._difference, None, advance)
        scores = [score[self.score] for score in self._scores()]
        now_N, before_N = (score.cast(pl.Float64).to_numpy() for score in scores)
        gains_N = self.sign * (now_N - before_N)
        if self.units() is None and all(score.dtype == pl.Boolean for score in scores):
            found = Discordance(len(gains_N), int((gains_N > 0).sum()), int((gains_N < 0).sum()))
            return Compared(found, now, before, gains_N)
        return self._resampled(now, before, mean_of(gains_N), gains_N, advance)

    def _resampled(
        self, now: float, before: float, difference: Difference, gains_N: Floats | None, advance: Callable[[int], None]
    ) -> Compared | None:
        units_N = self.units()
        if (len(self.rows) if units_N is None else int(units_N.max()) + 1) < FEWEST_RESAMPLED:
            return None
        influence_N = influence_of(difference, len(self.rows)) if gains_N is None else gains_N - gains_N.mean()
        resamples, seed = self.setting.resamples, self.setting.seed
        found = resample(difference, influence_N, resamples=resamples, seed=seed, units_N=units_N, advance=advance)
        return Compared(found, now, before, influence_N if gains_N is None else gains_N)

    def _difference(self, weights_RN: Floats) -> Floats:
        now_R, before_R = self._values(weights_RN)
        return np.asarray(self.sign * (now_R - before_R))

    def _values(self, weights_RN: Floats) -> list[Floats]:
        """Both sides' metric under weights."""
        metric, bins = self.setting.metric, self.setting.bins
        measured = [
            self.problem.measure(self.rows, side.answers, side.signature, weights_RN, bins) for side in self.sides
        ]
        for found in measured:
            if metric not in found:
                raise Incomparable(f"{metric} is not measured on both sides; there is {', '.join(sorted(found))}.")
        return [found[metric] for found in measured]

    def _scores(self) -> list[pl.DataFrame]:
        return [self.problem.score(self.rows, side.answers, side.signature) for side in self.sides]


def comparison_of(
    rows: pl.DataFrame, challenger: Side, champion: Side, problem: Problem, setting: Setting
) -> Comparison:
    """Both sides on the same rows. Raises Incomparable where one of them cannot be judged on these rows."""
    found = Comparison(rows, (challenger, champion), problem, setting, score=None)
    try:
        return replace(found, score=score_behind(found._scores(), found._values))
    except DataError as error:
        raise Incomparable(str(error)) from None


def direction(problem: Problem, metric: str) -> int:
    """1 where more of the metric is better, else -1. Raises ParamsError where the problem has no such metric."""
    known = problem.higher_is_better
    name = metric.partition("[")[0]  # f1[positive] has the direction of f1
    if name not in known:
        raise ParamsError(
            f"params.yaml: gate.metric is {metric!r}, which is not a metric of {problem.name}."
            f"{did_you_mean(name, known)} Known: {', '.join(sorted(known))}."
        )
    return 1 if known[name] else -1
