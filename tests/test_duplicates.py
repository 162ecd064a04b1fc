import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.duplicates import conflicts, duplicate_reasons, repeated, text_hashes


def reasons(*rows):
    """The reasons of rows given as (partition, id, text, label), in their order."""
    lines = pl.DataFrame(rows, schema=["partition", "id", "text", "label"], orient="row")
    lines = pl.concat([lines, text_hashes(lines["text"])], how="horizontal")
    found = duplicate_reasons(lines)
    return found.to_list(), conflicts(lines, found)


def test_the_earliest_of_equal_rows_stays():
    found, torn = reasons((0, "a", "x", "+"), (0, "b", "y", "+"), (0, "c", "x", "+"), (1, "a2", "x", "+"))
    assert found == [None, None, "duplicate_of:a", "duplicate_of:a"]
    assert torn == {"groups": 0, "rows": 0}


def test_rows_of_a_partition_that_contradict_each_other_all_go():
    found, torn = reasons((0, "a", "x", "+"), (0, "b", "x", "-"), (0, "c", "x", "+"), (0, "d", "y", "+"))
    assert found == ["conflicting_label"] * 3 + [None]
    assert torn == {"groups": 1, "rows": 3}


def test_a_later_contradiction_moves_no_earlier_row():
    found, torn = reasons((0, "a", "x", "+"), (1, "b", "x", "-"), (1, "c", "x", "+"), (2, "d", "x", "-"))
    assert found == [None, "conflicting_label_with:a", "duplicate_of:a", "conflicting_label_with:a"]
    assert torn == {"groups": 1, "rows": 2}


def test_nobody_knows_the_label_of_a_text_that_was_contradictory_from_the_start():
    found, _ = reasons((0, "a", "x", "+"), (0, "b", "x", "-"), (1, "c", "x", "+"))
    assert found == ["conflicting_label", "conflicting_label", "conflicting_label_with:a"]


def test_a_text_that_comes_later_for_the_first_time_may_contradict_itself_there():
    found, torn = reasons((0, "a", "x", "+"), (3, "b", "y", "-"), (3, "c", "y", "+"), (4, "d", "z", "+"))
    assert found == [None, "conflicting_label", "conflicting_label", None]
    assert torn == {"groups": 1, "rows": 2}


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 99), st.sampled_from("xyz"), st.sampled_from("+-")), min_size=1
    )
)
def test_reasons_are_those_that_reading_one_row_after_the_other_gives(drawn):
    rows = sorted({f"{key:02}": (number, f"{key:02}", text, label) for number, key, text, label in drawn}.values())
    expected = []
    for number, name, text, label in rows:
        same = [row for row in rows if row[2] == text]
        first_number, first_name, _, first_label = same[0]
        is_torn = len({row[3] for row in same if row[0] == first_number}) > 1
        if is_torn and number == first_number:
            expected.append("conflicting_label")
        elif is_torn or label != first_label:
            expected.append(f"conflicting_label_with:{first_name}")
        else:
            expected.append(None if name == first_name else f"duplicate_of:{first_name}")
    assert reasons(*rows)[0] == expected


@pytest.mark.parametrize("values", [[], [1], [3, 1, 3, 2, 1, 3], [5, 5], [1, 2, 3]])
def test_repeated_values_are_those_that_counting_finds(values):
    expected = [values.count(value) > 1 for value in values]
    assert repeated(np.array(values, dtype=np.uint64)).to_list() == expected


def test_hashes_tell_texts_apart():
    hashes = text_hashes(["a", "b", "a", ""])
    assert hashes.row(0) == hashes.row(2)
    assert hashes.n_unique() == 3
    assert text_hashes([]).schema == hashes.schema
