"""The closed list of expectations: each one against the same question put in Polars, and every mistake in a rule."""

import datetime as dt
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.errors import DataError, ParamsError
from tasks.expectations import ROWS, TABLE, Rule, read_rules
from tasks.gx import RowJudge, judge, metrics_of
from tasks.statistics import Merged

BIG = 2**53

# Every kind of trap on the way through pandas: nulls beside whole numbers, numbers no float holds, NaN, old dates.
ROWS_OF_ALL_KINDS = pl.DataFrame(
    {
        "id": [f"r{number}" for number in range(8)],
        "text": ["good", "", "a\x00b", None, "été 🎬 مرحبا", "12", '{"a": 1}', "2026-01-31"],
        "other": ["good", "x", "a\x00b", None, None, "13", "", "2026-01-31"],
        "count": pl.Series([1, 5, BIG + 1, None, -3, 0, 7, 2], dtype=pl.Int64),
        "limit": pl.Series([0, 5, BIG, None, None, 9, 7, 3], dtype=pl.Int64),
        "exact": pl.Series([1, 5, BIG + 1, BIG, 0, 2, 3, 4], dtype=pl.UInt64),
        "score": [0.5, float("nan"), float("inf"), None, -1.0, 0.1, 2.0, -0.0],
        "flag": [True, False, None, True, True, False, None, True],
        "day": [dt.date(2026, 1, day) if day % 3 else None for day in range(1, 9)],
        "moment": [dt.datetime(1200 + 150 * n, 1, 1, 12, 0, 0, n) if n != 4 else None for n in range(8)],
        "zoned": [dt.datetime(2026, 1, 1, n, tzinfo=dt.UTC) if n != 2 else None for n in range(8)],
    },
    schema_overrides={"moment": pl.Datetime("us"), "zoned": pl.Datetime("us", "UTC")},
).with_columns(kind=pl.col("flag").cast(pl.String).cast(pl.Categorical))

C = pl.col

