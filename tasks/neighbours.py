"""Near-duplicates by MinHash over shingles of words, and locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman
and Ullman, Mining of Massive Datasets, chapter 3).

What is kept of a text is small and stands on disk: two bytes for each permutation, and four for each band. In memory
are one band at a time and the pairs that turned out to be near.

Arrays are named by shape: N texts, P permutations, W words, M rows that are compared.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.params import NearDuplicates

# Scripts that do without spaces: there a character is a word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = rf"[\w--{_UNSPACED}]+|[{_UNSPACED}]"

# The chance that a pair right at the threshold is looked at, which the bands are chosen for. Above, it is higher.
_RECALL = 0.995

# Rows that share a band with thousands (boilerplate) are compared with the first of them only, or the work would grow
# with the square of their number.
_MAX_COMPARED_IN_A_BAND = 16

_PAIRS_AT_A_TIME = 16_384
_TEXTS_AT_A_TIME = 2_048
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits well spread: 2⁶⁴ divided by the golden ratio

Ranks = NDArray[np.int64]


def banding(threshold: float, num_permutations: int) -> tuple[int, int]:
    """How many bands, of how many permutations each.

    A pair of similarity s is looked at with probability 1 − (1 − sʳ)ᵇ. The bands are as wide as they can be, for few
    useless comparisons, while pairs at the threshold are looked at in 99.5 % of cases.
    """
    for width in range(num_permutations, 1, -1):
        num_bands = num_permutations // width
        if 1 - (1 - threshold**width) ** num_bands >= _RECALL:
            return num_bands, width
    return num_permutations, 1


def signatures(texts: pl.Series, params: NearDuplicates) -> NDArray[np.uint32]:
    """N × P minima. The share in which two agree estimates the Jaccard similarity of the texts' sets of shingles.

    Case and punctuation do not count. A text shorter than a shingle is one shingle, and one without words (`:-)`) is a
    shingle as it stands.
    """
    from rensa import RMinHash

    hashes, offsets = _shingles(texts, params.shingle_words)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, params.num_permutations, params.seed)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(texts), params.num_permutations)


def _shingles(texts: pl.Series, length: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The hashes of all shingles, one text after the other, and N + 1 offsets to where each text's begin."""
    words = texts.str.to_lowercase().str.extract_all(_WORD)
    wordless = words.list.len() == 0
    if wordless.any():
        words = words.zip_with(~wordless, texts.reshape((-1, 1)).arr.to_list())
    num_words_N = words.list.len().to_numpy().astype(np.int64)
    words_W = words.explode(empty_as_null=False).hash().to_numpy()
    ends_N = np.cumsum(num_words_N)
    # At each word, how many of its text follow with it; a shingle stands at every word that has `length` of them, and
    # at the first word of a text that is shorter.
    left_W = np.repeat(ends_N, num_words_N) - np.arange(len(words_W))
    size_W = np.minimum(left_W, length)
    hash_W = words_W.copy()
    for distance in range(1, length):
        has_W = np.flatnonzero(size_W > distance)
        hash_W[has_W] = (hash_W[has_W] ^ (hash_W[has_W] >> np.uint64(29))) * _MULTIPLIER + words_W[has_W + distance]
    first_W = np.zeros(len(words_W), dtype=bool)
    first_W[ends_N - num_words_N] = True
    offsets = np.concatenate([[0], np.cumsum(np.maximum(num_words_N - length + 1, 1))])
    return hash_W[(left_W >= length) | first_W], offsets.astype(np.uint64)


