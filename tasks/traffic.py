"""How much was asked of a model, and how long the answers took, over time."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class Stretch:
    """A stretch of time: when it began (microseconds since 1970), its answers, and their latency in ms.

    The latency is None where there were no answers, or where they were too many for their latencies to be read.
    """

    began_us: int
    num_answers: int
    p50_ms: float | None
    p99_ms: float | None


def stretches(
    counts: Mapping[int, int], latencies: pl.DataFrame, *, since_us: int, width_us: int, num: int
) -> list[Stretch]:
    """So many stretches of time from a moment on, those without answers among them.

    `counts` are their answers by their numbers; `latencies` has `at_us` and `latency_ms`, a row for each answer.
    """
    timed = (
        latencies.group_by(number=(pl.col("at_us") - since_us) // width_us)
        .agg(p50=pl.col("latency_ms").quantile(0.5, "nearest"), p99=pl.col("latency_ms").quantile(0.99, "nearest"))
        .rows_by_key("number", unique=True)
    )
    return [
        Stretch(since_us + number * width_us, counts.get(number, 0), *timed.get(number, (None, None)))
        for number in range(num)
    ]
