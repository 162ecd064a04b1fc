"""What every classification problem shares: metrics under weights, scores per row, the temperature, baselines, curves.

The truth is `actual_N`, the numbers of the labels; an answer is a row of `probabilities_NK`. Nothing here knows what an
input is. Arrays are named by shape: N rows, K labels, R resamples, G groups.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.errors import DataError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# A metric of one label stands as `f1[positive]` and has the direction of `f1`.
HIGHER_IS_BETTER: Mapping[str, bool] = {
    "accuracy": True,
    "f1_macro": True,
    "precision_macro": True,
    "recall_macro": True,
    "f1_micro": True,
    "precision_micro": True,
    "recall_micro": True,
    "roc_auc": True,
    "average_precision": True,
    "log_loss": False,
    "expected_calibration_error": False,
    "f1": True,
    "precision": True,
    "recall": True,
}

# As scikit-learn has it: a probability of 0 given to the truth costs a lot, but not infinitely much.
_SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)

_CURVE_POINTS = 100
_SMALL_MATRIX = 20


def label_numbers(labels: pl.Series, names: Sequence[str]) -> Integers:
    """Each label's place in `names`. Raises DataError where one is not among them."""
    unknown = sorted(set(labels.unique()) - set(names), key=str)
    if unknown:
        raise DataError(
            f"Labels that the train split does not have: {', '.join(map(str, unknown))}. Collect more rows of them, or "
            "take them out with an expectation on `label`."
        )
    numbers = {name: number for number, name in enumerate(names)}
    return labels.replace_strict(numbers, return_dtype=pl.Int64).to_numpy()


def sigmoid(logits: NDArray[Any]) -> Floats:
    """The logistic function of each logit by itself, in double precision."""
    from scipy.special import expit

    return np.asarray(expit(logits.astype(np.float64)))


def softmax(logits_NK: NDArray[Any]) -> Floats:
    """Probabilities that add up to 1, in double precision."""
    shifted_NK = logits_NK.astype(np.float64) - logits_NK.max(axis=1, keepdims=True, initial=-np.inf)
    exponents_NK = np.exp(shifted_NK)
    return np.asarray(exponents_NK / exponents_NK.sum(axis=1, keepdims=True))


def answers(probabilities_NK: Floats, names: Sequence[str]) -> pl.DataFrame:
    """The frame that a caller gets: the likeliest label (the first of equals), its probability, and all of them."""
    return pl.DataFrame(
        {
            "label": [names[k] for k in probabilities_NK.argmax(axis=1)],
            "probability": probabilities_NK.max(axis=1, initial=0.0),
            "probabilities": probabilities_NK,
        },
        schema=answer_schema(names),
    )


def answer_schema(names: Sequence[str]) -> pl.Schema:
    """The columns of `answers`."""
    return pl.Schema(
        {"label": pl.String(), "probability": pl.Float64(), "probabilities": pl.Array(pl.Float64(), len(names))}
    )


def fit_temperature(logits_NK: NDArray[Any], actual_N: Integers) -> float:
    """The T for which softmax(logits / T) has the least log loss. Guo et al. 2017, section 4.2.

    It is looked for between 1/20 and 20, and rounded to six decimals; without rows it is 1.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    if not len(actual_N):
        return 1.0
    logits_NK = logits_NK.astype(np.float64)

    def log_loss(log_temperature: float) -> float:
        log_probabilities_NK = log_softmax(logits_NK / np.exp(log_temperature), axis=1)
        return -float(log_probabilities_NK[np.arange(len(actual_N)), actual_N].mean())

    found = minimize_scalar(log_loss, bounds=(-np.log(20), np.log(20)), method="bounded", options={"xatol": 1e-7})
    return round(float(np.exp(found.x)), 6)


def score(ids: pl.Series, actual_N: Integers, probabilities_NK: Floats) -> pl.DataFrame:
    """Per row: whether the likeliest label is the true one, and the negative log of the true one's probability."""
    return pl.DataFrame(
        {
            "id": ids,
            "correct": probabilities_NK.argmax(axis=1) == actual_N,
            "log_loss": _log_losses(actual_N, probabilities_NK),
        }
    )


