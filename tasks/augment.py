"""Other rows to learn from in each epoch: some tokens left out, some neighbours exchanged; the target stays.

What chance does to a row is a function of the seed, the epoch and the row's place alone, so that a training that goes
on after a kill sees what it would have seen. Arrays are named by shape: T tokens of a row.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.params import Augment
from tasks.problems import Problem

# Takes a batch, its rows' places among those that are learned from, and the epoch.
Change = Callable[[pl.DataFrame, Sequence[int], int], pl.DataFrame]


def augmenting(problem: Problem, params: Augment, specials: Sequence[int], seed: int, learned: pl.DataFrame) -> Change:
    """What is to be done to each batch of `learned`. Raises ParamsError where the problem's rows have to stay."""

    def change(batch: pl.DataFrame, places: Sequence[int], epoch: int) -> pl.DataFrame:
        return problem.augment(batch, specials, partial(draw, places=places, params=params, seed=seed, epoch=epoch))

    change(learned.head(1), [0], 0)  # so that whoever may not is told before a model is built
    return change


def draw(movable: pl.Series, *, places: Sequence[int], params: Augment, seed: int, epoch: int) -> pl.Series:
    """For each row the places that its tokens had before, in their new order.

    `movable` has a list of bools a row: which tokens chance may touch. The others stay, in their order.
    """
    orders = [
        _order(np.array(may, dtype=np.bool_), params, np.random.default_rng((seed, epoch, place))).tolist()
        for may, place in zip(movable.to_list(), places, strict=True)
    ]
    return pl.Series(orders, dtype=pl.List(pl.Int64))


def _order(may_T: NDArray[np.bool_], params: Augment, random: np.random.Generator) -> NDArray[np.int64]:
    leaves_T, swaps_T = random.random((2, len(may_T)))
    order_T = np.arange(len(may_T))
    for place in np.flatnonzero(may_T[:-1] & may_T[1:] & (swaps_T[:-1] < params.swap)):
        if order_T[place] == place:  # else it has just come from the left
            order_T[[place, place + 1]] = order_T[[place + 1, place]]
    stays_T = ~may_T | (leaves_T >= params.dropout)
    if not (stays_T & may_T).any():
        return order_T  # a row of nothing would teach nothing
    return np.asarray(order_T[stays_T[order_T]])
