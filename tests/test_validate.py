"""Rows are sorted into valid and quarantine, with every reason; the line stops where it must, and says why."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks import problems
from tasks.errors import DataError, LineStopped, ParamsError
from tasks.params import Validate
from tasks.shards import atomic_folder, read_json, read_rows, read_shards, write_manifest, write_parquet
from tasks.validate import validate

REPOSITORY = Path(__file__).parent.parent

ON_ROWS: list[dict[str, dict[str, Any]]] = [
    {"expect_column_values_to_not_be_null": {"column": "text"}},
    {"expect_column_values_to_not_be_null": {"column": "label"}},
    {"expect_column_value_lengths_to_be_between": {"column": "text", "min_value": 3, "max_value": 20000}},
    {"expect_column_values_to_be_in_set": {"column": "label", "value_set": ["negative", "positive"]}},
    {"expect_column_values_to_not_match_regex": {"column": "text", "regex": "\\x00"}},
]

ON_TABLE: list[dict[str, dict[str, Any]]] = [
    {"expect_table_row_count_to_be_between": {"min_value": 3}},
    {"expect_column_values_to_be_unique": {"column": "id"}},
    {"expect_column_unique_value_count_to_be_between": {"column": "label", "min_value": 2, "max_value": 2}},
]

FEW = pl.DataFrame(
    {
        "id": [f"r{number:02}" for number in range(20)],
        "text": [f"a film of number {number}" for number in range(20)],
        "label": ["negative", "positive"] * 10,
    }
)


@dataclass(frozen=True)
class Run:
    """The places of one run of the stage."""

    root: Path

    def __call__(self, rows: pl.DataFrame, /, num_shards: int = 1, **params: Any) -> "Run":
        with atomic_folder(self.root / "collect") as folder:
            size = -(-len(rows) // num_shards) if len(rows) else 1
            starts = range(0, max(len(rows), 1), size)
            shards = [
                write_parquet(folder / f"p{n:05}-00000.parquet", rows.slice(at, size)) for n, at in enumerate(starts)
            ]
            write_manifest(folder, shards, rows.schema)
        return self.again(**params)

    def again(self, **params: Any) -> "Run":
        limits = {"rows": ON_ROWS, "table": ON_TABLE, "max_quarantined": 1.0, "max_quarantined_per_label": 1.0}
        validate(
            self.root / "collect",
            self.root / "admitted.jsonl",
            self.root / "valid",
            self.root / "quarantine",
            self.root / "validate.json",
            self.root / "reports" / "films" / "data_docs",
            params=Validate.model_validate({**limits, **params}),
            problem=problems.load("text_classification"),
        )
        return self

    @property
    def valid(self) -> pl.DataFrame:
        return read_rows(self.root / "valid")

    @property
    def quarantine(self) -> pl.DataFrame:
        return read_rows(self.root / "quarantine")

    @property
    def report(self) -> Any:
        return read_json(self.root / "validate.json")

    @property
    def page(self) -> str:
        return (self.root / "reports" / "films" / "data_docs" / "index.html").read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture(scope="module")
def films() -> pl.DataFrame:
    """All 10,568 film reviews with a label; in every 17th row something is broken, in some two things at once."""
    rows = pl.read_parquet(REPOSITORY / "data/samples/reviews.parquet").filter(
        (pl.col("domain") == "movie") & (pl.col("score") != 0)
    )
    number = pl.int_range(pl.len())
    defect = pl.when(number % 17 == 0).then((number // 17) % 7)
    return rows.select(
        "id",
        pl.when(defect == 0).then(None)
        .when(defect == 1).then(pl.lit("no"))
        .when(defect == 2).then(pl.col("text").repeat_by(400).list.join(" "))
        .when(defect == 3).then(pl.col("text") + "\x00")
        .when(defect == 6).then(pl.lit("\x00"))
        .otherwise("text").alias("text"),
        pl.when(defect.is_in([4, 6])).then(pl.lit("postive"))
        .when(defect.is_in([0, 5])).then(None)
        .when(pl.col("score") > 0).then(pl.lit("positive"))
        .otherwise(pl.lit("negative")).alias("label"),
        "score",
    )  # fmt: skip


def found_by_polars(rows: pl.DataFrame) -> dict[str, set[str]]:
    """The same rules in Polars' words: the broken ones of each row that breaks any."""
    text, label, length = pl.col("text"), pl.col("label"), pl.col("text").str.len_chars()
    broken = {
        "expect_column_values_to_not_be_null(text)": text.is_null(),
        "expect_column_values_to_not_be_null(label)": label.is_null(),
        "expect_column_value_lengths_to_be_between(text,": (length < 3) | (length > 20000),
        "expect_column_values_to_be_in_set(label,": ~label.is_in(["negative", "positive"]),
        "expect_column_values_to_not_match_regex(text,": text.str.contains("\x00", literal=True),
    }
    answers = rows.select("id", **{rule: answer.fill_null(False) for rule, answer in broken.items()})
    by_id = {row.pop("id"): {rule for rule, is_broken in row.items() if is_broken} for row in answers.to_dicts()}
    return {id: rules for id, rules in by_id.items() if rules}


