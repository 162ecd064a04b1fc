"""What a label may say: tasks/labels.py."""

import datetime as dt
from typing import Any

import polars as pl
import pytest

from tasks.labels import BadLabel, label_of, read_labels, targets_of, told

KINDS = {"label": pl.String(), "score": pl.Float64(), "tags": pl.List(pl.String()), "on": pl.Date()}
ROW = {"id": "a", "label": "positive", "score": 1, "tags": ["x"], "on": "2026-01-31"}


def test_a_label_has_what_the_problem_learns_from_and_a_request_does_not_carry() -> None:
    assert list(targets_of({"text": pl.String(), "label": pl.String()}, ["text"])) == ["label"]


def test_a_label_is_kept_as_json_says_it_and_read_as_its_columns_hold_it() -> None:
    label = label_of({**ROW, "why": "by chance"}, KINDS)
    assert label.label == {"label": "positive", "score": 1.0, "tags": ["x"], "on": "2026-01-31"}
    assert told(label.label, KINDS)["on"] == dt.date(2026, 1, 31)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label": ["p"]}, 'label: ["p"] is not text.'),
        ({"label": {"is": "p"}}, 'label: {"is": "p"} is not text.'),
        ({"label": 1}, "label: 1 is not text."),
        ({"label": None}, "label is missing."),
        ({"score": "1"}, 'score: "1" is not a number.'),
        ({"score": True}, "score: true is not a number."),
        ({"tags": ["x", 1]}, "tags: 1 is not text."),
        ({"on": "yesterday"}, 'on: "yesterday" is not a date such as 2026-01-31.'),
        ({"id": None}, "id is missing."),
        ({"id": 7}, "id has to be a string."),
        ({"id": "a\0b"}, "'a\\x00b' is no id: none has a NUL in it."),
    ],
)
def test_what_is_wrong_with_a_label_is_said(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadLabel) as error:
        label_of({**ROW, **changes}, KINDS)
    assert str(error.value) == sentence


def test_of_what_an_old_journal_holds_the_misfits_are_null_and_nothing_else_is() -> None:
    kinds = {"label": pl.String(), "score": pl.Float64()}
    texts = ['{"label": ["p"], "score": 2}', '{"label": "p"}', '"p"', '{"label": 7, "score": "high"}']
    rows = read_labels(texts, kinds)
    assert rows.schema == pl.Schema(kinds)
    assert rows["label"].to_list() == [None, "p", None, None]
    assert rows["score"].to_list() == [2.0, None, None, None]
    assert read_labels([], kinds).schema == pl.Schema(kinds)
