"""What problems share whose rows have any number of labels: sets as text, thresholds, metrics, baselines, curves.

A row's labels are one text, `film|positive`: names with `SEPARATOR` between them, in any order, and "" for none. The
truth is `actual_NK` and an answer `given_NK`, true where row n has label k; beside it stand `probabilities_NK`. Nothing
here knows what an input is. Arrays are named by shape: N rows, K labels, R resamples, G thresholds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.errors import DataError
from tasks.problems import _classification
from tasks.problems._classification import Floats, mean_where_defined, ranking_metrics, ratio

Bools = NDArray[np.bool_]

SEPARATOR = "|"
TWICE = r"(^|\|)([^|]+)\|(.*\|)?\2(\||$)"
"""Matches labels of which one stands there twice."""

# A metric of one label stands as `f1[positive]` and has the direction of `f1`.
HIGHER_IS_BETTER: Mapping[str, bool] = {
    "f1_micro": True,
    "f1_macro": True,
    "precision_micro": True,
    "recall_micro": True,
    "exact_match": True,
    "average_precision_macro": True,
    "hamming_loss": False,
    "log_loss": False,
    "f1": True,
    "precision": True,
    "recall": True,
    "average_precision": True,
}

# The set without a label, where people or a comparison of kinds read it.
NO_LABEL = "(none)"

# Where nothing was fitted.
EVEN = 0.5

_SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)

_DECIMALS = 6

# The baseline finds its thresholds on every fourth train row, having learned from the others.
_HELD_OUT = 4


def malformed(labels: pl.Series) -> pl.Series:
    """Which texts are no set of labels: a name is empty, begins or ends with white space, or comes twice."""
    names = labels.str.split(SEPARATOR)
    name = pl.element()
    is_odd = names.list.eval((name != name.str.strip_chars()) | (name == "")).list.any()
    return (labels != "") & (is_odd | (names.list.n_unique() < names.list.len()))


def canonical(labels: pl.Series) -> pl.Series:
    """Each set in one way: its names sorted. Two texts are the same set where this is the same."""
    return labels.str.split(SEPARATOR).list.sort().list.join(SEPARATOR)


def names_of(labels: pl.Series) -> list[str]:
    """Every name that comes in the sets, sorted."""
    return sorted(name for name in labels.str.split(SEPARATOR).explode().unique() if name)


def membership(labels: pl.Series, names: Sequence[str]) -> Bools:
    """Which row has which of `names`, in their order. Raises DataError where a row has one that is not among them."""
    each = pl.DataFrame({"row": np.arange(len(labels)), "name": labels.str.split(SEPARATOR)}).explode("name")
    each = each.filter(pl.col("name") != "")
    unknown = sorted(set(each["name"].unique()) - set(names))
    if unknown:
        raise DataError(
            f"Labels that the train split does not have: {', '.join(unknown)}. Collect more rows of them, or take them "
            "out with an expectation on `labels`."
        )
    numbers = {name: number for number, name in enumerate(names)}
    has_NK = np.zeros((len(labels), len(names)), dtype=np.bool_)
    has_NK[each["row"], each["name"].replace_strict(numbers, return_dtype=pl.Int64)] = True
    return has_NK


def sets(given_NK: Bools, names: Sequence[str]) -> list[str]:
    """Each row's labels as one text, in the names' order."""
    return [SEPARATOR.join(name for name, has in zip(names, row, strict=True) if has) for row in given_NK]


def answers(
    given_NK: Bools, probabilities_NK: Floats, names: Sequence[str], sure_N: Floats | None = None
) -> pl.DataFrame:
    """The frame that a caller gets. How sure a set is, is the product over the labels, as if each were by itself."""
    if sure_N is None:
        sure_N = np.where(given_NK, probabilities_NK, 1 - probabilities_NK).prod(axis=1)
    return pl.DataFrame(
        {"labels": sets(given_NK, names), "probability": sure_N, "probabilities": probabilities_NK},
        schema=answer_schema(names),
    )


def answer_schema(names: Sequence[str]) -> pl.Schema:
    """The columns of `answers`."""
    return pl.Schema(
        {"labels": pl.String(), "probability": pl.Float64(), "probabilities": pl.Array(pl.Float64(), len(names))}
    )


def fit_temperature(logits_NK: NDArray[Any], actual_NK: Bools) -> float:
    """The one T for all labels for which sigmoid(logits / T) has the least log loss."""
    # A sigmoid is the softmax of a logit and 0.
    pairs_M2 = np.stack([np.zeros(logits_NK.size), logits_NK.ravel()], axis=1)
    return _classification.fit_temperature(pairs_M2, actual_NK.ravel().astype(np.int64))


def fit_threshold(probabilities_N: Floats, actual_N: Bools) -> float:
    """The probability from which on a label is given so that its F1 on these rows is largest.

    Looked for half-way between neighbouring probabilities; of equals the one nearest to 0.5, which it is where no row
    has the label. Lipton, Elkan and Naryanaswamy 2014: the best threshold for F1 is half of the best F1, so rarely 0.5.
    """
    if not actual_N.any():
        return EVEN
    ascending_N = np.sort(probabilities_N)
    thresholds_G = np.unique(np.append(((ascending_N[1:] + ascending_N[:-1]) / 2).round(_DECIMALS), EVEN))
    given_G = len(ascending_N) - np.searchsorted(ascending_N, thresholds_G)
    hits_G = actual_N.sum() - np.searchsorted(np.sort(probabilities_N[actual_N]), thresholds_G)
    f1_G = 2 * hits_G / (given_G + actual_N.sum())
    return float(thresholds_G[np.lexsort((np.abs(thresholds_G - EVEN), -f1_G))[0]])


def score(ids: pl.Series, actual_NK: Bools, given_NK: Bools, probabilities_NK: Floats) -> pl.DataFrame:
    """Per row: whether the set is the true one, the share of labels that are wrong, and their mean log loss."""
    return pl.DataFrame(
        {
            "id": ids,
            "correct": (given_NK == actual_NK).all(axis=1),
            "hamming_loss": (given_NK != actual_NK).mean(axis=1),
            "log_loss": _log_losses(actual_NK, probabilities_NK).mean(axis=1),
        }
    )


def measure(
    actual_NK: Bools, given_NK: Bools, probabilities_NK: Floats, names: Sequence[str], weights_RN: Floats
) -> dict[str, Floats]:
    """Every metric under R weightings of the rows, as scikit-learn's functions give it with `sample_weight`.

    A label that no row has has no recall and no average precision, and where it is not answered either, no precision
    and no F1: those are NaN, and no part of a macro average. One that is there and never answered has precision 0.
    """
    hits_RK, actual_RK, given_RK = (
        _column_sums(weights_RN, values) for values in (actual_NK & given_NK, actual_NK, given_NK)
    )
    by_label = {"f1": _f1(hits_RK, actual_RK, given_RK)}
    by_label["precision"] = _precision(hits_RK, actual_RK, given_RK)
    by_label["recall"] = ratio(hits_RK, actual_RK)
    by_label["average_precision"] = np.stack(
        [ranking_metrics(probabilities_NK[:, k], actual_NK[:, k], weights_RN)[1] for k in range(len(names))], axis=1
    )
    pooled = [counts_RK.sum(axis=1) for counts_RK in (hits_RK, actual_RK, given_RK)]
    scored_N3 = np.stack(
        [
            (given_NK == actual_NK).all(axis=1),
            (given_NK != actual_NK).mean(axis=1),
            _log_losses(actual_NK, probabilities_NK).mean(axis=1),
        ],
        axis=1,
    )
    means_R3 = ratio(_column_sums(weights_RN, scored_N3), weights_RN.sum(axis=1, keepdims=True) * np.ones(3))
    return {
        "f1_micro": _f1(*pooled),
        "f1_macro": mean_where_defined(by_label["f1"]),
        "precision_micro": _precision(*pooled),
        "recall_micro": ratio(pooled[0], pooled[1]),
        "exact_match": means_R3[:, 0],
        "average_precision_macro": mean_where_defined(by_label["average_precision"]),
        "hamming_loss": means_R3[:, 1],
        "log_loss": means_R3[:, 2],
        **{f"{metric}[{name}]": found[:, k] for k, name in enumerate(names) for metric, found in by_label.items()},
    }


def curves(
    actual_NK: Bools, given_NK: Bools, probabilities_NK: Floats, names: Sequence[str], bins: int
) -> dict[str, list[dict[str, Any]]]:
    """Points to plot: whole sets in the confusion matrix; reliability, and precision over recall, of all labels pooled.

    Pooled, each row has a decision for each label, which is right where the likelier side is the true one.
    """
    pairs_M2 = np.stack([1 - probabilities_NK.ravel(), probabilities_NK.ravel()], axis=1)
    pooled = _classification.curves(actual_NK.ravel().astype(np.int64), pairs_M2, ("absent", "present"), bins)
    actual, given = sets(actual_NK, names), sets(given_NK, names)
    numbers = {name: number for number, name in enumerate(sorted({*actual, *given}))}
    cells = _classification.confusion(
        np.array([numbers[name] for name in actual], dtype=np.int64),
        np.array([numbers[name] for name in given], dtype=np.int64),
        [name or NO_LABEL for name in numbers],
    )
    return {**pooled, "confusion": cells}


def commonest_set(train: pl.Series, names: Sequence[str], num_rows: int) -> pl.DataFrame:
    """The set that most train rows have, every time, with the labels' shares as probabilities."""
    counted = canonical(train).value_counts().sort(["count", train.name], descending=[True, False])
    given_1K = membership(counted[train.name].head(1), names)
    shares_1K = membership(train, names).mean(axis=0, keepdims=True)
    share = counted["count"][0] / len(train)
    return answers(np.tile(given_1K, (num_rows, 1)), np.tile(shares_1K, (num_rows, 1)), names, np.full(num_rows, share))


