"""Row ids: the same for the same rows, whatever the order and the shards."""

import datetime as dt
from decimal import Decimal
from random import Random

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.ids import AFTER_CONTENT, AFTER_KEY, Separator, content_hash, keys_and_numbers, numbered, renumber

# Keys that look like numbered ones are the hard case.
KEYS = st.sampled_from(["a", "b", "a#1", "a#1#0", "a#0", "#1", "", "ü😀", "b#", "b#1x"])
ROWS = st.lists(st.tuples(KEYS, st.sampled_from(["one", "two", "three"])), min_size=1, max_size=12)


def ids_of(partitions: list[list[list[tuple[str, str]]]], separator: Separator) -> list[list[str]]:
    """The ids of rows (key, content) that lie in shards of partitions, shard by shard."""
    shards = [shard for partition in partitions for shard in partition]
    numbers = [number for number, partition in enumerate(partitions) for _ in partition]
    first = [numbered(pl.Series([key for key, _ in shard], dtype=pl.String), 0, separator) for shard in shards]
    renumbering = renumber(
        numbers,
        lambda shard: first[shard].clone(),
        lambda shard, rows: [shards[shard][row][1] for row in rows],
        separator,
    )
    return [renumbering.ids.get(shard, ids).to_list() for shard, ids in enumerate(first)]


@given(st.lists(ROWS, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_ids_do_not_depend_on_the_order_and_the_shards_of_a_partition(
    partitions: list[list[tuple[str, str]]], random: Random
) -> None:
    def labelled(cut: list[list[list[tuple[str, str]]]]) -> list[set[tuple[str, tuple[str, str]]]]:
        ids = iter(ids_of(cut, AFTER_KEY))
        return [{pair for shard in partition for pair in zip(next(ids), shard, strict=True)} for partition in cut]

    shuffled = [random.sample(partition, len(partition)) for partition in partitions]
    halves = [[rows[: len(rows) // 2], rows[len(rows) // 2 :]] if len(rows) > 1 else [rows] for rows in shuffled]
    assert labelled([[partition] for partition in partitions]) == labelled(halves)


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_ids_are_unique_and_lead_back_to_their_keys(partitions: list[list[tuple[str, str]]]) -> None:
    ids = ids_of([[partition] for partition in partitions], AFTER_KEY)
    flat = [one for shard in ids for one in shard]
    assert len(set(flat)) == len(flat)
    keys, _ = keys_and_numbers(pl.Series(flat), AFTER_KEY)
    assert keys.to_list() == [key for partition in partitions for key, _ in partition]


@given(st.lists(ROWS, min_size=2, max_size=4))
def test_a_later_partition_never_changes_an_earlier_id(partitions: list[list[tuple[str, str]]]) -> None:
    all_shards = [[partition] for partition in partitions]
    for separator in (AFTER_KEY, AFTER_CONTENT):
        assert ids_of(all_shards, separator)[:-1] == ids_of(all_shards[:-1], separator)


def test_a_key_that_comes_once_is_its_own_id() -> None:
    assert numbered(pl.Series(["movie-1", "7"]), 0, AFTER_KEY).to_list() == ["movie-1", "7"]


def test_a_key_that_ends_like_a_number_is_told_from_a_repeated_one() -> None:
    assert ids_of([[[("a", "x"), ("a", "y"), ("a#1", "z")]]], AFTER_KEY) == [["a", "a#1", "a#1#0"]]


def test_a_content_hash_does_not_hang_on_the_order_of_columns_nor_on_empty_ones() -> None:
    assert content_hash({"a": 1, "b": "x"}) == content_hash({"b": "x", "c": None, "a": 1})
    assert content_hash({"a": 1, "b": "x"}) != content_hash({"a": "1", "b": "x"})
    assert content_hash({"a": "x", "b": "y"}) != content_hash({"a": "y", "b": "x"})


def test_content_hashes_stay_what_they_are() -> None:
    """Ids stand in journals and in tags: a change of this figure loses the trace of every row without a key."""
    row = {
        "text": "Zürich 😀\0",
        "stars": 4.5,
        "bytes": b"\xff",
        "when": dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC),
        "day": dt.date(2026, 11, 1),
        "price": Decimal("1.50"),
        "tags": ["a", {"b": None}],
    }
    assert content_hash(row)[:20] == "fa24723ed39263f7cba1"


def test_a_value_without_a_canonical_text_is_refused() -> None:
    with pytest.raises(TypeError, match="no canonical text"):
        content_hash({"a": object()})
