"""Rows come out of quarantine by hand, in Git, and are judged again; raw data is never edited."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.admit import admit
from tasks import problems
from tasks.errors import DataError, ParamsError
from tasks.params import Validate
from tasks.paths import Paths
from tasks.shards import read_json, read_rows, write_manifest, write_parquet, write_text
from tasks.validate import validate

REPOSITORY = Path(__file__).parent.parent

RULES = Validate.model_validate(
    {
        "rows": [
            {"expect_column_value_lengths_to_be_between": {"column": "text", "min_value": 3}},
            {"expect_column_values_to_be_in_set": {"column": "label", "value_set": ["negative", "positive"]}},
        ],
        "table": [],
        "max_quarantined": 1.0,
        "max_quarantined_per_label": 1.0,
    }
)

# A text may hold what some programs take for the end of a line, or for nothing at all.
STRANGE = "one\u2028two\r\nthree\x85 🎬 مرحبا \x00"

ROWS = pl.DataFrame(
    {
        "id": ["a", "b", "c", "d", "e"],
        "text": ["a good film", "", STRANGE, "no film", "x"],
        "label": ["positive", "negative", "postive", "negative", "neutral"],
        "seen": pl.Series([None, "2026-01-02", "2026-01-03", "2026-01-04", None]).str.to_date(),
        "score": [0.1, float("inf"), None, -1e300, 2.0],
        "poster": [b"\x89PNG", b"\x00", None, b"", b"\xff"],
    }
)


@dataclass(frozen=True)
class Repository:
    """A repository with one model: what mill admit and validate do in it."""

    paths: Paths

    def collect(self, rows: pl.DataFrame) -> None:
        shards = [
            write_parquet(self.paths.collected / f"p{number:05}-00000.parquet", part)
            for number, part in enumerate((rows.head(2), rows.slice(2)))
        ]
        write_manifest(self.paths.collected, shards, rows.schema)

    def validate(self) -> None:
        validate(
            self.paths.collected,
            self.paths.admissions,
            self.paths.valid,
            self.paths.quarantine,
            self.paths.report("validate"),
            self.paths.reports / "data_docs",
            params=RULES,
            problem=problems.load("text_classification"),
        )

    def admit(self, file: Path | None = None) -> str:
        return admit("reviews", file, self.paths.root)

    @property
    def to_mend(self) -> Path:
        return self.paths.root / "data" / "reviews" / "mend.jsonl"

    def lines(self, file: Path) -> list[Any]:
        return [json.loads(line) for line in file.read_bytes().split(b"\n") if line]

    def mend(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Edit the lines of the file as a person would."""
        lines = self.lines(self.to_mend)
        for line in lines:
            change(line)
        write_text(self.to_mend, "".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path / "params.yaml")
    made = Repository(Paths("reviews", tmp_path))
    made.collect(ROWS)
    made.validate()
    return made


def spell_it_right(line: dict[str, Any]) -> None:
    if line["id"] == "c":
        line["row"]["label"] = "positive"
        line["why"] = "the label was misspelt"


def test_quarantine_is_written_out_with_reasons_in_a_form_that_reads_back(repository: Repository) -> None:
    said = repository.admit()
    assert "3 quarantined rows are" in said
    assert str(repository.to_mend) in said
    lines = {line["id"]: line for line in repository.lines(repository.to_mend)}
    assert sorted(lines) == ["b", "c", "e"]
    assert lines["b"]["row"] == {"text": "", "label": "negative", "seen": "2026-01-02", "score": "inf"}
    assert lines["c"]["row"]["text"] == STRANGE
    assert len(lines["e"]["reasons"]) == 2
    assert {line["why"] for line in lines.values()} == {""}


def test_a_mended_row_is_valid_after_the_next_run_and_the_others_stay(repository: Repository) -> None:
    repository.admit()
    repository.mend(spell_it_right)
    said = repository.admit(repository.to_mend)
    assert "1 mended row is" in said
    assert "2 lines are left as before" in said
    assert not repository.to_mend.exists()
    repository.validate()
    expected = ROWS.filter(pl.col("id").is_in(["a", "c", "d"]))
    expected = expected.with_columns(label=pl.when(pl.col("id") == "c").then(pl.lit("positive")).otherwise("label"))
    assert read_rows(repository.paths.valid).equals(expected)
    assert read_rows(repository.paths.quarantine)["id"].to_list() == ["b", "e"]
    assert read_rows(repository.paths.collected).equals(ROWS)
    admissions = read_json(repository.paths.report("validate"))["admissions"]
    assert (admissions["lines"], admissions["admitted"]) == (1, 1)


def test_the_record_keeps_why_and_for_which_reasons(repository: Repository) -> None:
    repository.admit()
    repository.mend(spell_it_right)
    repository.admit(repository.to_mend)
    [line] = repository.lines(repository.paths.admissions)
    assert line["why"] == "the label was misspelt"
    assert line["reasons"] == [
        'expect_column_values_to_be_in_set(label, value_set=["negative", "positive"]): "postive"'
    ]


def test_a_row_that_is_mended_in_vain_can_be_mended_again_on_its_own_line(repository: Repository) -> None:
    def misspell_again(line: dict[str, Any]) -> None:
        if line["id"] == "c":
            line["row"]["label"] = "positiv"
            line["why"] = "the label was misspelt"

    repository.admit()
    repository.mend(misspell_again)
    repository.admit(repository.to_mend)
    repository.validate()
    assert read_json(repository.paths.report("validate"))["admissions"]["quarantined_again"] == 1
    again = read_rows(repository.paths.quarantine).filter(id="c").to_dicts()[0]
    assert again["reasons"][0].endswith('"positiv"')
    repository.admit()
    repository.mend(spell_it_right)
    repository.admit(repository.to_mend)
    repository.validate()
    assert [line["row"]["label"] for line in repository.lines(repository.paths.admissions)] == ["positive"]
    assert "c" in read_rows(repository.paths.valid)["id"]