def one_vs_rest(features: Any, actual_NK: Bools, test_features: Any, names: Sequence[str]) -> pl.DataFrame:
    """scikit-learn's logistic regression, as it comes, of each label against the rest, given by thresholds as well."""
    is_held_out_N = np.arange(len(actual_NK)) % _HELD_OUT == 0
    probabilities_NK = np.empty((test_features.shape[0], len(names)))
    thresholds_K = np.empty(len(names))
    for k, actual_N in enumerate(actual_NK.T):
        held_out_N = _regressed(features[~is_held_out_N], actual_N[~is_held_out_N], features[is_held_out_N])
        thresholds_K[k] = fit_threshold(held_out_N, actual_N[is_held_out_N])
        probabilities_NK[:, k] = _regressed(features, actual_N, test_features)
    return answers(probabilities_NK >= thresholds_K, probabilities_NK, names)


def _regressed(features: Any, actual_N: Bools, asked: Any) -> Floats:
    """By L-BFGS, which draws no random numbers; where all rows say the same, there is nothing to learn."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(actual_N)) < 2:
        return np.full(asked.shape[0], float(actual_N.any()))
    model = LogisticRegression(max_iter=1000).fit(features, actual_N)
    return np.asarray(model.predict_proba(asked)[:, 1])


def _column_sums(weights_RN: Floats, values_NK: NDArray[Any]) -> Floats:
    """Under each weighting the weighted sum of each column, R by K. Sparse, and unlike BLAS always in one order."""
    from scipy.sparse import csr_array

    return np.asarray(weights_RN @ csr_array(values_NK.astype(np.float64)))


def _f1(hits: Floats, actual: Floats, given: Floats) -> Floats:
    return ratio(2 * hits, actual + given)


def _precision(hits: Floats, actual: Floats, given: Floats) -> Floats:
    return ratio(hits, np.where((given == 0) & (actual > 0), 1.0, given))


def _log_losses(actual_NK: Bools, probabilities_NK: Floats) -> Floats:
    true_NK = np.where(actual_NK, probabilities_NK, 1 - probabilities_NK)
    return np.asarray(-np.log(np.clip(true_NK, _SMALLEST_PROBABILITY, 1.0)))
