"""From a source's columns to the problem's: names, SQL, types, and what is refused."""

from typing import Any, ClassVar

import polars as pl
import pytest

from tasks import problems
from tasks.columns import mapped
from tasks.errors import ParamsError, SourceError
from tasks.params import Collect

PROBLEM = problems.load("text_classification")
ROWS = pl.DataFrame(
    {
        "key": [10, 11, 12, 13],
        "review text": ["one", "two", None, "four"],
        "domain": ["movie", "nyt", "movie", None],
        "score": [1.5, -0.5, 0.0, 2.0],
        "stars": ["5", "4", "three", "1"],
    }
)


def map_rows(rows: pl.DataFrame = ROWS, where: str | None = None, **columns: str) -> pl.DataFrame:
    columns = {"text": "review text", "label": "domain", **columns}
    params = Collect(columns=columns, where=where, rows_per_shard=10)
    return mapped(rows, params, PROBLEM, "reviews.csv", 1001)


def test_a_plain_name_wins_over_sql_so_that_names_with_spaces_work() -> None:
    assert map_rows()["text"].to_list() == ["one", "two", None, "four"]


def test_sql_computes_a_column_from_others() -> None:
    rows = map_rows(label="CASE WHEN score > 0 THEN 'up' WHEN score < 0 THEN 'down' ELSE 'flat' END", id="key")
    assert rows["label"].to_list() == ["up", "down", "flat", "up"]
    assert rows["id"].to_list() == ["10", "11", "12", "13"]


def test_a_row_for_which_where_is_unknown_is_left_out_as_in_sql() -> None:
    assert map_rows(where="domain <> 'nyt'", id="key")["id"].to_list() == ["10", "12"]
    assert map_rows(where="domain IN ('nyt', 'tweets')", id="key")["id"].to_list() == ["11"]


def test_where_may_name_a_column_that_has_no_value_in_this_file() -> None:
    empty = ROWS.with_columns(domain=pl.lit(None))
    assert len(map_rows(empty, where="domain = 'movie'")) == 0
    assert len(map_rows(empty, where="domain")) == 0


def test_a_constant_label_is_given_to_every_row() -> None:
    assert map_rows(label="'spam'")["label"].to_list() == ["spam"] * 4


def test_other_columns_keep_their_types_and_stand_behind_in_order_of_name() -> None:
    rows = map_rows(zebra="score", ant="key")
    assert rows.columns == ["id", "text", "label", "ant", "zebra"]
    assert [rows.schema["ant"], rows.schema["zebra"]] == [pl.Int64, pl.Float64]


def test_a_column_without_any_value_is_kept_as_text() -> None:
    rows = ROWS.with_columns(nothing=pl.lit(None), tags=pl.Series([[]] * 4, dtype=pl.List(pl.Null)))
    kept = map_rows(rows, nothing="nothing", tags="tags")
    assert [kept.schema["nothing"], kept.schema["tags"]] == [pl.String, pl.List(pl.String)]


def test_a_label_of_numbers_becomes_text() -> None:
    assert map_rows(label="key")["label"].to_list() == ["10", "11", "12", "13"]


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"text": "review_text"}, SourceError, r"no column 'review_text'.*Did you mean 'review text'\? It has: key"),
        ({"text": "review txt"}, SourceError, r"no column 'review'.*\(review txt\).*Did you mean 'review text'\?"),
        ({"text": "the words"}, SourceError, "no column 'the words', which collect.columns.text reads"),
        ({"text": "the-words"}, SourceError, "no column 'the-words'"),
        ({"label": "UPPER(domian)"}, SourceError, r"'domian', which collect.columns.label \(UPPER.*mean 'domain'"),
        ({"label": "score >"}, ParamsError, "collect.columns.label is 'score >', which is not SQL"),
        ({"label": "domain; DROP"}, ParamsError, "is not SQL"),
        ({"label": "score > AVG(score)"}, ParamsError, "AVG looks at more than one row"),
        ({"label": "RANK() OVER (ORDER BY score)"}, ParamsError, "OVER looks at more than one row"),
        ({"label": "stddev_samp (score)"}, ParamsError, "STDDEV looks at more than one row"),
        ({"label": "(SELECT 1)"}, ParamsError, "SELECT looks at more than one row"),
        ({"label": "CURRENT_DATE > '2026-01-01'"}, ParamsError, "CURRENT_DATE has another value at each run"),
        ({"label": "NOW()"}, ParamsError, "NOW has another value at each run"),
        ({"label": "CAST(stars AS BIGINT)"}, SourceError, r"reviews.csv, row 1003: collect.columns.label.*three"),
        ({"label": "stars > 3"}, SourceError, r"'stars' is text here: write CAST\(stars AS DOUBLE\)"),
        ({"id": "domain"}, SourceError, "reviews.csv, row 1004: the key 'domain' has no value"),
    ],
)
def test_a_mapping_that_cannot_be_says_why(columns: dict[str, str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        map_rows(**columns)


def test_words_that_only_look_like_aggregates_pass() -> None:
    rows = map_rows(label="CASE WHEN domain = 'the sum (avg) OVER (x) now()' THEN CAST(key AS VARCHAR(9)) ELSE 'b' END")
    assert rows["label"].to_list() == ["b"] * 4


def test_where_must_be_true_or_false() -> None:
    with pytest.raises(ParamsError, match=r"collect.where is 'score', which is Float64, not true or false"):
        map_rows(where="score")


def test_a_column_of_lists_is_no_text() -> None:
    rows = ROWS.with_columns(tags=pl.Series([["a"]] * 4))
    with pytest.raises(SourceError, match=r"reviews.csv: collect.columns.text is List\(String\), and must be String"):
        map_rows(rows, text="tags")


class Rating:
    """A problem with a column of whole numbers, of which only name and columns are asked here."""

    name = "rating"
    columns: ClassVar = {"stars": pl.Int64()}


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        (["4", "5"], [4, 5]),
        ([4.0, 5.0], [4, 5]),
        ([4.0, 4.5], "row 1002: collect.columns.stars is 4.5, and must be a whole number"),
        (["4", "many"], "row 1002: collect.columns.stars cannot be computed"),
        ([True, False], [1, 0]),
    ],
)
def test_the_problems_columns_are_cast_without_losing_anything(values: list[Any], outcome: Any) -> None:
    params = Collect(columns={"stars": "given"}, where=None, rows_per_shard=10)
    problem: Any = Rating()
    if isinstance(outcome, str):
        with pytest.raises(SourceError, match=outcome):
            mapped(pl.DataFrame({"given": values}), params, problem, "stars.csv", 1001)
    else:
        assert mapped(pl.DataFrame({"given": values}), params, problem, "stars.csv", 1001)["stars"].to_list() == outcome