def test_a_row_that_waits_for_the_next_run_is_not_written_out_twice(repository: Repository) -> None:
    repository.admit()
    repository.mend(spell_it_right)
    repository.admit(repository.to_mend)
    repository.admit()
    assert [line["id"] for line in repository.lines(repository.to_mend)] == ["b", "e"]


def test_all_mistakes_are_told_at_once_and_nothing_is_admitted(repository: Repository) -> None:
    whole = {"text": "long enough", "label": "positive", "seen": None, "score": 1}
    unchanged = {"text": STRANGE, "label": "postive", "seen": "2026-01-03", "score": None}
    lines: list[Any] = [
        {"id": "a", "row": whole, "why": "I like it"},
        {"id": "b", "row": whole, "why": "  "},
        {"id": "c", "row": unchanged, "why": "it is fine"},
        {"id": "e", "row": whole, "why": "typed in from the page"},
    ]
    file = repository.paths.root / "mended.jsonl"
    write_text(file, "\n".join(json.dumps(line) for line in lines))
    with pytest.raises(DataError) as error:
        repository.admit(file)
    told = str(error.value).split("\n")
    assert told[0].startswith(f"{file}, line 1: a: it is not in quarantine")
    assert told[1].startswith(f"{file}, line 2: b: `why` is empty")
    assert told[2].startswith(f"{file}, line 3: c: `why` says that it is mended, but `row` is as it was")
    assert told[3] == "Nothing was admitted."
    assert not repository.paths.admissions.exists()
    assert file.exists()


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("{", "this is not JSON"),
        ('["b"]', "is not an object with the keys id, reasons, row, why"),
        ('{"id": "b", "why": "x"}', "row is missing"),
        ('{"id": "b", "row": [], "why": "x"}', "row is []; it takes an object of columns"),
        ('{"id": "b", "row": {}, "wy": "x"}', "there is no key 'wy'. Did you mean 'why'?"),
        ('{"id": "b", "row": {"lable": "x"}, "why": "x"}', "there is no column 'lable'. Did you mean 'label'?"),
        ('{"id": "b", "row": {"text": "x"}, "why": "x"}', "row.label is missing; a mended row has every column"),
        ('{"id": "b", "row": {"text": 5}, "why": "x"}', "row.text: 5 is not text"),
        ('{"id": "b", "row": {"seen": "2026-02-30"}, "why": "x"}', 'row.seen: "2026-02-30" is not a date'),
        ('{"id": "b", "row": {"score": "high"}, "why": "x"}', 'row.score: "high" is not a number'),
        ('{"id": 7, "row": {}, "why": "x"}', "id: 7 is not text"),
    ],
)
def test_a_line_that_cannot_be_read_says_what_would_be_right(repository: Repository, line: str, mistake: str) -> None:
    file = repository.paths.root / "mended.jsonl"
    write_text(file, f"\n{line}\n")
    with pytest.raises(DataError) as error:
        repository.admit(file)
    assert f"{file}, line 2: " in str(error.value)
    assert mistake in str(error.value)
    write_text(repository.paths.admissions, f"\n{line}\n")
    with pytest.raises(DataError, match=r"admitted\.jsonl, line 2: "):
        repository.validate()


def test_one_row_on_two_lines_is_a_mistake(repository: Repository) -> None:
    repository.admit()
    repository.mend(spell_it_right)
    repository.admit(repository.to_mend)
    text = repository.paths.admissions.read_text(encoding="utf-8")
    write_text(repository.paths.admissions, text + text)
    with pytest.raises(DataError, match=r"line 2: 'c' stands on line 1 already\. Keep one\."):
        repository.validate()


def test_an_admission_whose_row_is_gone_is_counted_and_told(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    repository.admit()
    repository.mend(spell_it_right)
    repository.admit(repository.to_mend)
    repository.collect(ROWS.filter(pl.col("id") != "c"))
    repository.validate()
    admissions = read_json(repository.paths.report("validate"))["admissions"]
    assert (admissions["admitted"], admissions["unmatched"], admissions["unmatched_ids"]) == (0, 1, ["c"])
    assert "so they do nothing: c. Take them out" in capsys.readouterr().err


def test_corrections_are_never_written_over(repository: Repository) -> None:
    repository.admit()
    repository.mend(spell_it_right)
    before = repository.to_mend.read_bytes()
    with pytest.raises(DataError, match="is here already, perhaps with corrections"):
        repository.admit()
    assert repository.to_mend.read_bytes() == before


def test_a_file_in_which_nothing_is_mended_admits_nothing(repository: Repository) -> None:
    repository.admit()
    assert "nothing in" in repository.admit(repository.to_mend)
    assert not repository.paths.admissions.exists()


def test_an_empty_quarantine_has_nothing_to_mend(repository: Repository) -> None:
    repository.collect(ROWS.filter(pl.col("id").is_in(["a", "d"])))
    repository.validate()
    assert "no row waits in quarantine" in repository.admit()
    assert not repository.to_mend.exists()


def test_what_is_not_there_is_said_with_what_to_do(repository: Repository) -> None:
    with pytest.raises(DataError, match="without a file writes one to start from"):
        repository.admit(repository.paths.root / "nowhere.jsonl")
    with pytest.raises(ParamsError, match="Did you mean 'reviews'"):
        admit("review", None, repository.paths.root)
    shutil.rmtree(repository.paths.quarantine)
    with pytest.raises(DataError, match="quarantine"):
        repository.admit()
