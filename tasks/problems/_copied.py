"""How much of a text stands word for word in what a model learned from (Carlini et al. 2021 call it memorisation).

P are the places of words, of the texts that were learned from and then of those that were written.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

# Without case and punctuation; of writing without spaces each character.
_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}"
_WORD = rf"[{_SPACELESS}]|[\w--[{_SPACELESS}]]+"


def longest_copied(written: pl.Series, train: pl.Series) -> NDArray[np.int64]:
    """For each written text the words of its longest run that stands in one text of `train`: exact, no hashes."""
    if not (written.str.len_chars() > 0).any():
        return np.zeros(len(written), np.int64)
    words = pl.concat([train, written]).fill_null("").str.to_lowercase().str.extract_all(_WORD)
    num_words = words.list.len().to_numpy().astype(np.int64)
    text_P = np.repeat(np.arange(len(words)), num_words)
    left_P = np.repeat(np.cumsum(num_words), num_words) - np.arange(len(text_P))
    word_P = words.explode(empty_as_null=False).rank("dense").to_numpy().astype(np.int64)
    is_written_P = text_P >= len(train)
    longest = np.zeros(len(words), np.int64)
    # Where runs of this size begin that both sides have, each with its number; a longer run begins at one of them.
    place, run, size = np.arange(len(text_P)), np.zeros(len(text_P), np.int64), 0
    while is_written_P[place].any():
        longest[text_P[place]] = size
        goes_on = left_P[place] > size
        place, run = place[goes_on], run[goes_on]
        _, run = np.unique(run * (len(text_P) + 1) + word_P[place + size], return_inverse=True)
        of_written, of_train = (np.bincount(run[side], minlength=len(run)) for side in _sides(is_written_P[place]))
        is_shared = (of_written[run] > 0) & (of_train[run] > 0)
        place, run, size = place[is_shared], run[is_shared], size + 1
    return longest[len(train) :]


def _sides(is_written_P: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return is_written_P, ~is_written_P