def measure(
    actual_N: Integers, probabilities_NK: Floats, names: Sequence[str], weights_RN: Floats, bins: int
) -> dict[str, Floats]:
    """Every metric under R weightings of the rows, as scikit-learn's functions give it with `sample_weight`.

    A label that is absent has no recall, and one that is neither there nor answered has no precision and no F1: those
    are NaN, and no part of a macro average. A label that is there and never answered has precision 0. ROC AUC and
    average precision are those of the second label where there are two, else the macro average of each label against
    the rest.
    """
    num_labels = len(names)
    predicted_N = probabilities_NK.argmax(axis=1)
    correct_N = predicted_N == actual_N
    total_R = weights_RN.sum(axis=1)
    hits_RK = _sums(weights_RN, actual_N, num_labels, correct_N)
    actual_RK = _sums(weights_RN, actual_N, num_labels)
    predicted_RK = _sums(weights_RN, predicted_N, num_labels)

    precision_RK = ratio(hits_RK, np.where((predicted_RK == 0) & (actual_RK > 0), 1.0, predicted_RK))
    recall_RK = ratio(hits_RK, actual_RK)
    f1_RK = ratio(2 * hits_RK, predicted_RK + actual_RK)
    accuracy_R = ratio(hits_RK.sum(axis=1), total_R)
    ranked = [
        ranking_metrics(probabilities_NK[:, k], actual_N == k, weights_RN)
        for k in (range(num_labels) if num_labels > 2 else [1])
    ]
    metrics = {
        "accuracy": accuracy_R,
        "f1_macro": mean_where_defined(f1_RK),
        "precision_macro": mean_where_defined(precision_RK),
        "recall_macro": mean_where_defined(recall_RK),
        # With exactly one label a row, the pooled counts of false positives and of false negatives are the same.
        "f1_micro": accuracy_R,
        "precision_micro": accuracy_R,
        "recall_micro": accuracy_R,
        "roc_auc": mean_where_defined(np.stack([area_R for area_R, _ in ranked], axis=1)),
        "average_precision": mean_where_defined(np.stack([average_R for _, average_R in ranked], axis=1)),
        "log_loss": ratio(_sum(weights_RN, _log_losses(actual_N, probabilities_NK)), total_R),
        "expected_calibration_error": _calibration_error(correct_N, probabilities_NK.max(axis=1), weights_RN, bins),
    }
    for k, name in enumerate(names):
        metrics |= {
            f"f1[{name}]": f1_RK[:, k],
            f"precision[{name}]": precision_RK[:, k],
            f"recall[{name}]": recall_RK[:, k],
        }
    return metrics


def curves(
    actual_N: Integers, probabilities_NK: Floats, names: Sequence[str], bins: int
) -> dict[str, list[dict[str, Any]]]:
    """Points to plot: the cells of the confusion matrix, reliability by bin, and precision over recall.

    Precision over recall is that of the second label where there are two, else that of all labels' decisions pooled.
    Bins without rows are left out, and so are a large matrix's cells without rows, except on its diagonal.
    """
    return {
        "confusion": confusion(actual_N, probabilities_NK.argmax(axis=1), names),
        "precision_recall": _precision_recall(actual_N, probabilities_NK),
        "reliability": _reliability(actual_N, probabilities_NK, bins),
    }


def majority(train: pl.Series, names: Sequence[str], num_rows: int) -> pl.DataFrame:
    """The label that most train rows have, every time, with the labels' shares as probabilities."""
    shares_K = np.bincount(label_numbers(train, names), minlength=len(names)) / max(len(train), 1)
    return answers(np.tile(shares_K, (num_rows, 1)), names)


def logistic_regression(features: Any, labels: pl.Series, test_features: Any, names: Sequence[str]) -> pl.DataFrame:
    """scikit-learn's, as it comes: L2, C = 1, by L-BFGS, which draws no random numbers."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=1000).fit(features, label_numbers(labels, names))
    probabilities_NK = np.zeros((test_features.shape[0], len(names)))
    probabilities_NK[:, model.classes_] = model.predict_proba(test_features)
    return answers(probabilities_NK, names)


def _log_losses(actual_N: Integers, probabilities_NK: Floats) -> Floats:
    true_N = probabilities_NK[np.arange(len(actual_N)), actual_N]
    return np.asarray(-np.log(np.clip(true_N, _SMALLEST_PROBABILITY, 1.0)))


def _sums(weights_RN: Floats, groups_N: Integers, num_groups: int, values_N: NDArray[Any] | None = None) -> Floats:
    """Under each weighting the weighted sum of the values (or of ones) of each group, R by `num_groups`.

    The matrix is sparse: one entry a row, whatever the number of groups; and unlike BLAS it adds in one order always.
    """
    from scipy.sparse import csr_array

    num_rows = len(groups_N)
    entries_N = np.ones(num_rows) if values_N is None else values_N.astype(np.float64)
    groups_NG = csr_array((entries_N, (np.arange(num_rows), groups_N)), shape=(num_rows, num_groups))
    return np.asarray(weights_RN @ groups_NG)


def _sum(weights_RN: Floats, values_N: Floats) -> Floats:
    return _sums(weights_RN, np.zeros(len(values_N), dtype=np.int64), 1, values_N)[:, 0]


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """NaN where the denominator is 0."""
    undefined = np.full(denominator.shape, np.nan)
    return np.asarray(np.divide(numerator, denominator, out=undefined, where=denominator != 0))


def mean_where_defined(values_RK: Floats) -> Floats:
    return ratio(np.nansum(values_RK, axis=1), np.isfinite(values_RK).sum(axis=1).astype(np.float64))


def _bin_numbers(confidences_N: Floats, bins: int) -> Integers:
    """Bins of equal width, each with its upper edge: ((m - 1)/M, m/M], as Guo et al. 2017 have them."""
    return np.clip(np.ceil(confidences_N * bins).astype(np.int64) - 1, 0, bins - 1)


def _calibration_error(correct_N: NDArray[np.bool_], confidences_N: Floats, weights_RN: Floats, bins: int) -> Floats:
    """The mean over rows of |accuracy - confidence| of the row's bin. Guo et al. 2017, equation 3."""
    gaps_RG = _sums(weights_RN, _bin_numbers(confidences_N, bins), bins, correct_N - confidences_N)
    return ratio(np.abs(gaps_RG).sum(axis=1), weights_RN.sum(axis=1))