def test_every_broken_row_is_in_quarantine_with_every_reason_and_no_other(run: Run, films: pl.DataFrame) -> None:
    run(films, num_shards=3)
    expected = found_by_polars(films)
    assert len(expected) > 600
    assert max(map(len, expected.values())) == 3
    assert set(run.quarantine["id"]) == set(expected)
    for id, reasons in run.quarantine.select("id", "reasons").iter_rows():
        assert len(reasons) == len(expected[id])
        assert all(any(reason.startswith(rule) for reason in reasons) for rule in expected[id])


def test_rows_in_are_valid_rows_and_quarantined_rows_unchanged_and_in_their_order(
    run: Run, films: pl.DataFrame
) -> None:
    run(films, num_shards=3)
    expected = set(found_by_polars(films))
    is_broken = pl.col("id").is_in(expected)
    assert run.valid.equals(films.filter(~is_broken))
    assert run.quarantine.drop("reasons").equals(films.filter(is_broken))
    counts = run.report["rows"]
    assert counts == {"collected": len(films), "valid": len(run.valid), "quarantined": len(run.quarantine)}
    assert counts["valid"] + counts["quarantined"] == counts["collected"]


def test_sharding_changes_neither_a_decision_nor_a_figure(tmp_path: Path, films: pl.DataFrame) -> None:
    table = [
        *ON_TABLE,
        {"expect_column_mean_to_be_between": {"column": "score", "min_value": -2, "max_value": 2}},
        {"expect_column_sum_to_be_between": {"column": "score", "min_value": 1e9}},
        {"expect_column_stdev_to_be_between": {"column": "score", "max_value": 0.5}},
        {"expect_column_values_to_be_unique": {"column": "score"}},
        {"expect_column_proportion_of_unique_values_to_be_between": {"column": "text", "min_value": 0.5}},
    ]
    runs = [Run(tmp_path / str(num_shards)) for num_shards in (1, 3, 10)]
    for run, num_shards in zip(runs, (1, 3, 10), strict=True):
        with pytest.raises(LineStopped):
            run(films, num_shards, table=table)
    assert len({(run.root / "validate.json").read_bytes() for run in runs}) == 1
    assert all(run.quarantine.equals(runs[0].quarantine) for run in runs)
    valid = films.filter(~pl.col("id").is_in(set(found_by_polars(films))))
    observed = {entry["expectation"]: entry["observed"] for entry in runs[0].report["table"]}
    assert observed["expect_column_mean_to_be_between"]["observed_value"] == pytest.approx(valid["score"].mean())
    assert observed["expect_column_stdev_to_be_between"]["observed_value"] == pytest.approx(valid["score"].std())
    assert observed["expect_column_values_to_be_unique"]["unexpected_count"] == valid["score"].is_duplicated().sum()


def test_shards_keep_the_names_that_collect_gave_them(run: Run) -> None:
    run(FEW, num_shards=4)
    for folder in ("valid", "quarantine"):
        names = [shard.path.name for shard in read_shards(run.root / folder)]
        assert names == [f"p{number:05}-00000.parquet" for number in range(4)]


def test_the_same_input_gives_the_same_bytes(run: Run, films: pl.DataFrame) -> None:
    def outputs() -> Mapping[str, bytes]:
        folders = [run.root / "valid", run.root / "quarantine", run.root / "validate.json"]
        files = [file for folder in folders for file in (sorted(folder.iterdir()) if folder.is_dir() else [folder])]
        return {str(file): file.read_bytes() for file in files}

    run(films.head(2000), num_shards=2)
    first = outputs()
    run.again()
    assert outputs() == first
    assert len(first) == 7


