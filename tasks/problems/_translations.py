"""How near a translation is to a right one: BLEU and chrF, as sacrebleu has them (Post 2018; Popović 2015).

Both are made of counts that add up over rows. So each row is looked at once, and a weighting of the rows is a product
of matrices. Arrays are named by shape: N rows, S counts, R weightings.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

# Two lengths, and for each of four orders the words that are right and those that are there; chrF's come behind them.
_BLEU_COUNTS = 10

# Words that repeat so many of an earlier place are counted as repetition (Welleck et al. 2020).
_REPEATED_WORDS = 4

# A character of a script that is written without spaces is a word by itself.
_NO_SPACES = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff"
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+|[^\w\s]")

# Of the letters, how many have to be of a script for texts to count as written in it.
_MOSTLY, _SOME = 0.5, 0.05


def cut_into_words(texts: pl.Series) -> str:
    """Which of sacrebleu's tokenizers goes with the language that these texts are in.

    `zh` for Chinese, `char` where other scripts are written without spaces (those of its own for Japanese need a
    dictionary), else its usual one, `13a`.
    """

    def count(pattern: str) -> int:
        return int(texts.str.count_matches(pattern).sum())

    letters = max(count(r"\p{L}"), 1)
    if count(r"[\p{Hiragana}\p{Katakana}]") > _SOME * letters:
        return "char"
    if count(r"\p{Han}") > _MOSTLY * letters:
        return "zh"
    return "char" if count(r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]") > _MOSTLY * letters else "13a"


def measure(
    given: Sequence[str], right: Sequence[str], words: str, weights_RN: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """`chrf` and `bleu` of the whole, 0 to 100, under each weighting; NaN where no right translation has weight."""
    bleu, chrf = _metrics(words)
    rows = [_counts(*pair, words) for pair in zip(given, right, strict=True)]
    counts_NS = np.array(rows, dtype=np.float64).reshape(len(rows), -1)
    sums = (weights_RN @ counts_NS).tolist()
    found = [
        (chrf._compute_f_score(one[_BLEU_COUNTS:]), bleu._compute_score_from_stats(one[:_BLEU_COUNTS]).score)
        if one and one[1] > 0
        else (np.nan, np.nan)
        for one in sums
    ]
    return {name: np.array([pair[place] for pair in found]) for place, name in enumerate(("chrf", "bleu"))}


def chrf_of_rows(given: Sequence[str], right: Sequence[str], words: str) -> list[float]:
    """How near each translation is by itself, 0 to 100."""
    _, chrf = _metrics(words)
    pairs = zip(given, right, strict=True)
    return [chrf._compute_f_score(list(_counts(*pair, words)[_BLEU_COUNTS:])) for pair in pairs]


def repetition(text: str) -> float:
    """The share of a text's runs of four words that it has had before; 0 where it has no such run."""
    words = _WORD.findall(text.lower())
    runs = [tuple(words[place : place + _REPEATED_WORDS]) for place in range(len(words) - _REPEATED_WORDS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


@lru_cache(maxsize=4)
def _metrics(words: str) -> "tuple[BLEU, CHRF]":
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return BLEU(tokenize=words), CHRF()


@lru_cache(maxsize=2**16)
def _counts(given: str, right: str, words: str) -> tuple[int, ...]:
    # Kept, since one model's answers are judged for each slice and each set of resamples.
    bleu, chrf = (metric._extract_corpus_statistics([given], [[right]])[0] for metric in _metrics(words))
    return (*bleu, *chrf)
