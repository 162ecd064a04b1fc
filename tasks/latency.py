"""How long releases take for one row, on this machine: measured side by side, so that what else runs here hits all."""

import time
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.runtime import Runtime

# Each row is asked so often of each, and the middle one counts.
_ROUNDS = 3

# So many rows, or fewer where they would take longer.
_ROWS, _SECONDS, _FEWEST = 200, 20.0, 20


def latencies(runtimes: Sequence[Runtime], rows: pl.DataFrame) -> list[NDArray[np.float64]]:
    """Milliseconds from each of some rows, which stand for all, to its answer; for each runtime, in the rows' order."""
    places = np.unique(np.linspace(0, len(rows) - 1, _ROWS).round().astype(np.int64))
    taken: list[list[float]] = [[] for _ in runtimes]
    for runtime in runtimes:
        runtime.predict(rows[:1])  # the first answer pays for what all later ones have
    begun = time.perf_counter()
    # Not in their order, which may be by length, so that those that are left out are like the others.
    for number, place in enumerate(np.random.default_rng(0).permutation(places).tolist()):
        row = rows[place]
        times: list[list[float]] = [[] for _ in runtimes]
        for turn in range(_ROUNDS):
            # They take turns in being first.
            for which in np.roll(np.arange(len(runtimes)), turn + number).tolist():
                started = time.perf_counter()
                runtimes[which].predict(row)
                times[which].append(1000 * (time.perf_counter() - started))
        for mine, found in zip(taken, times, strict=True):
            mine.append(float(np.median(found)))
        if time.perf_counter() - begun > _SECONDS and number + 1 >= _FEWEST:
            break
    return [np.asarray(found) for found in taken]