def test_a_null_breaks_only_the_rules_that_ask_for_a_value(run: Run) -> None:
    rows = FEW.with_columns(label=pl.when(pl.col("id") == "r03").then(None).otherwise("label"))
    run(rows, rows=[{"expect_column_values_to_be_in_set": {"column": "label", "value_set": ["negative", "positive"]}}])
    # The problem's own rule is one that does.
    assert run.quarantine["reasons"].to_list() == [["expect_column_values_to_not_be_null(label): null"]]
    run(rows, rows=[{"expect_column_values_to_not_be_null": {"column": "label"}}])
    assert run.quarantine["id"].to_list() == ["r03"]
    assert run.quarantine["reasons"].to_list() == [["expect_column_values_to_not_be_null(label): null"]]


def broken(rows: pl.DataFrame, *ids: str) -> pl.DataFrame:
    return rows.with_columns(text=pl.when(pl.col("id").is_in(ids)).then(pl.lit("")).otherwise("text"))


def test_too_much_quarantine_stops_the_line_and_says_what_filled_it(run: Run) -> None:
    with pytest.raises(LineStopped) as error:
        run(broken(FEW, "r02", "r03"), max_quarantined=0.05)
    assert "2 of 20 (10.00%) of all rows are in quarantine; validate.max_quarantined allows 5.00%" in str(error.value)
    assert "expect_column_value_lengths_to_be_between(text, min_value=3, max_value=20000) (2 rows)" in str(error.value)
    run.again(max_quarantined=0.1)


def test_a_label_that_loses_too_many_rows_stops_the_line_though_the_whole_does_not(run: Run) -> None:
    with pytest.raises(LineStopped) as error:
        run(broken(FEW, "r02", "r04"), max_quarantined=0.1, max_quarantined_per_label=0.15)
    assert '2 of 10 (20.00%) of the rows labelled "negative"' in str(error.value)
    assert "positive" not in str(error.value).split("Most often")[0]
    assert "of all rows" not in str(error.value)
    assert run.report["quarantined"]["by_label"]["negative"] == {"rows": 10, "quarantined": 2, "share": 0.2}


def test_a_misspelt_label_is_no_label_of_which_all_rows_are_lost(run: Run) -> None:
    rows = FEW.with_columns(
        label=pl.when(pl.col("id") == "r02")
        .then(pl.lit("negatve"))
        .when(pl.col("id") == "r04")
        .then(None)
        .otherwise("label")
    )
    run(rows, max_quarantined=0.1, max_quarantined_per_label=0.0)
    assert sorted(run.report["quarantined"]["by_label"]) == ["negative", "positive"]
    assert run.report["quarantined"]["without_label"] == {"rows": 2, "quarantined": 2, "share": 1.0}


def test_rules_on_the_table_see_the_valid_rows_and_all_that_fail_are_told(run: Run) -> None:
    rows = pl.concat([broken(FEW, "r00"), FEW.filter(pl.col("id").is_in(["r05", "r00"]))])
    table = [*ON_TABLE, {"expect_table_row_count_to_equal": {"value": 22}}]
    with pytest.raises(LineStopped) as error:
        run(rows, num_shards=3, table=table)
    told = str(error.value)
    assert "validate.table[1]: expect_column_values_to_be_unique(id) does not hold for the valid rows" in told
    assert 'unexpected_count 2, missing_count 0, ids ["r05", "r05"]' in told
    assert "validate.table[3]: expect_table_row_count_to_equal(value=22)" in told
    assert "observed_value 21" in told
    assert "validate.table[0]" not in told


def test_a_stopped_line_leaves_quarantine_report_and_page_to_look_at_but_no_valid_rows(run: Run) -> None:
    with pytest.raises(LineStopped, match=r"data_docs/index\.html.*quarantine.*mill admit"):
        run(broken(FEW, "r02", "r03"), max_quarantined=0.05)
    assert run.quarantine["id"].to_list() == ["r02", "r03"]
    assert len(run.report["stopped"]) == 2
    assert "The line stopped" in run.page
    assert "validate.max_quarantined allows 5.00%" in run.page
    assert not (run.root / "valid").exists()
    assert not list(run.root.glob(".unfinished-*"))


def test_what_was_valid_before_stands_where_the_line_stops(run: Run) -> None:
    run(FEW)
    with pytest.raises(LineStopped):
        run(broken(FEW, "r02"), max_quarantined=0.0)
    assert run.valid.equals(FEW)


