"""How many answers are probably right, before anybody has said so: from how sure the model is of them.

Average thresholded confidence (Garg et al. 2022, "Leveraging unlabeled data to predict out-of-distribution
performance", section 3): on held-out rows the threshold is chosen so that the share of answers that are surer is the
accuracy that was measured there; the share of a window's answers that are surer is its estimated accuracy. It rests on
confidence meaning what it meant on the held-out rows, and is mostly too high where inputs have drifted.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DRAWS = 1_000
_HELD_OUT_AT_ONCE = 200


def estimated_accuracy(
    window_N: NDArray[Any],
    reference_M: NDArray[Any],
    measured: Mapping[str, float | None],
    confidence: float,
    seed: int,
) -> dict[str, float] | None:
    """`value`, `low` and `high` from the probabilities of the answers; None where nothing was measured.

    `measured` is the accuracy on held-out rows with its interval of level `confidence`, and `reference_M` the
    probabilities there. The interval has the same level, and three sources: which rows the window has, which the
    reference has, and how well the accuracy there is known.
    """
    value, low, high = measured.get("value"), measured.get("low"), measured.get("high")
    window_N, reference_M = window_N[np.isfinite(window_N)], reference_M[np.isfinite(reference_M)]
    if value is None or low is None or high is None or not len(window_N) or not len(reference_M):
        return None
    generator = np.random.default_rng(seed)
    ordered_N = np.sort(window_N)
    from_normal = (high - low) / (2 * _normal_quantile((1 + confidence) / 2))
    drawn_B = []
    for start in range(0, _DRAWS, _HELD_OUT_AT_ONCE):
        num = min(_HELD_OUT_AT_ONCE, _DRAWS - start)
        held_BM = np.sort(generator.choice(reference_M, size=(num, len(reference_M))), axis=1)
        accuracy_B = np.clip(generator.normal(value, from_normal, num), 0.0, 1.0)
        place_B = np.clip(np.floor((1 - accuracy_B) * len(reference_M)), 0, len(reference_M) - 1).astype(np.int64)
        surer_B = _share_surer(ordered_N, held_BM[np.arange(num), place_B])
        drawn_B.append(generator.binomial(len(window_N), surer_B) / len(window_N))
    ends = np.quantile(np.concatenate(drawn_B), [(1 - confidence) / 2, (1 + confidence) / 2])
    threshold = np.quantile(reference_M, 1 - value, method="higher")
    estimate = float(_share_surer(ordered_N, np.array([threshold]))[0])
    return {
        "value": round(estimate, 6),
        "low": round(min(float(ends[0]), estimate), 6),
        "high": round(max(float(ends[1]), estimate), 6),
    }


def _share_surer(ordered_N: NDArray[Any], thresholds: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(1 - np.searchsorted(ordered_N, thresholds, side="left") / len(ordered_N))


def _normal_quantile(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))
