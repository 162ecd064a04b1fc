"""How many bits a text takes under an interpolated byte 5-gram: what a decoder has to beat.

Interpolation is Witten and Bell's (1991; Chen and Goodman 1999, section 2.5): of a history h that was seen c(h) times
with t(h) kinds of next byte, p(b | h) = (c(hb) + t(h) · p(b | h')) / (c(h) + t(h)), where h' is h less its first byte.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ORDER = 5

# Every byte, the end of a text, and what stands before its beginning, which is never predicted.
_END, _BEFORE, _SYMBOLS = 256, 257, 258
_KINDS = 257


def bits(train: Sequence[str], test: Sequence[str]) -> NDArray[np.float64]:
    """Bits for each text of `test`, its end included, after learning from `train`; one float for each text."""
    learned = _symbols(train)
    asked = _symbols(test)
    starts = np.cumsum([0, *(len(text.encode()) + _ORDER for text in test)])[:-1]
    probability_E = np.full(len(asked), 1 / _KINDS)
    is_predicted = asked != _BEFORE
    for order in range(1, _ORDER + 1):
        grams, counts = np.unique(_codes(learned, order)[learned != _BEFORE], return_counts=True)
        # Sorted codes keep what shares a history together.
        histories, firsts, kinds = np.unique(grams // _SYMBOLS, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, firsts) if len(firsts) else counts
        codes_E = _codes(asked, order)
        count_E = _found(grams, counts, codes_E)
        total_E, kinds_E = (_found(histories, values, codes_E // _SYMBOLS) for values in (totals, kinds))
        known_E = total_E > 0
        mixed_E = (count_E + kinds_E * probability_E) / np.maximum(total_E + kinds_E, 1)
        probability_E = np.where(known_E, mixed_E, probability_E)
    needed_E = np.where(is_predicted, -np.log2(probability_E), 0.0)
    return np.add.reduceat(needed_E, starts) if len(starts) else np.zeros(0)


def _symbols(texts: Sequence[str]) -> NDArray[np.int64]:
    """The texts one after the other: four symbols for what is before, the bytes, the end."""
    before, end = np.full(_ORDER - 1, _BEFORE, np.int64), np.array([_END], np.int64)
    parts = [part for text in texts for part in (before, np.frombuffer(text.encode(), np.uint8).astype(np.int64), end)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _codes(symbols: NDArray[np.int64], order: int) -> NDArray[np.int64]:
    """A number for each place: the symbol there and the `order` - 1 before it, the latest as its last digit."""
    codes = np.zeros(len(symbols), np.int64)
    for back in range(order - 1, -1, -1):
        shifted = np.full(len(symbols), _BEFORE, np.int64)
        shifted[back:] = symbols[: len(symbols) - back]
        codes = codes * _SYMBOLS + shifted
    return codes


def _found(keys: NDArray[np.int64], values: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """The value of each wanted key, 0 where it is not among the sorted `keys`."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