def test_the_page_shows_what_failed_and_loads_nothing(run: Run) -> None:
    rows = FEW.with_columns(text=pl.when(pl.col("id") == "r07").then(pl.lit("<script>\x00")).otherwise("text"))
    run(rows, num_shards=2)
    assert "values must not match this regular expression" in run.page
    assert "5% of 20 total rows" in re.sub(r"\s+", " ", run.page)
    assert "r07" in run.page
    assert "&lt;script&gt;\\u0000" in run.page
    assert "<script" not in run.page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", run.page)
    assert "url(" not in run.page
    assert "@import" not in run.page


def test_rules_that_cannot_be_are_told_before_anything_is_written(run: Run) -> None:
    rules = [
        {"expect_column_values_to_not_be_nul": {"column": "text"}},
        {"expect_column_values_to_be_null": {"column": "txt"}},
    ]
    with pytest.raises(
        ParamsError, match=r"validate\.rows\[0\].*Did you mean(.|\n)*validate\.rows\[1\].*Did you mean 'text'"
    ):
        run(FEW, rows=rules)
    assert not (run.root / "quarantine").exists()


def test_a_long_text_is_named_by_its_length_not_by_itself(run: Run) -> None:
    rows = FEW.with_columns(text=pl.when(pl.col("id") == "r01").then(pl.lit("x" * 10_000_000)).otherwise("text"))
    run(rows)
    [[reason]] = run.quarantine["reasons"].to_list()
    assert reason.endswith('xxx"… (10,000,000 characters)')
    assert len(reason) < 250
    assert len(run.page) < 50_000
    assert (run.root / "validate.json").stat().st_size < 10_000
    assert run.quarantine["text"].str.len_chars().to_list() == [10_000_000]


def test_a_damaged_shard_is_named_and_nothing_is_replaced(run: Run) -> None:
    run(FEW, num_shards=3)
    damaged = run.root / "collect" / "p00001-00000.parquet"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(DataError, match=r"p00001-00000\.parquet is not a whole Parquet file"):
        run.again()
    assert run.valid.equals(FEW)


def test_a_shard_with_other_columns_is_named(run: Run) -> None:
    run(FEW, num_shards=2)
    write_parquet(run.root / "collect" / "p00001-00000.parquet", FEW.with_columns(label=pl.lit(1)))
    with pytest.raises(DataError, match=r"p00001-00000\.parquet has other columns"):
        run.again()


def test_no_rows_are_told_by_the_rule_on_the_row_count(run: Run) -> None:
    with pytest.raises(LineStopped, match=r"expect_table_row_count_to_be_between.*observed_value 0"):
        run(FEW.clear())
    run.again(table=[])
    assert run.valid.schema == FEW.schema
    assert run.report["rows"] == {"collected": 0, "valid": 0, "quarantined": 0}


def test_one_label_is_stopped_by_the_rule_on_its_count(run: Run) -> None:
    with pytest.raises(LineStopped, match=r"expect_column_unique_value_count_to_be_between.*observed_value 1"):
        run(FEW.with_columns(label=pl.lit("positive")))


def test_without_rules_what_the_problem_expects_of_its_rows_is_asked_all_the_same(run: Run) -> None:
    run(FEW, rows=[], table=[])
    assert run.valid.equals(FEW)
    whole = pl.int_range(len(FEW)) != 3
    run(FEW.with_columns(pl.when(whole).then("text").alias("text")), rows=[], table=[])
    assert run.valid.equals(FEW.filter(whole))
    assert run.quarantine["reasons"].to_list() == [["expect_column_values_to_not_be_null(text): null"]]


def test_nothing_is_said_and_nobody_is_called(
    run: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []

    def refuse(*address: Any) -> None:
        called.append(address)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    run(broken(FEW, "r02"), num_shards=2)
    out, err = capfd.readouterr()
    assert (out, err, called) == ("", "", [])


def test_rules_may_look_at_columns_that_the_problem_does_not_know(run: Run) -> None:
    rows = FEW.with_columns(year=pl.Series([None, 2**53 + 1] + [1990] * 18, dtype=pl.Int64))
    run(rows, rows=[{"expect_column_values_to_be_between": {"column": "year", "max_value": 2**53}}])
    assert run.quarantine["reasons"].to_list() == [
        ["expect_column_values_to_be_between(year, max_value=9007199254740992): 9007199254740993"]
    ]
    assert run.valid.schema["year"] == pl.Int64