# An expectation, its arguments, and the rows that break it, in Polars' words. Null answers mean: says nothing.
CASES: list[tuple[str, dict[str, Any], pl.Expr]] = [
    ("expect_column_values_to_not_be_null", {"column": "text"}, C("text").is_null()),
    ("expect_column_values_to_not_be_null", {"column": "score"}, C("score").is_null() | C("score").is_nan()),
    ("expect_column_values_to_not_be_null", {"column": "count"}, C("count").is_null()),
    ("expect_column_values_to_be_null", {"column": "day"}, C("day").is_not_null()),
    (
        "expect_column_values_to_be_in_set",
        {"column": "text", "value_set": ["good", "12"]},
        ~C("text").is_in(["good", "12"]),
    ),
    ("expect_column_values_to_be_in_set", {"column": "count", "value_set": [1, BIG]}, ~C("count").is_in([1, BIG])),
    ("expect_column_values_to_be_in_set", {"column": "flag", "value_set": [True]}, ~C("flag")),
    ("expect_column_values_to_be_in_set", {"column": "kind", "value_set": ["true"]}, ~C("flag")),
    ("expect_column_values_to_be_in_set", {"column": "day", "value_set": ["2026-01-01"]}, C("day").dt.day() != 1),
    (
        "expect_column_values_to_be_in_set",
        {"column": "zoned", "value_set": ["2026-01-01T03:00:00+00:00", "2026-01-01T05:00:00+01:00"]},
        ~C("zoned").dt.hour().is_in([3, 4]),
    ),
    ("expect_column_values_to_not_be_in_set", {"column": "score", "value_set": [0.1, 0]}, C("score").is_in([0.1, 0.0])),
    ("expect_column_values_to_not_be_in_set", {"column": "exact", "value_set": [BIG]}, C("exact") == BIG),
    (
        "expect_column_values_to_be_between",
        {"column": "count", "min_value": 0, "max_value": BIG},
        ~C("count").is_between(0, BIG),
    ),
    ("expect_column_values_to_be_between", {"column": "exact", "max_value": BIG}, C("exact") > BIG),
    ("expect_column_values_to_be_between", {"column": "exact", "max_value": 5, "strict_max": True}, C("exact") >= 5),
    (
        "expect_column_values_to_be_between",
        {"column": "score", "min_value": 0, "strict_min": True},
        C("score").fill_nan(None) <= 0,
    ),
    (
        "expect_column_values_to_be_between",
        {"column": "day", "min_value": "2026-01-05"},
        C("day") < dt.date(2026, 1, 5),
    ),
    (
        "expect_column_values_to_be_between",
        {"column": "moment", "min_value": dt.datetime(1350, 1, 1, 12, 0, 0, 2), "max_value": dt.date(2000, 1, 1)},
        ~C("moment").is_between(dt.datetime(1350, 1, 1, 12, 0, 0, 2), dt.datetime(2000, 1, 1)),
    ),
    (
        "expect_column_values_to_be_between",
        {"column": "zoned", "max_value": "2026-01-01T04:00:00"},
        C("zoned").dt.hour() > 4,
    ),
    (
        "expect_column_value_lengths_to_be_between",
        {"column": "text", "min_value": 2, "max_value": 4, "strict_max": True},
        ~C("text").str.len_chars().is_between(2, 3),
    ),
    ("expect_column_value_lengths_to_equal", {"column": "text", "value": 2}, C("text").str.len_chars() != 2),
    ("expect_column_values_to_match_regex", {"column": "text", "regex": "^(g|é)"}, ~C("text").str.contains("^(g|é)")),
    (
        "expect_column_values_to_not_match_regex",
        {"column": "text", "regex": "\\x00"},
        C("text").str.contains("\x00", literal=True),
    ),
    (
        "expect_column_values_to_match_regex_list",
        {"column": "text", "regex_list": ["o", "d$"], "match_on": "all"},
        C("text") != "good",
    ),
    (
        "expect_column_values_to_match_regex_list",
        {"column": "text", "regex_list": ["o", "^1"]},
        ~C("text").str.contains("o|^1"),
    ),
    (
        "expect_column_values_to_not_match_regex_list",
        {"column": "text", "regex_list": ["o", "^1"]},
        C("text").str.contains("o|^1"),
    ),
    (
        "expect_column_values_to_match_strftime_format",
        {"column": "text", "strftime_format": "%Y-%m-%d"},
        C("text") != "2026-01-31",
    ),
    ("expect_column_values_to_be_json_parseable", {"column": "text"}, ~C("text").is_in(["12", '{"a": 1}'])),
    (
        "expect_column_pair_values_to_be_equal",
        {"column_A": "text", "column_B": "other"},
        C("text").ne_missing(C("other")),
    ),
    (
        "expect_column_pair_values_to_be_equal",
        {"column_A": "count", "column_B": "limit", "ignore_row_if": "either_value_is_missing"},
        C("count") != C("limit"),
    ),
    (
        "expect_column_pair_values_a_to_be_greater_than_b",
        {"column_A": "count", "column_B": "limit"},
        (C("count") <= C("limit")) | (C("count").is_null() ^ C("limit").is_null()),
    ),
    (
        "expect_column_pair_values_a_to_be_greater_than_b",
        {"column_A": "exact", "column_B": "count", "or_equal": True, "ignore_row_if": "either_value_is_missing"},
        C("exact").cast(pl.Int64) < C("count"),
    ),
    (
        "expect_column_pair_values_a_to_be_greater_than_b",
        {"column_A": "exact", "column_B": "score"},
        (C("exact") <= C("score")) | C("score").is_null() | C("score").is_nan(),
    ),
    (
        "expect_column_pair_values_to_be_in_set",
        {"column_A": "flag", "column_B": "count", "value_pairs_set": [[True, 1], [None, 7]]},
        ~(
            (C("flag") & (C("count") == 1)).fill_null(False)
            | (C("flag").is_null() & (C("count") == 7)).fill_null(False)
        ),
    ),
    (
        "expect_multicolumn_values_to_be_equal",
        {"column_list": ["count", "limit", "exact"], "ignore_row_if": "any_value_is_missing"},
        ((C("count") != C("limit")) | (C("count") != C("exact").cast(pl.Int64)))
        & (C("count") + C("limit")).is_not_null(),
    ),
    (
        "expect_select_column_values_to_be_unique_within_record",
        {"column_list": ["text", "other"], "ignore_row_if": "any_value_is_missing"},
        C("text") == C("other"),
    ),
]


def only_rule(name: str, arguments: dict[str, Any]) -> Rule:
    on_rows, on_table = read_rules(
        [{name: arguments}] if name in ROWS else [],
        [{name: arguments}] if name in TABLE else [],
        ROWS_OF_ALL_KINDS.schema,
    )
    return [*on_rows, *on_table][0]