class Sketches:
    """What is kept of the texts to compare them, in files of a folder. Texts are numbered in the order of `add`."""

    def __init__(self, folder: Path, params: NearDuplicates) -> None:
        self._params = params
        self.num_bands, self._width = banding(params.threshold, params.num_permutations)
        self._minima = folder / "minima.u16"
        self._bands = [folder / f"band-{band:03d}.u32" for band in range(self.num_bands)]

    def add(self, texts: pl.Series) -> None:
        """Append these texts, none of them null."""
        for start in range(0, len(texts), _TEXTS_AT_A_TIME):
            some = texts.slice(start, _TEXTS_AT_A_TIME)
            minima_NP = signatures(some, self._params)
            # Sixteen bits of a minimum: two different ones agree in them once in 65,536 (b-bit minwise hashing, Li and
            # König 2010). A band's hash may collide as well, since every pair is then looked at in its minima.
            _append(self._minima, minima_NP.astype(np.uint16))
            for band, path in enumerate(self._bands):
                hash_N = np.zeros(len(some), dtype=np.uint64)
                for column in minima_NP.T[band * self._width : (band + 1) * self._width]:
                    hash_N = (hash_N ^ (hash_N >> np.uint64(29))) * _MULTIPLIER + column
                _append(path, (hash_N >> np.uint64(32)).astype(np.uint32))

    def earliest_near(self, numbers_M: Ranks, advance: Callable[[int], None]) -> Ranks:
        """For texts from the earliest to the latest, by number: which is near an earlier one that stays.

        M ranks: the earliest text that stays and is near, or −1 where the text stays itself. What is said of a text
        depends on the texts before it alone. `advance` is told of each band.
        """
        if not len(numbers_M):
            return numbers_M
        later, earlier = self._near_pairs(numbers_M, advance)
        near_M = np.full(len(numbers_M), -1, dtype=np.int64)
        for late, early in zip(later.tolist(), earlier.tolist(), strict=True):
            if near_M[late] < 0 and near_M[early] < 0:
                near_M[late] = early
        return near_M

    def _near_pairs(self, numbers_M: Ranks, advance: Callable[[int], None]) -> tuple[Ranks, Ranks]:
        """The ranks of all near pairs, sorted by the later one, then by the earlier one."""
        known = np.empty(0, dtype=np.int64)  # later × M + earlier
        for path in self._bands:
            hash_M = np.fromfile(path, dtype=np.uint32)[numbers_M]
            near = [known]
            for pairs in _pairs_of_equal(hash_M):
                new = pairs[~_are_in(known, pairs)]
                near.append(new[self._are_near(numbers_M[new // len(numbers_M)], numbers_M[new % len(numbers_M)])])
            known = np.sort(np.concatenate(near))  # a pair comes once in a band, and those known do not come again
            advance(1)
        return known // len(numbers_M), known % len(numbers_M)

    def _are_near(self, some: Ranks, others: Ranks) -> NDArray[np.bool_]:
        num_permutations = self._params.num_permutations
        numbers, places = np.unique(np.concatenate([some, others]), return_inverse=True)
        size = num_permutations * 2
        with self._minima.open("rb") as file:
            read = b"".join([os.pread(file.fileno(), size, number * size) for number in numbers.tolist()])
        minima = np.frombuffer(read, dtype=np.uint16).reshape(len(numbers), num_permutations)
        agreeing = (minima[places[: len(some)]] == minima[places[len(some) :]]).sum(axis=1)
        return np.asarray(agreeing >= math.ceil(self._params.threshold * num_permutations - 1e-9))


def _pairs_of_equal(hash_M: NDArray[np.uint32]) -> Iterator[Ranks]:
    """Pairs of ranks with the same hash, as later × M + earlier, some at a time."""
    by_hash = np.argsort(hash_M, kind="stable")  # stable: equal hashes stand from the earliest to the latest
    is_first = np.diff(hash_M[by_hash], prepend=np.nan) != 0
    first = np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
    place = np.arange(len(by_hash)) - first
    for distance in range(_MAX_COMPARED_IN_A_BAND):
        later = np.flatnonzero(place > distance)
        for start in range(0, len(later), _PAIRS_AT_A_TIME):
            some = later[start : start + _PAIRS_AT_A_TIME]
            yield by_hash[some] * len(by_hash) + by_hash[first[some] + distance]


def _are_in(ascending: Ranks, values: Ranks) -> NDArray[np.bool_]:
    """For each value, whether it is one of the others; np.isin would hash or sort them all again."""
    places = np.searchsorted(ascending, values)
    return np.asarray(ascending.take(places, mode="clip") == values) if len(ascending) else np.zeros(len(values), bool)


def _append(path: Path, values: NDArray[np.uint16] | NDArray[np.uint32]) -> None:
    with path.open("ab") as file:
        values.tofile(file)
