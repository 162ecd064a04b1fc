"""Labels and copies of the journal from the command line: flows/feedback.py."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from flows.feedback import _read, add_feedback, back_up, open_root_journal
from flows.recipes import add
from tasks.database import JournalError
from tasks.errors import DataError
from tasks.journal import Prediction, open_journal
from tests.conftest import REPOSITORY


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root whose journal holds three predictions of `reviews`."""
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    journal = open_root_journal(tmp_path)
    predictions = [
        Prediction(f"{number:032d}", number, "reviews", "sha-1", None, {"text": "a"}, {"label": "positive"}, 1.0)
        for number in range(3)
    ]
    journal.record(predictions).result(10)
    journal.close()
    return tmp_path


def labels(root: Path) -> list[str | None]:
    journal = open_root_journal(root)
    found = journal.window("reviews")["label"].to_list()
    journal.close()
    return found


ROWS = pl.DataFrame({"id": [f"{0:032d}", f"{2:032d}"], "label": ["negative", "positive"]})


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("labels.csv", lambda path: ROWS.write_csv(path)),
        ("labels.jsonl", lambda path: ROWS.write_ndjson(path)),
        ("labels.parquet", lambda path: ROWS.write_parquet(path)),
    ],
)
def test_labels_come_from_files_of_every_kind(root: Path, name: str, write: Callable[[Path], None]) -> None:
    write(root / name)
    assert add_feedback(root, "reviews", root / name) == "2 labels of reviews read, 2 of them new."
    assert labels(root) == [json.dumps({"label": "negative"}), None, json.dumps({"label": "positive"})]
    assert add_feedback(root, "reviews", root / name) == "2 labels of reviews read, 0 of them new."


def test_personal_data_in_a_file_of_labels_is_not_kept(root: Path) -> None:
    ROWS.with_columns(label=pl.lit("ann@example.org")).write_parquet(root / "labels.parquet")
    add_feedback(root, "reviews", root / "labels.parquet")
    assert set(labels(root)) == {None, json.dumps({"label": "⟨EMAIL_1⟩"}, ensure_ascii=False)}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("id,lable\n0,negative\n", "no column label. Did you mean 'lable'?"),
        ("id,label\n7,\n", "the row of id 7 is incomplete"),
        ('id,label\n"7,negative\n', "cannot be read"),
    ],
)
def test_a_file_that_is_not_right_is_explained_and_nothing_is_kept(root: Path, content: str, sentence: str) -> None:
    (root / "labels.csv").write_text(content)
    with pytest.raises(DataError) as error:
        add_feedback(root, "reviews", root / "labels.csv")
    assert sentence in str(error.value)
    assert labels(root) == [None] * 3


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("labels.jsonl", '{"id": "%s", "label": "p"}\n{"id": "b", "label": ["p"]}\n', 'b: label: ["p"] is not text.'),
        ("labels.jsonl", '{"id": "%s", "label": "p"}\n\n{"id": "b", "label": 1}\n', "b: label: 1 is not text."),
        ("labels.jsonl", '{"id": "%s", "label": "p"}\n{"id": "b"}\n', "the row of id b is incomplete"),
        ("labels.jsonl", '{"id": "%s", "label": "p"}\n7\n', "line 2: expected an object"),
        ("labels.jsonl", '{"id": "%s", "label": "p"}\n{"id"\n', "cannot be read"),
        ("labels.jsonl", '{"id": "%s", "label": "p"}\n{"id": "a\\u0000b", "label": "p"}\n', "none has a NUL in it"),
    ],
)
def test_a_label_of_another_type_keeps_the_whole_file_out(root: Path, name: str, content: str, sentence: str) -> None:
    (root / name).write_text(content % f"{0:032d}")
    with pytest.raises(DataError) as error:
        add_feedback(root, "reviews", root / name)
    assert sentence in str(error.value)
    assert labels(root) == [None] * 3


def test_a_column_of_lists_is_no_label(root: Path) -> None:
    ROWS.with_columns(label=pl.concat_list("label")).write_parquet(root / "labels.parquet")
    with pytest.raises(DataError, match=r'label: \["negative"\] is not text'):
        add_feedback(root, "reviews", root / "labels.parquet")
    assert labels(root) == [None] * 3


def test_a_csv_is_read_as_the_columns_types_say(tmp_path: Path) -> None:
    kinds = {"score": pl.Float64(), "label": pl.String()}
    (tmp_path / "labels.csv").write_text("id,score,label\n1,2.5,7\n2,high,x\n")
    with pytest.raises(DataError, match="score is 'high', and has to be Float64"):
        _read(tmp_path / "labels.csv", kinds)
    (tmp_path / "labels.csv").write_text("id,score,label\n1,2.5,7\n")
    assert _read(tmp_path / "labels.csv", kinds) == [{"id": "1", "score": 2.5, "label": "7"}]


def test_a_file_of_another_kind_or_none_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"expected \.csv, \.jsonl, \.parquet"):
        add_feedback(root, "reviews", root / "labels.xlsx")
    with pytest.raises(DataError, match="is not here"):
        add_feedback(root, "reviews", root / "labels.csv")


def test_a_model_that_has_nothing_to_label_takes_no_labels(root: Path) -> None:
    shutil.copytree(REPOSITORY / "recipes", root / "recipes")
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    add("writer", "text_generation", root)
    ROWS.write_csv(root / "labels.csv")
    with pytest.raises(DataError, match="writer has nothing to label"):
        add_feedback(root, "writer", root / "labels.csv")


def test_an_id_that_was_never_given_keeps_the_whole_file_out(root: Path) -> None:
    pl.concat([ROWS, pl.DataFrame({"id": ["unknown"], "label": ["negative"]})]).write_csv(root / "labels.csv")
    with pytest.raises(JournalError, match="reviews has no prediction 'unknown'"):
        add_feedback(root, "reviews", root / "labels.csv")
    assert labels(root) == [None] * 3


def test_a_backup_is_a_journal_by_itself(root: Path) -> None:
    said = back_up(root, root / "backup.sqlite")
    assert "holds 3 predictions" in said
    journal = open_journal(f"sqlite:///{root}/backup.sqlite")
    assert journal.count("reviews") == 3
    journal.close()