@pytest.mark.parametrize(("name", "arguments", "breaks"), CASES, ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)])
def test_an_expectation_breaks_on_the_rows_that_polars_finds(
    name: str, arguments: dict[str, Any], breaks: pl.Expr
) -> None:
    [broken] = RowJudge([only_rule(name, arguments)]).judge(ROWS_OF_ALL_KINDS, Path("rows"))
    expected = ROWS_OF_ALL_KINDS.select(breaks.fill_null(False).arg_true()).to_series().to_list()
    assert broken.positions == expected
    assert expected, "a case that nothing breaks proves nothing"


@pytest.mark.parametrize(("name", "arguments", "breaks"), CASES, ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)])
def test_a_row_is_judged_alone_as_it_is_among_others(name: str, arguments: dict[str, Any], breaks: pl.Expr) -> None:
    row_judge = RowJudge([only_rule(name, arguments)])
    [together] = row_judge.judge(ROWS_OF_ALL_KINDS, Path("rows"))
    alone = [row_judge.judge(ROWS_OF_ALL_KINDS[number], Path("rows"))[0].positions for number in range(8)]
    assert [number for number, positions in enumerate(alone) if positions] == together.positions


def test_every_expectation_on_rows_has_a_case() -> None:
    assert {name for name, _, _ in CASES} == set(ROWS)


def test_a_rule_that_great_expectations_cannot_decide_is_an_error_and_no_pass() -> None:
    rule = only_rule("expect_column_pair_values_a_to_be_greater_than_b", {"column_A": "zoned", "column_B": "moment"})
    with pytest.raises(
        DataError, match=r"validate\.rows\[0\]: Great Expectations could not decide .*p00001-00002\.parquet"
    ):
        RowJudge([rule]).judge(ROWS_OF_ALL_KINDS, Path("collect/p00001-00002.parquet"))


# A rule on the table, and what Great Expectations itself says of the whole table in pandas.
ON_TABLE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("expect_table_row_count_to_be_between", {"min_value": 9}, {"observed_value": 8}),
    ("expect_table_row_count_to_equal", {"value": 7}, {"observed_value": 8}),
    ("expect_column_values_to_be_unique", {"column": "flag"}, {"unexpected_count": 6, "missing_count": 2}),
    (
        "expect_compound_columns_to_be_unique",
        {"column_list": ["flag", "kind"]},
        {"unexpected_count": 6, "missing_count": 2},
    ),
    ("expect_column_unique_value_count_to_be_between", {"column": "flag", "min_value": 3}, {"observed_value": 2}),
    (
        "expect_column_proportion_of_unique_values_to_be_between",
        {"column": "flag", "min_value": 0.5},
        {"observed_value": 2 / 6},
    ),
    (
        "expect_column_proportion_of_non_null_values_to_be_between",
        {"column": "score", "max_value": 0.5},
        {"observed_value": 0.75},
    ),
    (
        "expect_column_distinct_values_to_be_in_set",
        {"column": "text", "value_set": ["good", ""]},
        {"unexpected_count": 5, "partial_unexpected_list": ["12", "2026-01-31", "a\x00b", '{"a": 1}', "été 🎬 مرحبا"]},
    ),
    (
        "expect_column_distinct_values_to_contain_set",
        {"column": "count", "value_set": [1, 8, 5, 9]},
        {"missing_count": 2, "partial_missing_list": [8, 9]},
    ),
    (
        "expect_column_distinct_values_to_equal_set",
        {"column": "flag", "value_set": [True]},
        {"unexpected_count": 1, "partial_unexpected_list": [False], "missing_count": 0},
    ),
    (
        "expect_column_min_to_be_between",
        {"column": "day", "min_value": "2026-01-02"},
        {"observed_value": dt.date(2026, 1, 1)},
    ),
    ("expect_column_max_to_be_between", {"column": "exact", "max_value": BIG}, {"observed_value": BIG + 1}),
    ("expect_column_mean_to_be_between", {"column": "limit", "min_value": BIG}, {"observed_value": (24 + BIG) / 6}),
    ("expect_column_sum_to_be_between", {"column": "count", "max_value": 0}, {"observed_value": 12 + BIG + 1}),
    (
        "expect_column_stdev_to_be_between",
        {"column": "score", "max_value": 1},
        {"observed_value": None},
    ),  # one is infinite
]