def _tie_ends(sorted_scores_N: Floats) -> Integers:
    """The last place of each run of equal scores: between equals there is no threshold."""
    return np.flatnonzero(np.append(np.diff(sorted_scores_N) != 0, True))


def ranking_metrics(scores_N: Floats, positive_N: NDArray[np.bool_], weights_RN: Floats) -> tuple[Floats, Floats]:
    """ROC AUC by the trapezoidal rule, and average precision Σ (R_g - R_(g-1)) P_g over the distinct thresholds g."""
    order_N = np.argsort(-scores_N, kind="stable")
    ends_G = _tie_ends(scores_N[order_N])
    sorted_RN = weights_RN[:, order_N]
    chosen_RG = np.cumsum(sorted_RN, axis=1)[:, ends_G]
    sorted_RN *= positive_N[order_N]
    hits_RG = np.cumsum(sorted_RN, axis=1, out=sorted_RN)[:, ends_G]
    positives_R, negatives_R = hits_RG[:, -1], chosen_RG[:, -1] - hits_RG[:, -1]

    new_hits_RG = np.diff(hits_RG, axis=1, prepend=0.0)
    new_misses_RG = np.diff(chosen_RG, axis=1, prepend=0.0) - new_hits_RG
    area_R = (new_misses_RG * (hits_RG - new_hits_RG / 2)).sum(axis=1)
    precision_RG = hits_RG / np.where(chosen_RG == 0, 1.0, chosen_RG)
    return (
        ratio(area_R, positives_R * negatives_R),
        ratio((new_hits_RG * precision_RG).sum(axis=1), positives_R),
    )


def confusion(actual_N: Integers, predicted_N: Integers, names: Sequence[str]) -> list[dict[str, Any]]:
    num_labels = len(names)
    counts = dict(zip(*np.unique(actual_N * num_labels + predicted_N, return_counts=True), strict=True))
    always = range(0, num_labels**2, 1 if num_labels <= _SMALL_MATRIX else num_labels + 1)
    cells = sorted({*map(int, counts), *always})
    return [
        {
            "actual": names[cell // num_labels],
            "predicted": names[cell % num_labels],
            "rows": int(counts.get(cell, 0)),
        }
        for cell in cells
    ]


def _precision_recall(actual_N: Integers, probabilities_NK: Floats) -> list[dict[str, Any]]:
    if probabilities_NK.shape[1] == 2:
        scores_N, positive_N = probabilities_NK[:, 1], actual_N == 1
    else:
        scores_N = probabilities_NK.ravel()
        positive_N = (actual_N[:, None] == np.arange(probabilities_NK.shape[1])).ravel()
    order_N = np.argsort(-scores_N, kind="stable")
    ends_G = _tie_ends(scores_N[order_N])
    hits_G = np.cumsum(positive_N[order_N])[ends_G]
    if not len(hits_G) or hits_G[-1] == 0:
        return []
    kept = np.unique(np.linspace(0, len(ends_G) - 1, _CURVE_POINTS).round().astype(np.int64))
    return [
        {
            "recall": round(float(hits_G[g] / hits_G[-1]), 6),
            "precision": round(float(hits_G[g] / (ends_G[g] + 1)), 6),
            "threshold": round(float(scores_N[order_N[ends_G[g]]]), 6),
        }
        for g in kept
    ]


def _reliability(actual_N: Integers, probabilities_NK: Floats, bins: int) -> list[dict[str, Any]]:
    confidences_N = probabilities_NK.max(axis=1)
    correct_N = probabilities_NK.argmax(axis=1) == actual_N
    numbers_N = _bin_numbers(confidences_N, bins)
    return [
        {
            "confidence": round(float(confidences_N[numbers_N == number].mean()), 6),
            "accuracy": round(float(correct_N[numbers_N == number].mean()), 6),
            "rows": int((numbers_N == number).sum()),
        }
        for number in np.unique(numbers_N)
    ]
