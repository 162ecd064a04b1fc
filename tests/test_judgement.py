"""Intervals, slices and paired comparisons, on answers that real baselines gave to real reviews."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from tasks import judgement, problems
from tasks.errors import DataError
from tasks.judgement import Answers, judge, mcnemar, score_rows, slice_columns
from tasks.params import Evaluate
from tasks.problems import Problem
from tasks.problems.text_classification import TextClassification

PARAMS = Evaluate(confidence=0.95, resamples=400, seed=1, slices=["length_quartile"], calibration_bins=15)
SIGNATURE = {"labels": ["negative", "positive"]}


@pytest.fixture(scope="module")
def problem() -> Problem:
    return problems.load("text_classification")


@pytest.fixture(scope="module")
def held_out(reviews: pl.DataFrame) -> pl.DataFrame:
    return reviews.filter(pl.col("split") == "test")


def leaning(rows: pl.DataFrame, right: float, seed: int = 0) -> pl.DataFrame:
    """Answers that are right for about that share of the rows, with probabilities from 0.55 to 0.95."""
    generator = np.random.default_rng(seed)
    is_right = generator.random(len(rows)) < right
    positive = (rows["label"] == "positive").to_numpy() == is_right
    sure = generator.uniform(0.55, 0.95, len(rows))
    likely = np.where(positive, sure, 1 - sure)
    return pl.DataFrame(
        {
            "label": np.where(positive, "positive", "negative"),
            "probability": sure,
            "probabilities": pl.Series(np.stack([1 - likely, likely], axis=1), dtype=pl.Array(pl.Float64, 2)),
        }
    )


@pytest.fixture(scope="module")
def judged(problem: Problem, held_out: pl.DataFrame) -> Callable[..., dict[str, Any]]:
    def judged(
        model: pl.DataFrame, params: Evaluate = PARAMS, by: Problem = problem, **baselines: pl.DataFrame
    ) -> dict[str, Any]:
        slices = slice_columns(held_out, params.slices, by.texts)
        return judge(held_out, slices, Answers(model, model, baselines), SIGNATURE, by, params)

    return judged


def test_a_model_that_is_clearly_better_beats_its_baseline(judged: Any, held_out: pl.DataFrame) -> None:
    result = judged(leaning(held_out, 0.9), weak=leaning(held_out, 0.6, seed=1))
    assert result["beats_baselines"] is True
    found = result["baselines"]["weak"]
    assert found["difference"]["low"] > 0
    assert found["mcnemar"]["p_value"] < 0.001
    gap = result["metrics"]["accuracy"]["value"] - found["metrics"]["accuracy"]["value"]
    assert found["difference"]["value"] == pytest.approx(gap, abs=2e-6)
    assert result["headline"].startswith("Accuracy 0.")
    assert "better than every baseline; the best of them, weak, reaches 0." in result["headline"]


def test_the_first_words_say_which_baseline_is_not_beaten(judged: Any, held_out: pl.DataFrame) -> None:
    strong = leaning(held_out, 0.9)
    result = judged(strong, strong_one=strong, weak=leaning(held_out, 0.6, seed=1))
    assert result["headline"].startswith("Does not beat its baseline strong one: accuracy 0.")
    assert result["beats_baselines"] is False
    assert [name for name, found in result["baselines"].items() if found["beaten"]] == ["weak"]
    assert result["baselines"]["strong_one"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_where_lower_is_better_the_lower_model_wins(judged: Any, held_out: pl.DataFrame) -> None:
    class ByLogLoss(TextClassification):
        headline = "log_loss"

    good, bad = leaning(held_out, 0.9), leaning(held_out, 0.55, seed=1)
    assert judged(good, by=ByLogLoss(), other=bad)["beats_baselines"] is True
    assert judged(bad, by=ByLogLoss(), other=good)["beats_baselines"] is False


def test_a_problem_whose_answers_are_not_right_or_wrong_is_compared_by_the_interval_alone(
    judged: Any, held_out: pl.DataFrame
) -> None:
    class Graded(TextClassification):
        def score(self, *arguments: Any) -> pl.DataFrame:
            return super().score(*arguments).drop("correct")

    found = judged(leaning(held_out, 0.9), by=Graded(), weak=leaning(held_out, 0.6, seed=1))["baselines"]["weak"]
    assert found["beaten"] is True
    assert "mcnemar" not in found


def test_mcnemars_test_is_silent_where_the_headline_is_not_the_share_of_right_answers(
    judged: Any, held_out: pl.DataFrame
) -> None:
    class ByLogLoss(TextClassification):
        headline = "log_loss"

    right = leaning(held_out, 0.9)
    flat = right.with_columns(
        probabilities=pl.Series(np.where(right["probabilities"].to_numpy() > 0.5, 0.51, 0.49), dtype=pl.Array(float, 2))
    )
    found = judged(right, by=ByLogLoss(), flat=flat)
    assert "mcnemar" not in found["baselines"]["flat"], "both are right on the same rows, and one is surer"
    assert found["beats_baselines"] is True


def test_the_same_seed_gives_the_same_report_and_another_seed_other_intervals(
    judged: Any, held_out: pl.DataFrame
) -> None:
    model, weak = leaning(held_out, 0.8), leaning(held_out, 0.6, seed=1)
    assert judged(model, weak=weak) == judged(model, weak=weak)
    other = judged(model, PARAMS.model_copy(update={"seed": 2}), weak=weak)
    assert other["metrics"]["accuracy"]["value"] == judged(model, weak=weak)["metrics"]["accuracy"]["value"]
    assert other["metrics"] != judged(model, weak=weak)["metrics"]


def test_how_many_resamples_are_held_at_once_changes_nothing(
    judged: Any, held_out: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = leaning(held_out, 0.8)
    at_once = judged(model)
    monkeypatch.setattr(judgement, "_WEIGHTS_AT_ONCE", 7 * len(held_out))
    assert judged(model) == at_once


def test_an_interval_is_as_wide_as_the_binomial_says(judged: Any, held_out: pl.DataFrame) -> None:
    params = PARAMS.model_copy(update={"resamples": 4000, "slices": []})
    found = judged(leaning(held_out, 0.8), params)["metrics"]["accuracy"]
    expected = 2 * 1.96 * np.sqrt(found["value"] * (1 - found["value"]) / len(held_out))
    assert found["low"] < found["value"] < found["high"]
    assert found["high"] - found["low"] == pytest.approx(expected, rel=0.06)
    narrower = judged(leaning(held_out, 0.8), params.model_copy(update={"confidence": 0.5}))["metrics"]["accuracy"]
    assert narrower["high"] - narrower["low"] < 0.5 * expected


def test_slices_are_judged_on_their_own_rows(judged: Any, held_out: pl.DataFrame) -> None:
    model = leaning(held_out, 0.8)
    quartiles = judged(model)["slices"]["length_quartile"]
    assert list(quartiles) == ["1", "2", "3", "4"]
    assert sum(part["rows"] for part in quartiles.values()) == len(held_out)
    lengths = held_out["text"].str.len_chars()
    shortest = lengths <= np.quantile(lengths.to_numpy(), 0.25)
    right = (model["label"] == held_out["label"]).filter(shortest)
    assert quartiles["1"]["metrics"]["accuracy"]["value"] == pytest.approx(right.mean(), abs=1e-6)
    assert quartiles["1"]["described"] == f"{lengths.min()} to {lengths.filter(shortest).max()} characters"


def test_a_slice_is_resampled_with_the_whole(judged: Any, held_out: pl.DataFrame) -> None:
    model = leaning(held_out, 0.8)
    found = judged(model, PARAMS.model_copy(update={"slices": ["label"]}))["slices"]["label"]["negative"]
    negative = (held_out["label"] == "negative").to_numpy()
    right = (model["label"] == held_out["label"]).to_numpy()
    weights = np.concatenate(list(judgement._weights(len(held_out), PARAMS.resamples, PARAMS.seed)))[1:]
    accuracies = weights @ (negative & right) / (weights @ negative)
    assert found["metrics"]["accuracy"]["low"] == pytest.approx(np.quantile(accuracies, 0.025), abs=1e-6)
    assert found["metrics"]["accuracy"]["high"] == pytest.approx(np.quantile(accuracies, 0.975), abs=1e-6)


def test_a_metric_that_a_slice_leaves_undefined_is_null_and_the_others_stand(
    judged: Any, held_out: pl.DataFrame
) -> None:
    by_label = judged(leaning(held_out, 0.8), PARAMS.model_copy(update={"slices": ["label"]}))["slices"]["label"]
    assert by_label["positive"]["metrics"]["roc_auc"] == {"value": None, "low": None, "high": None}
    assert by_label["positive"]["metrics"]["accuracy"]["value"] > 0.5


def test_calibration_is_reported_for_what_it_changes(problem: Problem, held_out: pl.DataFrame) -> None:
    logits = np.random.default_rng(0).normal(size=(len(held_out), 2))
    sharp, soft = (problem.answer(held_out, {"logits": logits}, SIGNATURE, {"temperature": t}) for t in (1.0, 3.0))
    params = PARAMS.model_copy(update={"slices": []})
    result = judge(held_out, pl.DataFrame(), Answers(soft, sharp, {}), SIGNATURE, problem, params)
    assert set(result["uncalibrated"]) == {"expected_calibration_error", "log_loss"}
    error = problem.measure(held_out, sharp, SIGNATURE, np.ones((1, len(held_out))), 15)["expected_calibration_error"]
    assert result["uncalibrated"]["expected_calibration_error"]["value"] == pytest.approx(error[0], abs=1e-6)


def test_mcnemar_is_the_exact_binomial_of_the_rows_on_which_they_differ() -> None:
    model_right = np.array([True] * 10 + [False] * 2 + [True] * 50 + [False] * 5)
    baseline_right = np.array([False] * 10 + [True] * 2 + [True] * 50 + [False] * 5)
    # Two-sided: 2 (C(12,0) + C(12,1) + C(12,2)) / 2^12 = 158 / 4096.
    assert mcnemar(model_right, baseline_right) == {
        "only_baseline_right": 2,
        "only_model_right": 10,
        "p_value": pytest.approx(158 / 4096, rel=0.005),
    }
    assert mcnemar(model_right, model_right)["p_value"] == 1


def test_a_column_with_many_values_keeps_the_commonest_and_puts_the_others_together() -> None:
    author = [f"a{number:02d}" for number in range(40) for _ in range(40 - number)] + [None]
    rows = pl.DataFrame({"id": [str(number) for number in range(len(author))], "author": author})
    column = slice_columns(rows, ["author"], [])["author"]
    assert column.n_unique() == 31
    assert (column == "(all others)").sum() == sum(40 - number for number in range(30, 40)) + 1
    assert column[0] == "a00"


def held_out_without_a_value_are_a_slice_of_their_own() -> None:
    rows = pl.DataFrame({"id": ["1", "2", "3"], "stars": [1, None, 5]})
    assert slice_columns(rows, ["stars"], [])["stars"].to_list() == ["1", "(none)", "5"]


def test_a_slice_that_is_no_column_is_named_with_the_nearest_that_is(held_out: pl.DataFrame) -> None:
    with pytest.raises(DataError, match=r"'lenght_quartile'.* Did you mean 'length_quartile'\? Known: id, label, "):
        slice_columns(held_out, ["lenght_quartile"], ["text"])
    with pytest.raises(DataError, match=r"Known: id, label, split, text\."):
        slice_columns(held_out, ["length_quartile"], [])


def test_row_scores_stand_beside_the_answers_and_the_baselines(problem: Problem, held_out: pl.DataFrame) -> None:
    model, weak = leaning(held_out, 0.9), leaning(held_out, 0.6, seed=1)
    slices = slice_columns(held_out, ["length_quartile"], problem.texts)
    scored = score_rows(held_out, slices, Answers(model, model, {"weak": weak}), SIGNATURE, problem)
    assert scored.columns == [
        "id",
        "correct",
        "log_loss",
        "answer_label",
        "answer_probability",
        "weak.correct",
        "weak.log_loss",
        "slice.length_quartile",
    ]
    assert scored["id"].equals(held_out["id"])
    assert scored["correct"].equals(model["label"] == held_out["label"], check_names=False)
    assert scored["weak.correct"].equals(weak["label"] == held_out["label"], check_names=False)
