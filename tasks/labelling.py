"""Which rows are worth a person's time: those that a label teaches most, and some that chance chooses.

Three eighths are where the model is least sure, three eighths where the inputs are least like what it has learned from,
each spread out so that no two say the same (Settles 2009, "Active learning literature survey", chapter 3: uncertainty
sampling, and why it needs diversity). A quarter is drawn by chance: only on these is the share of right answers the
share of all.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.drift import Floats

UNSURE, UNLIKE, CHANCE = "unsure", "unlike what was learned", "by chance"

# Of the best so many times what is wanted, the most different ones are taken.
_CANDIDATES = 5


def worth_labelling(
    probability_N: NDArray[np.float64] | None, embedding_NE: Floats | None, num_rows: int, num_wanted: int, seed: int
) -> pl.DataFrame:
    """The places of at most so many rows, in a good order for labelling, and `why` each.

    `embedding_NE` is projected, with the reference's middle at 0. What is not known of the rows is left out of account.
    """
    generator = np.random.default_rng(seed)
    num_wanted = min(num_wanted, num_rows)
    chosen: dict[int, str] = {}
    worths = {}
    if probability_N is not None:
        worths[UNSURE] = -np.nan_to_num(probability_N, nan=0.0)
    if embedding_NE is not None:
        worths[UNLIKE] = np.sqrt((embedding_NE**2).sum(axis=1))
    num_by_worth = num_wanted - -(-num_wanted // 4) if worths else 0
    for number, (why, worth_N) in enumerate(worths.items(), 1):
        share = num_by_worth * number // len(worths) - len(chosen)
        best = [place for place in np.argsort(-worth_N, kind="stable") if place not in chosen]
        for place in _spread(best[: _CANDIDATES * share], embedding_NE, share):
            chosen[place] = why
    rest = np.array([place for place in range(num_rows) if place not in chosen], dtype=np.int64)
    for place in generator.permutation(rest)[: num_wanted - len(chosen)]:
        chosen[int(place)] = CHANCE
    # Mixed, so that whoever stops half-way has some of each.
    order = generator.permutation(len(chosen))
    places = list(chosen)
    return pl.DataFrame(
        {
            "place": pl.Series([places[number] for number in order], dtype=pl.Int64),
            "why": pl.Series([chosen[places[number]] for number in order], dtype=pl.String),
        }
    )


def _spread(candidates: Sequence[int], embedding_NE: Floats | None, num_wanted: int) -> list[int]:
    """So many of the candidates, each as far as can be from those before it; the first is the first candidate.

    Gonzalez 1985, "Clustering to minimize the maximum intercluster distance": farthest first.
    """
    if embedding_NE is None or len(candidates) <= num_wanted:
        return [int(place) for place in candidates[:num_wanted]]
    among_CE = embedding_NE[list(candidates)]
    taken = [0]
    nearest_C = np.linalg.norm(among_CE - among_CE[0], axis=1)
    while len(taken) < num_wanted:
        farthest = int(nearest_C.argmax())
        taken.append(farthest)
        nearest_C = np.minimum(nearest_C, np.linalg.norm(among_CE - among_CE[farthest], axis=1))
    return [int(candidates[place]) for place in taken]
