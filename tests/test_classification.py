"""The figures of a classifier, held against scikit-learn and against what can be worked out by hand."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn import metrics as sklearn_metrics

from tasks.errors import DataError
from tasks.problems import _classification as classification

TWO, FOUR = ["no", "yes"], ["a", "b", "c", "d"]


def answered(num_rows: int, num_labels: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """Random truth, probabilities with many ties, and weights some of which are 0: as many as five resamples."""
    generator = np.random.default_rng(seed)
    actual_N = generator.integers(0, num_labels, num_rows)
    logits_NK = generator.normal(size=(num_rows, num_labels)) + 0.7 * np.eye(num_labels)[actual_N]
    weights_RN = generator.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=5).astype(float)
    # Eighths are exact, so that equal differences of logits are equal probabilities to the last bit.
    return actual_N, classification.softmax(np.round(8 * logits_NK) / 8), weights_RN


def measured(names: list[str], seed: int = 0) -> tuple[Any, Any, Any, dict[str, Any]]:
    actual_N, probabilities_NK, weights_RN = answered(300, len(names), seed)
    return (
        actual_N,
        probabilities_NK,
        weights_RN,
        classification.measure(actual_N, probabilities_NK, names, weights_RN, 15),
    )


@pytest.mark.parametrize("names", [TWO, FOUR], ids=["two labels", "four labels"])
def test_counted_metrics_are_those_of_scikit_learn_under_every_weighting(names: list[str]) -> None:
    actual_N, probabilities_NK, weights_RN, found = measured(names)
    predicted_N = probabilities_NK.argmax(axis=1)
    for r, weights_N in enumerate(weights_RN):
        given: dict[str, Any] = {"sample_weight": weights_N, "labels": range(len(names)), "zero_division": 0}
        for average in ("macro", "micro"):
            precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
                actual_N, predicted_N, average=average, **given
            )
            for metric, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
                assert found[f"{metric}_{average}"][r] == pytest.approx(expected, abs=1e-12)
        by_label = sklearn_metrics.precision_recall_fscore_support(actual_N, predicted_N, **given)
        for metric, expected_K in zip(("precision", "recall", "f1"), by_label, strict=False):
            for k, name in enumerate(names):
                assert found[f"{metric}[{name}]"][r] == pytest.approx(expected_K[k], abs=1e-12)
        accuracy = sklearn_metrics.accuracy_score(actual_N, predicted_N, sample_weight=weights_N)
        assert found["accuracy"][r] == pytest.approx(accuracy, abs=1e-12)


def test_ranked_metrics_of_two_labels_are_those_of_scikit_learn_with_ties() -> None:
    actual_N, probabilities_NK, weights_RN, found = measured(TWO)
    scores_N = probabilities_NK[:, 1]
    assert len(np.unique(scores_N)) < len(scores_N) / 2, "the sample has too few ties to test them"
    for r, weights_N in enumerate(weights_RN):
        area = sklearn_metrics.roc_auc_score(actual_N, scores_N, sample_weight=weights_N)
        average = sklearn_metrics.average_precision_score(actual_N, scores_N, sample_weight=weights_N)
        assert found["roc_auc"][r] == pytest.approx(area, abs=1e-12)
        assert found["average_precision"][r] == pytest.approx(average, abs=1e-12)


def test_ranked_metrics_of_more_labels_are_the_macro_average_of_one_against_the_rest() -> None:
    actual_N, probabilities_NK, weights_RN, found = measured(FOUR)
    for r, weights_N in enumerate(weights_RN):
        area = sklearn_metrics.roc_auc_score(
            actual_N, probabilities_NK, sample_weight=weights_N, multi_class="ovr", average="macro"
        )
        average = np.mean(
            [
                sklearn_metrics.average_precision_score(actual_N == k, probabilities_NK[:, k], sample_weight=weights_N)
                for k in range(4)
            ]
        )
        assert found["roc_auc"][r] == pytest.approx(area, abs=1e-12)
        assert found["average_precision"][r] == pytest.approx(average, abs=1e-12)


@pytest.mark.parametrize("names", [TWO, FOUR], ids=["two labels", "four labels"])
def test_log_loss_is_that_of_scikit_learn_and_stays_finite_where_the_truth_got_no_probability(names: list[str]) -> None:
    actual_N, probabilities_NK, weights_RN, found = measured(names)
    for r, weights_N in enumerate(weights_RN):
        expected = sklearn_metrics.log_loss(actual_N, probabilities_NK, sample_weight=weights_N)
        assert found["log_loss"][r] == pytest.approx(expected, abs=1e-12)
    certain_NK = np.eye(2)[[1, 0]]
    wrong = classification.measure(np.array([0, 1]), certain_NK, TWO, np.ones((1, 2)), 15)
    assert wrong["log_loss"][0] == pytest.approx(-np.log(np.finfo(float).eps))


def test_calibration_error_worked_out_by_hand() -> None:
    # Two bins: (0.5, 0.75] holds 0.6 right and 0.75 wrong, (0.75, 1] holds 0.9 right twice, the second counting double.
    confidences_N = np.array([0.6, 0.75, 0.9, 0.9])
    probabilities_NK = np.stack([1 - confidences_N, confidences_N], axis=1)
    found = classification.measure(
        np.array([1, 0, 1, 1]), probabilities_NK, TWO, np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 2.0]]), 4
    )
    low_bin = abs(0.5 - 0.675)
    assert found["expected_calibration_error"] == pytest.approx(
        [2 / 4 * low_bin + 2 / 4 * 0.1, 2 / 5 * low_bin + 3 / 5 * 0.1]
    )


def test_a_weighting_without_one_label_leaves_undefined_only_what_needs_that_label() -> None:
    actual_N, probabilities_NK, weights_RN = answered(60, 3)
    weights_RN[0, actual_N == 2] = 0
    found = classification.measure(actual_N, probabilities_NK, ["a", "b", "c"], weights_RN, 15)
    assert np.isnan(found["recall[c]"][0])
    assert np.isfinite(found["recall[c]"][1])
    assert found["precision[c]"][0] == 0
    assert found["recall_macro"][0] == pytest.approx((found["recall[a]"][0] + found["recall[b]"][0]) / 2)
    assert np.isfinite(found["roc_auc"]).all()
    only_one = classification.measure(np.ones(4, dtype=int), np.full((4, 2), 0.5), TWO, np.ones((1, 4)), 15)
    assert np.isnan(only_one["roc_auc"][0])
    assert only_one["average_precision"][0] == 1


@pytest.mark.parametrize("names", [TWO, FOUR], ids=["two labels", "four labels"])
def test_resampling_by_weights_is_resampling_by_copies_of_rows(names: list[str]) -> None:
    actual_N, probabilities_NK, weights_RN, found = measured(names)
    drawn = np.repeat(np.arange(300), weights_RN[2].astype(int))
    copied = classification.measure(actual_N[drawn], probabilities_NK[drawn], names, np.ones((1, 300)), 15)
    assert {name: values[2] for name, values in found.items()} == pytest.approx(
        {name: values[0] for name, values in copied.items()}, abs=1e-12
    )


def test_every_metric_has_a_direction() -> None:
    *_, found = measured(FOUR)
    assert {name.partition("[")[0] for name in found} == set(classification.HIGHER_IS_BETTER)


def test_temperature_finds_the_one_that_the_logits_were_multiplied_by() -> None:
    generator = np.random.default_rng(0)
    honest_NK = generator.normal(size=(40_000, 3)) * 2
    actual_N = (classification.softmax(honest_NK).cumsum(axis=1) < generator.random((40_000, 1))).sum(axis=1)
    assert classification.fit_temperature(3 * honest_NK, actual_N) == pytest.approx(3, rel=0.03)
    assert classification.fit_temperature(honest_NK[:0], actual_N[:0]) == 1


def test_temperature_lowers_the_calibration_error_and_changes_no_answer() -> None:
    generator = np.random.default_rng(1)
    honest_NK = generator.normal(size=(4000, 2))
    actual_N = (classification.softmax(honest_NK)[:, 1] > generator.random(4000)).astype(int)
    boastful_NK = 4 * honest_NK
    temperature = classification.fit_temperature(boastful_NK[:2000], actual_N[:2000])
    before, after = (
        classification.measure(actual_N[2000:], classification.softmax(logits), TWO, np.ones((1, 2000)), 15)
        for logits in (boastful_NK[2000:], boastful_NK[2000:] / temperature)
    )
    assert after["expected_calibration_error"][0] < before["expected_calibration_error"][0] / 3
    assert after["accuracy"][0] == before["accuracy"][0]


def test_scores_say_per_row_what_the_metrics_say_of_all() -> None:
    actual_N, probabilities_NK, _ = answered(200, 3)
    scored = classification.score(pl.Series([f"r{n}" for n in range(200)]), actual_N, probabilities_NK)
    found = classification.measure(actual_N, probabilities_NK, ["a", "b", "c"], np.ones((1, 200)), 15)
    assert scored["id"].to_list() == [f"r{n}" for n in range(200)]
    assert scored["correct"].mean() == pytest.approx(found["accuracy"][0])
    assert scored["log_loss"].mean() == pytest.approx(found["log_loss"][0])


@pytest.mark.parametrize("names", [TWO, FOUR], ids=["two labels", "four labels"])
def test_curves_add_up_to_the_metrics(names: list[str]) -> None:
    actual_N, probabilities_NK, _ = answered(500, len(names))
    found = classification.measure(actual_N, probabilities_NK, names, np.ones((1, 500)), 15)
    curves = classification.curves(actual_N, probabilities_NK, names, 15)
    diagonal = sum(cell["rows"] for cell in curves["confusion"] if cell["actual"] == cell["predicted"])
    assert diagonal / 500 == pytest.approx(found["accuracy"][0])
    assert sum(cell["rows"] for cell in curves["confusion"]) == 500
    assert {cell["actual"] for cell in curves["confusion"]} == set(names)
    gap = sum(point["rows"] * abs(point["accuracy"] - point["confidence"]) for point in curves["reliability"]) / 500
    assert gap == pytest.approx(found["expected_calibration_error"][0], abs=1e-5)
    assert curves["precision_recall"][-1]["recall"] == 1
    assert len(curves["precision_recall"]) <= 100


def test_the_curve_of_two_labels_passes_through_the_points_of_scikit_learn() -> None:
    actual_N, probabilities_NK, _ = answered(400, 2)
    precision, recall, thresholds = sklearn_metrics.precision_recall_curve(actual_N, probabilities_NK[:, 1])
    expected = {
        round(threshold, 6): (round(p, 6), round(r, 6))
        for p, r, threshold in zip(precision, recall, thresholds, strict=False)
    }
    points = classification.curves(actual_N, probabilities_NK, TWO, 15)["precision_recall"]
    assert points
    assert all(expected[point["threshold"]] == (point["precision"], point["recall"]) for point in points)


def test_majority_answers_the_commonest_label_with_the_shares_of_all() -> None:
    train = pl.Series(["yes", "no", "yes", "yes"])
    found = classification.majority(train, TWO, 3)
    assert found["label"].to_list() == ["yes"] * 3
    assert found["probabilities"].to_list() == [[0.25, 0.75]] * 3


def test_a_label_that_the_train_split_does_not_have_is_named() -> None:
    with pytest.raises(DataError, match=r"does not have: maybe\. Collect more rows"):
        classification.label_numbers(pl.Series(["yes", "maybe"]), TWO)


def test_logistic_regression_gives_no_probability_to_a_label_without_train_rows() -> None:
    features = np.array([[0.0], [1.0], [0.1], [0.9]])
    found = classification.logistic_regression(features, pl.Series(["a", "c", "a", "c"]), features, ["a", "b", "c"])
    assert found["label"].to_list() == ["a", "c", "a", "c"]
    assert found["probabilities"].arr.get(1).to_list() == [0.0] * 4


def test_a_thousand_resamples_in_two_lots_are_those_in_one() -> None:
    actual_N, probabilities_NK, weights_RN = answered(80, 3)
    whole = classification.measure(actual_N, probabilities_NK, FOUR[:3], weights_RN, 15)
    lots = [
        classification.measure(actual_N, probabilities_NK, FOUR[:3], part, 15)
        for part in (weights_RN[:2], weights_RN[2:])
    ]
    for name, values in whole.items():
        assert np.array_equal(values, np.concatenate([lot[name] for lot in lots]), equal_nan=True)
