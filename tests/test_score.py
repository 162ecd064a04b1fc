"""`mill score`: every row comes out, answered or with a reason, and a kill changes nothing in the result."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from flows import score as module
from flows.score import score
from flows.store import put_in_use
from tasks.errors import DataError, MillError, SourceError
from tasks.shards import sha256_of
from tests.conftest import Line


@pytest.fixture
def here(released: Line, copied: Callable[[Line], Line], monkeypatch: pytest.MonkeyPatch) -> Line:
    """An accepted release in the current folder, and parts small enough that there are some."""
    line = copied(released)
    monkeypatch.chdir(line.paths.root)
    monkeypatch.setattr(module, "ROWS_PER_PART", 64)
    return line


@pytest.fixture
def rows(reviews: pl.DataFrame) -> pl.DataFrame:
    text = pl.when(pl.col("number") == 3).then(None).when(pl.col("number") == 70).then(pl.lit(" ")).otherwise("text")
    return reviews.head(200).with_row_index("number").select("number", "id", text.alias("text"))


def test_every_row_comes_out_in_its_order_answered_or_with_a_reason(here: Line, rows: pl.DataFrame) -> None:
    rows.write_parquet("in.parquet")
    score("tiny", Path("in.parquet"), Path("out.parquet"), force=False)
    scored = pl.read_parquet("out.parquet")
    assert scored.select(rows.columns).equals(rows)
    without = scored.filter(pl.col("reason").is_not_null())
    assert without.select("number", "reason").rows() == [(3, "text is missing"), (70, "text is empty")]
    assert without.select(pl.col("label", "probability", "probabilities").is_null().all()).row(0) == (True, True, True)
    answered = scored.filter(pl.col("reason").is_null())
    assert answered.select(pl.col("label", "probability").is_not_null().all()).row(0) == (True, True)
    assert len(set(answered["probability"])) > 50
    assert set(scored["version"]) == {put_in_use("tiny").version}


def test_a_text_that_is_empty_once_it_is_tidied_gets_a_reason_and_no_answer(here: Line) -> None:
    pl.DataFrame({"text": ["fine", "<p></p>", "\x01", "&nbsp;<br/>", "<p>fine</p>"]}).write_parquet("in.parquet")
    score("tiny", Path("in.parquet"), Path("out.parquet"), force=False)
    scored = pl.read_parquet("out.parquet")
    assert scored["reason"].to_list() == [None, "text is empty", "text is empty", "text is empty", None]
    assert scored["label"].is_null().to_list() == [False, True, True, True, False]


def test_a_text_in_a_script_that_the_tokenizer_never_saw_gets_a_reason_and_no_answer(here: Line) -> None:
    amharic = "ይህ ፊልም በጣም ጥሩ ነበር፤ 2 ጊዜ አየሁት።"
    texts = [amharic, f"{amharic} a very good film", "10/10!", "très émouvant, à voir", "… 🙂"]
    pl.DataFrame({"text": texts}).write_parquet("in.parquet")
    score("tiny", Path("in.parquet"), Path("out.parquet"), force=False)
    scored = pl.read_parquet("out.parquet")
    said = "text is in no script that the model has learned: its vocabulary has none of the words"
    assert scored["reason"].to_list() == [said, None, None, None, None]
    assert scored["label"].is_null().to_list() == [True, False, False, False, False]


def test_a_text_is_tidied_once(here: Line) -> None:
    once, twice = "a &amp;lt;br&amp;gt; b", "a b"
    pl.DataFrame({"text": [once, twice]}).write_parquet("in.parquet")
    score("tiny", Path("in.parquet"), Path("out.parquet"), force=False)
    assert pl.read_parquet("out.parquet")["probability"].n_unique() == 2


def test_parquet_csv_and_json_lines_get_the_same_answers(here: Line, rows: pl.DataFrame) -> None:
    rows.write_parquet("in.parquet")
    rows.write_csv("in.csv")
    rows.write_ndjson("in.jsonl")
    answers = []
    for kind in ("parquet", "csv", "jsonl"):
        score("tiny", Path(f"in.{kind}"), Path(f"{kind}.parquet"), force=False)
        answers.append(pl.read_parquet(f"{kind}.parquet").drop("number", "id", "text"))
    assert answers[0].equals(answers[1])
    assert answers[0].equals(answers[2])


def test_a_folder_is_scored_file_by_file_into_one_file(here: Line, rows: pl.DataFrame) -> None:
    Path("in").mkdir()
    rows.head(90).write_parquet("in/a.parquet")
    rows.slice(90).with_columns(pl.col("number").cast(pl.String), more=pl.lit("x")).write_csv("in/b.csv")
    score("tiny", Path("in"), Path("out.parquet"), force=False)
    scored = pl.read_parquet("out.parquet")
    assert scored["id"].to_list() == rows["id"].to_list()
    assert scored["more"].null_count() == 90
    assert scored["number"].to_list() == [str(number) for number in range(200)]
    assert not Path("out.parquet.partial").exists()


def test_a_column_of_the_input_that_has_the_name_of_an_answer_is_kept_under_another(
    here: Line, reviews: pl.DataFrame
) -> None:
    reviews.head(5).select("text", "label", input_label=pl.lit("taken")).write_parquet("in.parquet")
    score("tiny", Path("in.parquet"), Path("out.parquet"), force=False)
    scored = pl.read_parquet("out.parquet")
    assert scored["input_input_label"].to_list() == reviews["label"].head(5).to_list()
    assert scored["input_label"].to_list() == ["taken"] * 5
    assert set(scored["label"]) <= {"negative", "positive"}


def test_a_run_that_is_killed_goes_on_and_ends_in_the_same_bytes(here: Line, reviews: pl.DataFrame) -> None:
    pl.concat([reviews] * 30).write_parquet("in.parquet")
    command = [sys.executable, "-m", "flows.cli", "score", "tiny", "in.parquet"]
    assert subprocess.run([*command, "whole.parquet"], env=environment(), capture_output=True).returncode == 0

    killed = subprocess.Popen([*command, "out.parquet"], env=environment(), stderr=subprocess.DEVNULL)
    partial, whole_parts = Path("out.parquet.partial"), "sha-*/[!.]*.parquet"
    deadline = time.monotonic() + 60
    while len(list(partial.glob(whole_parts))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = {path: path.stat().st_mtime_ns for path in partial.glob(whole_parts)}
    assert 2 <= len(done) < 18_000 // 2048
    assert not Path("out.parquet").exists()

    again = subprocess.run([*command, "out.parquet"], env=environment(), capture_output=True, text=True)
    assert again.returncode == 0
    assert f"Going on: {len(done) * 2048:,} of 18,000 rows are answered already." in again.stderr
    assert sha256_of(Path("out.parquet")) == sha256_of(Path("whole.parquet"))
    assert not partial.exists()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(module.__file__).parent.parent)}


def test_parts_of_other_rows_or_of_another_version_are_not_taken_over(here: Line, rows: pl.DataFrame) -> None:
    rows.write_parquet("in.parquet")
    score("tiny", Path("in.parquet"), Path("expected.parquet"), force=False)
    other = Path("out.parquet.partial/sha-00000000")
    other.mkdir(parents=True)
    for number in range(4):
        rows.head(64).write_parquet(other / f"{'0' * 32}-{number:06d}.parquet")
    score("tiny", Path("in.parquet"), Path("out.parquet"), force=False)
    assert sha256_of(Path("out.parquet")) == sha256_of(Path("expected.parquet"))


def test_the_same_rows_again_are_left_alone_and_other_rows_need_force(
    here: Line, rows: pl.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    rows.write_parquet("in.parquet")
    score("tiny", Path("in.parquet"), Path("out.parquet"), force=False)
    before = Path("out.parquet").stat().st_mtime_ns
    score("tiny", Path("in.parquet"), Path("out.parquet"), force=False)
    assert Path("out.parquet").stat().st_mtime_ns == before
    assert "has these 200 rows already" in capsys.readouterr().err

    rows.head(10).write_parquet("in.parquet")
    with pytest.raises(DataError, match=r"out\.parquet exists, from other rows or another version\. .* --force"):
        score("tiny", Path("in.parquet"), Path("out.parquet"), force=False)
    assert len(pl.read_parquet("out.parquet")) == 200
    score("tiny", Path("in.parquet"), Path("out.parquet"), force=True)
    assert len(pl.read_parquet("out.parquet")) == 10


def test_a_file_that_somebody_else_wrote_is_not_replaced(here: Line, rows: pl.DataFrame) -> None:
    rows.write_parquet("in.parquet")
    for content in (b"no parquet", rows.write_ipc(None).getvalue()):
        Path("out.parquet").write_bytes(content)
        with pytest.raises(DataError, match="exists, from other rows"):
            score("tiny", Path("in.parquet"), Path("out.parquet"), force=False)
        assert Path("out.parquet").read_bytes() == content


def test_a_missing_column_is_named_with_the_one_that_is_near(here: Line, rows: pl.DataFrame) -> None:
    rows.rename({"text": "texts"}).write_parquet("in.parquet")
    with pytest.raises(
        DataError, match=r"in\.parquet has no column 'text'.* Did you mean 'texts'\? It has: number, id"
    ):
        score("tiny", Path("in.parquet"), Path("out.parquet"), force=False)


@pytest.mark.parametrize("given", ["in/a.csv", "in"])
@pytest.mark.parametrize(("content", "said"), [("texts,id\nfine,1\n", "has no column 'text'"), ("", "is empty")])
def test_an_error_names_the_whole_path_of_a_file(here: Line, given: str, content: str, said: str) -> None:
    Path("in").mkdir()
    Path("in/a.csv").write_text(content)
    with pytest.raises(MillError, match=f"^{Path('in/a.csv').absolute()} {said}"):
        score("tiny", Path(given).absolute(), Path("out.parquet"), force=False)


def test_a_damaged_file_is_found_before_the_first_answer(here: Line, rows: pl.DataFrame) -> None:
    Path("in").mkdir()
    rows.write_parquet("in/a.parquet")
    Path("in/b.csv").write_text("text,id\nfine,1\nshort\n")
    with pytest.raises(SourceError, match=r"b\.csv, line 3"):
        score("tiny", Path("in"), Path("out.parquet"), force=False)
    assert not Path("out.parquet.partial").exists()


@pytest.mark.parametrize(
    ("given", "wanted", "said"),
    [
        ("nowhere.parquet", "out.parquet", "nowhere.parquet is not here"),
        ("in.parquet", "out.csv", "does not end in .parquet"),
        ("in.parquet", "in.parquet", "would be read as input"),
        ("folder", "folder/deeper/out.parquet", "would be read as input"),
        ("in.parquet", "reprots/out.parquet", "^reprots is not a folder, so reprots/out.parquet cannot be written"),
    ],
)
def test_places_that_cannot_be_are_explained(
    here: Line, rows: pl.DataFrame, given: str, wanted: str, said: str
) -> None:
    rows.write_parquet("in.parquet")
    Path("folder").mkdir()
    with pytest.raises(MillError, match=said):
        score("tiny", Path(given), Path(wanted), force=False)
    assert not Path(wanted).parent.joinpath("out.parquet.partial").exists()
    assert not Path("reprots").exists()


def test_a_column_of_the_wrong_kind_is_explained(here: Line) -> None:
    pl.DataFrame({"text": [["a", "b"], ["c"]]}).write_parquet("in.parquet")
    with pytest.raises(DataError, match="text_classification cannot read the columns text"):
        score("tiny", Path("in.parquet"), Path("out.parquet"), force=False)


def test_a_file_without_rows_is_explained(here: Line) -> None:
    pl.DataFrame(schema={"text": pl.String, "id": pl.Int64}).write_parquet("in.parquet")
    with pytest.raises(DataError, match=r"in\.parquet has no rows"):
        score("tiny", Path("in.parquet"), Path("out.parquet"), force=False)
