"""How answers that are spans of a passage are judged, as SQuAD 2 has it (Rajpurkar, Jia and Liang 2018).

Answers are compared as words, without case, punctuation and articles; no answer is the empty text.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

# Where a passage holds no answer.
NO_ANSWER = ""

HIGHER_IS_BETTER: Mapping[str, bool] = {
    "f1": True,
    "exact_match": True,
    "answerability": True,
    "f1_where_answered": True,
    "exact_match_where_answered": True,
    "no_answer_recall": True,
}

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SCORES = {"correct": pl.Boolean, "f1": pl.Float64, "answerability_right": pl.Boolean}


def exact_match(right: str, given: str) -> bool:
    """Whether both are the same words, as SQuAD counts: without case, punctuation, articles."""
    return _words(right) == _words(given)


def f1(right: str, given: str) -> float:
    """How well the bags of words agree, 0 to 1; where either has no words, whether neither has any."""
    right_words, given_words = _words(right), _words(given)
    if not right_words or not given_words:
        return float(right_words == given_words)
    shared = (Counter(right_words) & Counter(given_words)).total()
    return 2 * shared / (len(right_words) + len(given_words))


def score(rows: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
    """Per row and in order: `id`, whether the answer is the right one, its F1, whether it was right to give one."""
    scored = [
        (exact_match(right, given), f1(right, given), (right == NO_ANSWER) == (given == NO_ANSWER))
        for right, given in zip(rows["answer"], answers["answer"], strict=True)
    ]
    return pl.concat([rows.select("id"), pl.DataFrame(scored, schema=_SCORES, orient="row")], how="horizontal")


def measure(
    rows: pl.DataFrame, answers: pl.DataFrame, weights_RN: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """The metrics of `HIGHER_IS_BETTER` under R weightings of the N rows: arrays of length R."""
    scored = score(rows, answers)
    exact_N, f1_N, right_N = (scored[name].to_numpy() for name in _SCORES)
    has_answer_N = (rows["answer"] != NO_ANSWER).to_numpy()
    return {
        "f1": _mean(f1_N, weights_RN),
        "exact_match": _mean(exact_N, weights_RN),
        "answerability": _mean(right_N, weights_RN),
        "f1_where_answered": _mean(f1_N, weights_RN, has_answer_N),
        "exact_match_where_answered": _mean(exact_N, weights_RN, has_answer_N),
        "no_answer_recall": _mean(exact_N, weights_RN, ~has_answer_N),
    }


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _mean(
    values_N: NDArray[np.generic], weights_RN: NDArray[np.float64], where_N: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """The weighted mean of the rows in `where_N`, under each weighting; NaN where those have no weight."""
    if where_N is not None:
        values_N, weights_RN = values_N[where_N], weights_RN[:, where_N]
    total_R = weights_RN.sum(axis=1)
    sums_R = (weights_RN * values_N.astype(np.float64)).sum(axis=1)
    return np.asarray(np.divide(sums_R, total_R, out=np.full(len(weights_RN), np.nan), where=total_R > 0))