@pytest.mark.parametrize("num_shards", [1, 3, 8])
@pytest.mark.parametrize(("name", "arguments", "seen"), ON_TABLE, ids=[case[0] for case in ON_TABLE])
def test_a_rule_on_the_table_sees_the_same_however_the_rows_are_sharded(
    name: str, arguments: dict[str, Any], seen: dict[str, Any], num_shards: int
) -> None:
    rule = only_rule(name, arguments)
    merged = Merged(rule.columns, rule.arguments, metrics_of(rule), ROWS_OF_ALL_KINDS.schema)
    for start in range(0, 8, -(-8 // num_shards)):
        merged.add(ROWS_OF_ALL_KINDS.slice(start, -(-8 // num_shards)))
    verdict = judge(rule, merged.metric, merged.examples)
    assert not verdict.success
    assert {key: verdict.result[key] for key in seen} == seen


def test_every_expectation_on_the_table_has_a_case() -> None:
    assert {name for name, _, _ in ON_TABLE} == set(TABLE)


def test_all_mistakes_are_told_at_once_with_what_would_be_right() -> None:
    rows: list[dict[str, Any]] = [
        {"expect_column_values_to_not_be_nul": {"column": "text"}},
        {"expect_column_values_to_be_unique": {"column": "id"}},
        {"expect_column_values_to_not_be_null": {"column": "txt"}},
        {"expect_column_values_to_be_between": {"column": "count", "min_value": 3, "max_value": 1, "mostly": 0.9}},
        {"expect_column_values_to_be_between": {"column": "count", "min_value": 3, "max_value": 1}},
        {"expect_column_values_to_be_between": {"column": "count", "min_valeu": 1}},
        {"expect_column_values_to_match_regex": {"column": "text", "regex": "("}},
        {"expect_column_values_to_match_regex": {"column": "score", "regex": "a"}},
        {"expect_column_values_to_be_in_set": {"column": "count", "value_set": ["1"]}},
        {"expect_column_values_to_be_in_set": {"column": "day", "value_set": ["2026-02-30"]}},
        {"expect_column_values_to_be_between": {"column": "count", "max_value": BIG + 1}},
        {"expect_column_values_to_match_strftime_format": {"column": "text", "strftime_format": "%Q"}},
        {"expect_column_pair_values_to_be_equal": {"column_A": "text", "column_B": "count"}},
        {"expect_column_values_to_be_dateutil_parseable": {"column": "text"}},
        {"expect_column_values_to_not_be_null": {"column": "text"}},
        {"expect_column_values_to_not_be_null": {"column": "text"}},
    ]
    table = [{"expect_column_values_to_not_be_null": {"column": "text"}}, {"expect_table_row_count_to_equal": {}}]
    with pytest.raises(ParamsError) as error:
        read_rules(rows, table, ROWS_OF_ALL_KINDS.schema)
    told = str(error.value).split("\n")
    wanted = [
        ("validate.rows[0]", "Did you mean 'expect_column_values_to_not_be_null'?"),
        ("validate.rows[1]", "Move it to validate.table."),
        ("validate.rows[2]", "no column 'txt'. Did you mean 'text'?"),
        ("validate.rows[3]", "`mostly` has no meaning for one row"),
        ("validate.rows[4]", "min_value 3 is above max_value 1"),
        ("validate.rows[5]", "no argument 'min_valeu'. Did you mean 'min_value'?"),
        ("validate.rows[5]", "it needs min_value or max_value"),
        ("validate.rows[6]", "is not a regular expression"),
        ("validate.rows[7]", "holds Float64; this expectation reads texts"),
        ("validate.rows[8]", '"1" is not a whole number'),
        ("validate.rows[9]", '"2026-02-30" is not a date'),
        ("validate.rows[10]", "bounds go up to 2^53"),
        ("validate.rows[11]", "is not a format of strptime"),
        ("validate.rows[12]", "hold numbers, texts"),
        ("validate.rows[13]", "depends on the day it runs"),
        ("validate.rows[15]", "says the same as validate.rows[14]"),
        ("validate.table[0]", "Move it to validate.rows."),
        ("validate.table[1]", "value is missing"),
    ]
    for where, what in wanted:
        assert any(line.startswith((f"{where}:", f"{where} ")) for line in told if what in line), (
            where,
            what,
        )
    assert len(told) == len(wanted)
