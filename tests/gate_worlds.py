"""Worlds in which it is known how good challengers are, for counting how often the gate is wrong."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.gate import Decision, Gate, decide
from tasks.paired import Discordance, Evidence
from tasks.resampled import influence_of, mean_of, resample
from tasks.spending import choose, joined, marks_of

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

RULES = Gate(
    metric="accuracy",
    alpha=0.05,
    power=0.8,
    uses=20,
    rows=None,
    margin=0.05,
    improves={"size": 0.1},
    slice_margin=0.08,
    max_latency_ms=None,
    max_size_mb=None,
    resamples=1000,
    seed=1,
)
ACCURACY = 0.85
NUM_SLICES = 4


@dataclass(frozen=True)
class World:
    """One test set, the champion on it, and challengers as good as they are said to be.

    Rows differ in how hard they are: those that one challenger answers otherwise are likelier to be those that the next
    one does. So decisions on one test set hang together, as they do in earnest.
    """

    right: Mask
    accuracy: float  # of the champion, on all the rows that there might be
    difficulty: Floats  # of mean 1, and independent of what the champion knows
    slices: NDArray[np.int64]
    seed: int

    @classmethod
    def draw(cls, num_rows: int, seed: int) -> "World":
        generator = np.random.default_rng([seed, 0])
        return cls(
            generator.random(num_rows) < ACCURACY,
            ACCURACY,
            0.25 + 1.5 * generator.beta(0.6, 0.6, num_rows),
            generator.integers(0, NUM_SLICES, num_rows),
            seed,
        )

    def challengers(self, num: int, difference: float, differing: float, seed: int = 0) -> Iterator[Mask]:
        """Who answers rightly a share of all rows that is larger by `difference`; on a share `differing` otherwise."""
        gained, lost = (differing + difference) / 2 / (1 - self.accuracy), (differing - difference) / 2 / self.accuracy
        generator = np.random.default_rng([self.seed, 1, seed])
        for _ in range(num):
            changes = generator.random(len(self.right)) < np.where(self.right, lost, gained) * self.difficulty
            yield self.right ^ changes


def judged(world: World, right: Mask, level: float, improved: list[str], rules: Gate = RULES) -> Decision:
    """The gate's decision by accuracy, with its slices."""

    def evidence(where: Mask) -> Evidence:
        now, before = right[where], world.right[where]
        return Discordance(int(where.sum()), int((now & ~before).sum()), int((~now & before).sum()))

    slices = {("part", str(part)): evidence(world.slices == part) for part in range(NUM_SLICES)}
    return decide(evidence(np.ones(len(right), dtype=np.bool_)), slices, improved, rules, level)


def levels(num_rows: int, rules: Gate = RULES) -> list[float]:
    """What each decision on one test set may spend, until it is worn out."""
    marks = marks_of(pl.DataFrame({"id": [f"r{n}" for n in range(num_rows)], "text": ["x"] * num_rows}), ["id"])
    used: dict[str, frozenset[str]] = {}
    decisions: list[dict[str, object]] = []
    while (found := choose(marks, used, decisions, alpha=rules.alpha, uses=rules.uses, most_rows=None)).level:
        used = joined(used, found, marks)
        decisions.append({"test_set": found.name, "alpha_spent": found.level})
    return [float(str(decision["alpha_spent"])) for decision in decisions]


def skewed(hardness: Floats, difference: float, generator: np.random.Generator) -> Floats:
    """How much better a numeric score is on each row: many small gains and a few large losses, and exact in the mean.

    As a log loss behaves, which few rows decide. `hardness` is of the rows, whoever the challenger is.
    """
    return np.asarray(hardness * (1 - generator.gamma(0.7, 1 / 0.7, len(hardness))) + difference)


def by_mean(gains: Floats, seed: int, resamples: int) -> Evidence:
    return resample(mean_of(gains), gains - gains.mean(), resamples=resamples, seed=seed)


def by_f1(world: World, right: Mask, seed: int, resamples: int) -> Evidence:
    """Macro F1 over two labels of like frequency, of which the population's is the accuracy."""
    actual = np.random.default_rng([world.seed, 2]).random(len(right)) < 0.5

    def f1(weights: Floats, is_right: Mask) -> Floats:
        said = actual == is_right
        scores = []
        for label in (True, False):
            hits = weights @ ((actual == label) & (said == label)).astype(np.float64)
            scores.append(2 * hits / (weights @ ((actual == label) * 1.0 + (said == label))))
        return np.asarray((scores[0] + scores[1]) / 2)

    def difference(weights: Floats) -> Floats:
        return f1(weights, right) - f1(weights, world.right)

    return resample(difference, influence_of(difference, len(right)), resamples=resamples, seed=seed)


def limit(alpha: float, num: int) -> float:
    """What a true error rate of alpha hardly ever passes in so many trials."""
    return float(alpha + 3 * np.sqrt(alpha * (1 - alpha) / num))
