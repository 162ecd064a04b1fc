"""What late labels say of a version, whatever a journal holds: tasks/quality.py."""

import json
import random

import numpy as np
import polars as pl
import pytest

from tasks.journal import open_journal
from tasks.labels import Label
from tasks.monitor import open_subject
from tasks.params import load_model
from tasks.problems import Problem, question_answering, text_generation, translation
from tasks.quality import compared_shadow, measured_quality, right_where_labelled
from tasks.windows import open_windows
from tests.conftest import REPOSITORY, Line
from tests.watched import MODEL, World, make_world


@pytest.fixture
def world(released: Line, tmp_path) -> World:
    return make_world(tmp_path / "root", released)


def test_a_bad_label_of_an_old_journal_counts_as_one_that_the_model_does_not_have(world: World) -> None:
    texts = world.held_out["text"].head(20).to_list()
    truth = world.held_out["label"].head(20).to_list()
    ids = world.ask(texts)
    world.ask(texts, shadow_of=ids)
    journal = open_journal(world.journal_url)
    # As it was once kept: without a look at what it says.
    said = [Label(one, {"label": label}) for one, label in zip(ids[:15], truth, strict=False)]
    bad = [["positive"], {"is": "positive"}, 7, None]
    said += [Label(one, {"label": value}) for one, value in zip(ids[15:19], bad, strict=True)]
    random.Random(1).shuffle(said)
    journal.add_labels(said, model=MODEL, client=None)
    journal.close()

    subject = open_subject(world.releases["one"])
    problem, signature = subject.runtime.problem, subject.runtime.signature
    windows = open_windows(world.journal_url, MODEL)
    labelled = windows.labelled(subject.version, subject.inputs, subject.answer, 100)
    shadows = windows.shadows(subject.version, subject.answer, 100)
    windows.close()
    found = measured_quality(labelled, signature, problem, subject.evaluate, subject.release.manifest["metrics"])
    assert (found["labels"], found["unknown"]) == (19, 4)
    right = [json.loads(text) for text in labelled["label_json"]]
    expected = [
        row["label"] == told["label"]
        for row, told in zip(labelled.to_dicts(), right, strict=True)
        if isinstance(told["label"], str)
    ]
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(sum(expected) / 15, abs=1e-6)
    shadow = compared_shadow(shadows, signature, problem)
    assert shadow is not None
    assert (shadow["rows"], shadow["labels"]) == (20, 15)


def test_of_a_model_that_has_nothing_to_label_nothing_is_measured_whatever_a_journal_holds() -> None:
    problem = text_generation.PROBLEM
    rows = problem.examples().with_columns(continuation=pl.lit("and so on"), bits_per_byte=1.0, label_json=pl.lit("{}"))
    found = measured_quality(rows, {}, problem, load_model("reviews", REPOSITORY / "params.yaml").evaluate, {})
    assert (found["labels"], found["unknown"], found["metrics"]) == (len(rows), len(rows), None)
    right = right_where_labelled(rows.drop("label_json"), rows.select("id", "label_json"), {}, problem)
    assert np.isnan(right).all()
    shadow = compared_shadow(with_shadow(rows, problem, ["and so on"] * 3 + ["or not"] * 3), {}, problem)
    assert shadow == {"challenger": "next", "rows": 6, "agree": 0.5, "labels": 0}
    silent = compared_shadow(with_shadow(rows.head(0), problem, []), {}, problem)
    assert silent is None


def test_of_several_right_translations_a_label_knows_one_and_calls_no_answer_wrong() -> None:
    problem = translation.PROBLEM
    examples = problem.examples()
    said = [json.dumps({"translation": right}) for right in examples["translation"]]
    rows = examples.with_columns(token_probability=0.9, length_ratio=0.4, label_json=pl.Series(said))
    labels = rows.select("id", "label_json")
    assert np.isnan(right_where_labelled(rows.drop("label_json"), labels, {}, problem)).all()
    shadow = compared_shadow(with_shadow(rows, problem, examples["translation"].to_list()), {}, problem)
    assert shadow == {"challenger": "next", "rows": 6, "agree": 1.0, "labels": 6}


def with_shadow(rows: pl.DataFrame, problem: Problem, written: list[str]) -> pl.DataFrame:
    """The rows with a challenger's answers beside their own, which differ in what is written alone."""
    answers = rows.select(problem.answer_schema({}).names()).with_columns(
        pl.Series(str(problem.writes), written, dtype=pl.String)
    )
    return pl.concat([rows, answers.select(pl.all().name.prefix("shadow."))], how="horizontal").with_columns(
        challenger=pl.lit("next")
    )


def test_answers_that_are_spans_agree_and_are_right_by_their_words() -> None:
    given = ["The Rhine", "", "in 1901", "Basel"]
    challengers = ["the rhine.", "", "1902", "Bern"]
    right = [("Rhine", 4), ("", -1), ("1902", 3), None]
    said = [None if one is None else json.dumps({"answer": one[0], "answer_start": one[1]}) for one in right]
    rows = pl.DataFrame({"id": list("abcd"), "answer": given, "label_json": said})
    labels = rows.select("id", "label_json").drop_nulls()
    found = right_where_labelled(rows.drop("label_json"), labels, {}, question_answering.PROBLEM)
    np.testing.assert_array_equal(found, [1, 1, 0, np.nan])
    shadows = rows.with_columns(pl.Series("shadow.answer", challengers), challenger=pl.lit("next"))
    shadow = compared_shadow(shadows, {}, question_answering.PROBLEM)
    assert shadow is not None
    assert (shadow["rows"], shadow["agree"], shadow["labels"]) == (4, 0.5, 3)
    assert shadow["accuracy"] == pytest.approx(2 / 3, abs=1e-6)
    assert shadow["challenger_accuracy"] == 1
