import datetime as dt

import polars as pl
import pytest

from tasks.errors import DataError, ParamsError
from tasks.params import SplitByHash, SplitByTime
from tasks.splits import draw

BY_ID = SplitByHash(by="id", column=None, validation=0.1, test=0.25, seed=1)
BY_TIME = SplitByTime(by="time", column="when", validation_from="2026-01-10", test_from="2026-01-20T12:00:00")


def ids(number):
    return pl.DataFrame({"id": [f"row-{index}" for index in range(number)]})


def test_shares_are_those_of_the_parameters():
    counts = dict(draw(ids(20_000), BY_ID).value_counts().iter_rows())
    assert abs(counts["test"] / 20_000 - 0.25) < 0.01
    assert abs(counts["validation"] / 20_000 - 0.1) < 0.01


def test_a_rows_split_depends_on_its_id_and_the_seed_alone():
    rows = ids(2_000)
    splits = draw(rows, BY_ID)
    assert draw(rows.tail(7), BY_ID).to_list() == splits.tail(7).to_list()
    other = draw(rows, BY_ID.model_copy(update={"seed": 2}))
    assert (other != splits).sum() > 500


def test_splits_are_the_same_in_every_version_of_this_project():
    # Written down once: a change of the hash would put rows that were learned from into the test split.
    expected = [
        "train",
        "train",
        "train",
        "validation",
        "train",
        "validation",
        "train",
        "train",
        "test",
        "train",
        "train",
        "train",
    ]
    assert draw(ids(12), BY_ID).to_list() == expected


def test_a_group_never_straddles_two_splits_and_a_row_without_one_stands_for_itself():
    by_group = SplitByHash(by="group", column="user", validation=0.2, test=0.3, seed=1)
    users = [index % 50 if index % 10 else None for index in range(5_000)]
    rows = ids(5_000).with_columns(user=pl.Series(users))
    rows = rows.with_columns(draw(rows, by_group))
    per_user = rows.drop_nulls("user").group_by("user").agg(pl.col("split").n_unique())
    assert per_user["split"].max() == 1
    assert rows.filter(pl.col("user").is_null())["split"].n_unique() == 3


@pytest.mark.parametrize(
    "times",
    [
        ["2026-01-09T23:59:59", "2026-01-10", "2026-01-20T11:59:59Z", "2026-01-20T13:00:00+01:00", "soon", None],
        [dt.datetime(2026, 1, 9, 23), dt.datetime(2026, 1, 10), dt.datetime(2026, 1, 20), dt.datetime(2026, 1, 20, 12)],
        [dt.date(2026, 1, 9), dt.date(2026, 1, 10), dt.date(2026, 1, 20), dt.date(2026, 1, 21)],
    ],
)
def test_times_fall_where_the_fixed_moments_say(times):
    splits = draw(ids(len(times)).with_columns(when=pl.Series(times)), BY_TIME).to_list()
    assert splits == ["train", "validation", "validation", "test", None, None][: len(times)]


def test_times_with_a_zone_are_compared_as_moments():
    zoned = pl.Series([dt.datetime(2026, 1, 20, 12)]).dt.replace_time_zone("Europe/Berlin")
    assert draw(ids(1).with_columns(when=zoned), BY_TIME).to_list() == ["validation"]


def test_a_missing_column_is_named_with_those_that_are_there():
    with pytest.raises(DataError, match=r"clean\.split\.column is 'when', but the valid rows have id\."):
        draw(ids(1), BY_TIME)


def test_a_column_that_is_no_time_is_refused():
    with pytest.raises(DataError, match=r"'when', whose type is Int64\. A split by time needs dates"):
        draw(ids(1).with_columns(when=pl.Series([1])), BY_TIME)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_from": "tomorrow"}, r"clean\.split\.test_from is 'tomorrow'; a date such as"),
        ({"validation_from": "2026-02-01"}, r"'2026-02-01', which is after test_from"),
    ],
)
def test_moments_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ParamsError, match=message):
        draw(ids(1).with_columns(when=pl.Series(["2026-01-01"])), BY_TIME.model_copy(update=changes))
