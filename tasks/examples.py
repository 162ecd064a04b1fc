"""Which rows of a window drive its drift: those that are unlike the reference on the side to which the window moved."""

from collections.abc import Iterable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.drift import Floats, Reference, Sample, distances

# A row is named with what it is beyond most rows of the reference in.
_NOTABLE = 0.75
_MOST_REASONS = 3


def driving_rows(
    reference: Reference, window: Sample, drifted: dict[str, float], repeated: NDArray[np.bool_], num_wanted: int
) -> pl.DataFrame:
    """The places of the rows that drive the drift the most, the first first, and `why`: the names of what has moved.

    `drifted` are the figures that are past their thresholds. Of rows that say the same (`repeated`) one is named.
    """
    parts = {
        name: (figure, _contribution(reference, window, name))
        for name, figure in drifted.items()
        if name in window.columns or window.embedding is not None
    }
    parts = {name: (figure, part_N) for name, (figure, part_N) in parts.items() if len(part_N) == window.num_rows}
    if not parts:
        return pl.DataFrame(schema={"place": pl.Int64, "why": pl.List(pl.String)})
    score_N = np.sum([figure * part_N for figure, part_N in parts.values()], axis=0)
    order = [int(place) for place in np.argsort(-score_N, kind="stable") if not repeated[place]][:num_wanted]
    return pl.DataFrame(
        {
            "place": pl.Series(order, dtype=pl.Int64),
            "why": pl.Series([_reasons(parts.items(), place) for place in order], dtype=pl.List(pl.String)),
        }
    )


def _contribution(reference: Reference, window: Sample, name: str) -> Floats:
    """Between 0 and 1 for each row: how much it is on the side to which the window has moved."""
    kinds = {one.name: one.kind for one in reference.watched}
    if kinds[name] == "energy":
        return _of_embedding(reference, window)
    of_window, of_reference = window.columns[name], reference.sample.columns[name]
    if kinds[name] == "number":
        return _of_number(of_window, of_reference)
    return _of_kind(of_window, of_reference)


def _of_number(window_N: Floats, reference_M: Floats) -> Floats:
    """Beyond the value where the two shares differ most: the share of the reference's rows that are less far out."""
    values = np.unique(np.concatenate([window_N, reference_M]))
    sorted_M = np.sort(reference_M)
    of_window = np.searchsorted(np.sort(window_N), values, side="right") / len(window_N)
    difference = of_window - np.searchsorted(sorted_M, values, side="right") / len(reference_M)
    most = int(np.abs(difference).argmax())
    if difference[most] > 0:  # the window has more of the small ones
        less_far_out_N = 1 - np.searchsorted(sorted_M, window_N, side="right") / len(sorted_M)
        return np.where(window_N <= values[most], less_far_out_N, 0.0)
    return np.where(window_N > values[most], np.searchsorted(sorted_M, window_N, side="left") / len(sorted_M), 0.0)


def _of_kind(window_N: NDArray[np.int64], reference_M: NDArray[np.int64]) -> Floats:
    """The share of the rows of its kind that are more than the reference would have."""
    num_kinds = int(max(window_N.max(), reference_M.max())) + 2
    of_window_K = np.bincount(window_N + 1, minlength=num_kinds) / len(window_N)
    of_reference_K = np.bincount(reference_M + 1, minlength=num_kinds) / len(reference_M)
    surplus_K = np.maximum(of_window_K - of_reference_K, 0) / np.maximum(of_window_K, 1e-12)
    return np.asarray(surplus_K[window_N + 1])


def _of_embedding(reference: Reference, window: Sample) -> Floats:
    """The witness, E|x-X| of the reference less that of the window, as its place among those of the reference's rows.

    Gretton et al. 2012, "A kernel two-sample test", section 2.3, with the distance as the energy statistic has it.
    """
    window_NE, reference_ME = window.embedding, reference.sample.embedding
    assert window_NE is not None  # noqa: S101
    assert reference_ME is not None  # noqa: S101
    of_window_N = _mean_distance(window_NE, reference_ME) - _mean_distance(window_NE, window_NE)
    of_reference_M = _mean_distance(reference_ME, reference_ME) - _mean_distance(reference_ME, window_NE)
    return np.asarray(np.searchsorted(np.sort(of_reference_M), of_window_N, side="left") / len(of_reference_M))


def _mean_distance(rows_NE: Floats, to_ME: Floats) -> Floats:
    return np.concatenate([part.mean(axis=1) for part in distances(rows_NE, to_ME)])


def _reasons(parts: Iterable[tuple[str, tuple[float, Floats]]], place: int) -> list[str]:
    found = [(float(part_N[place]), name) for name, (_, part_N) in parts]
    notable = sorted(((part, name) for part, name in found if part >= _NOTABLE), key=lambda one: (-one[0], one[1]))
    return [name for _, name in notable[:_MOST_REASONS]] or [max(found)[1]]
