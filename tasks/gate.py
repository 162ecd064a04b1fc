"""Whether a challenger takes the champion's place: pure functions, from evidence to a verdict.

It is promoted where, on held-out rows that neither has trained on, one of two ways is open:

- it is shown to be better (`superior`), or
- it is shown to be worse by less than `margin`, and something that `improves` names falls by its share (`margin`);

and no slice is shown to be worse by more than `slice_margin`, and it is within the limits, and it boots.

**The error rate.** A decision has a one-sided level, its share of `alpha` (tasks/spending.py). Both ways are tested at
that whole level, in a fixed order: the margin first, and superiority only where the margin is held. That costs nothing,
since a challenger that is worse by the margin is no better either: the hypotheses are nested, and the pair is a closed
test (Morikawa and Yoshida 1995; the EMA's points to consider on switching between superiority and non-inferiority,
2000). So a challenger that is no better is promoted as better, and one that is worse by the margin is promoted at all,
with a probability of the level at most.

**Slices** work against a promotion, so their error is another one: that a slice is called worse which is not. It is
`alpha` for each decision, over all slices (Holm 1979), and is not spent.

**What could have been shown.** A margin which these rows could not show with the wanted power, were the two equal, is
refused: it would keep everything out. Losses within the margin may add up over promotions; deploy's floors end that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.paired import Evidence
from tasks.params import Count, Positive, Section, Seed, Share, Text

Verdict = Literal["promote", "keep", "ask"]
Way = Literal["superior", "margin"]
Cost = Literal["latency", "size"]

Probability = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class Gate(Section):
    """When a challenger takes the champion's place; `flows.models.<model>.gate` of params.yaml."""

    metric: Text  # of reports/<model>/evaluate.json
    alpha: Probability  # the chance of a wrong promotion, over all uses of one test set, and both ways
    power: Probability
    uses: Count  # how many decisions one test set may serve
    rows: Count | None  # how many test rows decide, the rest is kept for the next test set; null takes all
    margin: Positive  # how much worse the metric may be where something below improves
    improves: dict[Cost, Share]  # by which share it has to fall, for the way by the margin
    slice_margin: Positive
    max_latency_ms: Positive | None  # p50 at batch 1, on the machine that decides
    max_size_mb: Positive | None
    resamples: Annotated[int, Field(ge=1000)]
    seed: Seed


@dataclass(frozen=True)
class Slice:
    """What is known of one slice; `worse` where it is shown to be worse by more than the slices' margin."""

    column: str
    value: str
    evidence: Evidence | None  # None where it cannot be judged: too few rows, or the metric is not defined
    p_value: float
    adjusted: float
    worse: bool


@dataclass(frozen=True)
class Decision:
    """A verdict with what it rests on."""

    verdict: Verdict
    way: Way | None
    level: float
    p_margin: float
    p_better: float
    p_worse: float
    smallest_gain: float
    smallest_margin: float
    margin_is_refused: bool
    improved: Sequence[Cost]
    slices: Sequence[Slice]

    @property
    def worse_slices(self) -> list[Slice]:
        return [part for part in self.slices if part.worse]


def decide(
    evidence: Evidence,
    slices: Mapping[tuple[str, str], Evidence | None],
    improved: Sequence[Cost],
    rules: Gate,
    level: float,
) -> Decision:
    """The verdict on a challenger that is within the limits and boots. `improved` names what falls by its share."""
    p_margin, p_better = evidence.p_above(-rules.margin), evidence.p_above(0.0)
    smallest_margin = evidence.smallest_margin(level, rules.power)
    is_refused = smallest_margin > rules.margin
    judged = judge_slices(slices, rules)
    way: Way | None = None
    if p_margin <= level and p_better <= level:
        way = "superior"
    elif p_margin <= level and improved and not is_refused:
        way = "margin"
    p_worse = evidence.p_below(0.0)
    if way is not None:
        # Better on the whole and worse in a part is for somebody to weigh.
        verdict: Verdict = "ask" if any(part.worse for part in judged) else "promote"
    else:
        # With a margin that can be shown, what improves might have been enough; not where it is known to be worse.
        verdict = "ask" if is_refused and improved and p_worse > level else "keep"
    return Decision(
        verdict=verdict,
        way=way,
        level=level,
        p_margin=p_margin,
        p_better=p_better,
        p_worse=p_worse,
        smallest_gain=evidence.smallest_gain(level, rules.power),
        smallest_margin=smallest_margin,
        margin_is_refused=is_refused,
        improved=improved,
        slices=judged,
    )


def judge_slices(slices: Mapping[tuple[str, str], Evidence | None], rules: Gate) -> list[Slice]:
    """Each slice against `slice_margin`, with p-values adjusted for their number; one not judged speaks for nothing."""
    p_values = [1.0 if found is None else found.p_below(-rules.slice_margin) for found in slices.values()]
    return [
        Slice(column, value, found, p_value, adjusted, worse=adjusted <= rules.alpha)
        for ((column, value), found), p_value, adjusted in zip(slices.items(), p_values, holm(p_values), strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: below alpha, with alpha the chance that any true hypothesis is among them. Holm 1979."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1.0)
    return [float(value) for value in adjusted]


@dataclass(frozen=True)
class Contender:
    """What it costs to serve a release: its size, and milliseconds for each of some rows, which were asked alone."""

    megabytes: float
    latency_ms: NDArray[np.float64]

    @property
    def p50_ms(self) -> float:
        return float(np.median(self.latency_ms))


def over_limits(challenger: Contender, rules: Gate) -> list[Cost]:
    """Which limits it is above."""
    over: list[Cost] = []
    if rules.max_latency_ms is not None and challenger.p50_ms > rules.max_latency_ms:
        over.append("latency")
    if rules.max_size_mb is not None and challenger.megabytes > rules.max_size_mb:
        over.append("size")
    return over


def falls(challenger: Contender, champion: Contender, alpha: float) -> dict[Cost, float]:
    """By which share each thing is lower than the champion's, below 0 where it is higher.

    Latency is noisy: its share is the one that it has with a confidence of 1 - alpha.
    """
    return {
        "latency": 1 - median_at_most(challenger.latency_ms / champion.latency_ms, alpha),
        "size": 1 - challenger.megabytes / champion.megabytes,
    }


def improved_by(fallen: Mapping[Cost, float], rules: Gate) -> list[Cost]:
    """What falls by the share that params name."""
    return [name for name, share in sorted(rules.improves.items()) if fallen[name] > 0 and fallen[name] >= share]


def median_at_most(values_N: NDArray[np.float64], alpha: float) -> float:
    """An upper limit of the median, wrong with a probability of alpha: an order statistic, by the sign test."""
    from scipy.stats import binom

    place = int(binom.isf(alpha, len(values_N), 0.5)) + 1
    return float(np.sort(values_N)[place]) if place < len(values_N) else float("inf")
