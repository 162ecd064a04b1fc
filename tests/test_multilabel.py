"""Any number of labels a row: sets as texts, thresholds, and figures held against scikit-learn's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn import metrics as sklearn_metrics

from tasks.clean import clean
from tasks.errors import DataError
from tasks.params import load_model, read_yaml
from tasks.problems import _multilabel as multilabel
from tasks.problems._classification import sigmoid
from tasks.problems.multilabel_classification import PROBLEM
from tasks.quality import measured_quality, right_where_labelled
from tasks.shards import ShardWriter, read_json, read_rows
from tasks.validate import validate
from tests.conftest import REPOSITORY
from tests.test_problems import scratch, tokenizer

NAMES = ["a", "b", "c", "d"]


def answered(num_rows: int = 300, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    """Random truth, answers by uneven thresholds, probabilities with many ties, and resamples as weights."""
    generator = np.random.default_rng(seed)
    actual_NK = generator.random((num_rows, 4)) < [0.5, 0.2, 0.1, 0.7]
    probabilities_NK = sigmoid(np.round(4 * generator.normal(size=(num_rows, 4)) + 4 * actual_NK - 2) / 4)
    weights_RN = generator.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=5).astype(float)
    return actual_NK, probabilities_NK >= [0.5, 0.4, 0.3, 0.6], probabilities_NK, weights_RN


def test_every_metric_is_that_of_scikit_learn_under_every_weighting() -> None:
    actual_NK, given_NK, probabilities_NK, weights_RN = answered()
    found = multilabel.measure(actual_NK, given_NK, probabilities_NK, NAMES, weights_RN)
    for r, weights_N in enumerate(weights_RN):
        both: dict[str, Any] = {"y_true": actual_NK, "y_pred": given_NK, "sample_weight": weights_N}
        for average in ("micro", "macro"):
            expected = sklearn_metrics.precision_recall_fscore_support(**both, average=average)
            for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
                if f"{name}_{average}" in found:
                    assert found[f"{name}_{average}"][r] == pytest.approx(value, abs=1e-12)
        by_label = sklearn_metrics.precision_recall_fscore_support(**both)
        for name, values_K in zip(("precision", "recall", "f1"), by_label, strict=False):
            assert [found[f"{name}[{label}]"][r] for label in NAMES] == pytest.approx(values_K, abs=1e-12)
        average_K = sklearn_metrics.average_precision_score(
            actual_NK, probabilities_NK, average=None, sample_weight=weights_N
        )
        assert [found[f"average_precision[{label}]"][r] for label in NAMES] == pytest.approx(average_K, abs=1e-12)
        assert found["average_precision_macro"][r] == pytest.approx(average_K.mean(), abs=1e-12)
        assert found["exact_match"][r] == pytest.approx(sklearn_metrics.accuracy_score(**both), abs=1e-12)
        assert found["hamming_loss"][r] == pytest.approx(sklearn_metrics.hamming_loss(**both), abs=1e-12)
        log_loss = sklearn_metrics.log_loss(
            actual_NK.ravel(), probabilities_NK.ravel(), sample_weight=np.repeat(weights_N, 4)
        )
        assert found["log_loss"][r] == pytest.approx(log_loss, abs=1e-12)


def test_what_a_weighting_leaves_undefined_is_no_part_of_an_average() -> None:
    actual_NK, given_NK, probabilities_NK, weights_RN = answered()
    has_one_N = actual_NK[:, 2] | given_NK[:, 2]
    weights_RN[0, has_one_N] = 0
    found = multilabel.measure(actual_NK, given_NK, probabilities_NK, NAMES, weights_RN)
    for name in ("f1", "precision", "recall", "average_precision"):
        assert np.isnan(found[f"{name}[c]"][0])
        assert np.isfinite(found[f"{name}[c]"][1:]).all()
    others = [found[f"f1[{label}]"][0] for label in ("a", "b", "d")]
    assert found["f1_macro"][0] == pytest.approx(np.mean(others))
    never_NK = given_NK & [True, True, False, True]
    assert multilabel.measure(actual_NK, never_NK, probabilities_NK, NAMES, weights_RN)["precision[c]"][1] == 0
    nothing_NK = np.zeros_like(actual_NK)
    empty = multilabel.measure(nothing_NK, nothing_NK, probabilities_NK, NAMES, weights_RN)
    assert np.isnan(empty["f1_micro"]).all()
    assert (empty["exact_match"] == 1).all()


def test_resampling_by_weights_is_resampling_by_copies_of_rows() -> None:
    actual_NK, given_NK, probabilities_NK, weights_RN = answered()
    drawn = np.repeat(np.arange(300), weights_RN[2].astype(int))
    found = multilabel.measure(actual_NK, given_NK, probabilities_NK, NAMES, weights_RN)
    copied = multilabel.measure(
        actual_NK[drawn], given_NK[drawn], probabilities_NK[drawn], NAMES, np.ones((1, len(drawn)))
    )
    assert {name: values[2] for name, values in found.items()} == pytest.approx(
        {name: values[0] for name, values in copied.items()}, abs=1e-12
    )


def test_the_scores_of_rows_have_the_means_that_are_measured() -> None:
    actual_NK, given_NK, probabilities_NK, _ = answered()
    ids = pl.Series("id", [str(number) for number in range(300)])
    scored = multilabel.score(ids, actual_NK, given_NK, probabilities_NK)
    found = multilabel.measure(actual_NK, given_NK, probabilities_NK, NAMES, np.ones((1, 300)))
    for score, metric in (("correct", "exact_match"), ("hamming_loss", "hamming_loss"), ("log_loss", "log_loss")):
        assert scored[score].cast(pl.Float64).mean() == pytest.approx(found[metric][0], abs=1e-12)


@pytest.mark.parametrize("label", range(4))
def test_a_threshold_reaches_the_best_f1_that_any_threshold_reaches(label: int) -> None:
    actual_NK, _, probabilities_NK, _ = answered()
    actual_N, probabilities_N = actual_NK[:, label], probabilities_NK[:, label]
    best = max(sklearn_metrics.f1_score(actual_N, probabilities_N >= tried) for tried in np.unique(probabilities_N))
    found = multilabel.fit_threshold(probabilities_N, actual_N)
    assert sklearn_metrics.f1_score(actual_N, probabilities_N >= found) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize(
    ("probabilities", "actual", "threshold"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], 0.25),
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 0.5),  # any between 0.2 and 0.8 does; the nearest to even
        ([0.1, 0.6, 0.7, 0.9], [0, 0, 1, 1], 0.65),
        ([0.3, 0.4], [0, 0], 0.5),  # nobody has it
        ([0.3], [1], 0.5),  # a single row has nothing beside it
    ],
)
def test_thresholds_worked_out_by_hand(probabilities: list[float], actual: list[int], threshold: float) -> None:
    assert multilabel.fit_threshold(np.array(probabilities), np.array(actual) > 0) == pytest.approx(threshold)


def test_the_temperature_is_the_one_that_the_logits_were_multiplied_by() -> None:
    generator = np.random.default_rng(0)
    honest_NK = generator.normal(size=(20_000, 3)) * 2
    actual_NK = generator.random((20_000, 3)) < sigmoid(honest_NK)
    assert multilabel.fit_temperature(3 * honest_NK, actual_NK) == pytest.approx(3, rel=0.03)


def test_answers_are_given_by_the_thresholds_that_were_fitted() -> None:
    outputs = {"logits": np.array([[0.0, -1.0], [3.0, 3.0], [-3.0, -3.0]])}
    signature, rows = {"labels": ["x", "y"]}, pl.DataFrame({"id": ["1", "2", "3"]})
    even = PROBLEM.answer(rows, outputs, signature, {})
    assert even["labels"].to_list() == ["x", "x|y", ""]
    fitted = PROBLEM.answer(rows, outputs, signature, {"temperature": 2.0, "threshold[y]": 0.3, "threshold[x]": 0.9})
    assert fitted["labels"].to_list() == ["y", "y", ""]
    p_x, p_y = sigmoid(np.array([0.0, -0.5]))
    assert fitted["probabilities"][0].to_list() == pytest.approx([p_x, p_y])
    assert fitted["probability"][0] == pytest.approx((1 - p_x) * p_y)


def test_the_model_learns_by_binary_cross_entropy_of_each_label() -> None:
    import torch

    rows, signature = PROBLEM.examples(), PROBLEM.signature(PROBLEM.examples())
    encoded = PROBLEM.encode(rows, tokenizer(PROBLEM), signature, max_tokens=32)
    torch.manual_seed(0)
    model = PROBLEM.build(
        scratch(PROBLEM), tokenizer(PROBLEM).get_vocab_size(), signature, dropout=0.0, attention="eager"
    )
    arrays = PROBLEM.batch(encoded, pad_id=0)
    with torch.inference_mode():
        out = model(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    probabilities_NK = sigmoid(out.logits.numpy())
    expected = sklearn_metrics.log_loss(arrays["labels"].ravel(), probabilities_NK.ravel())
    assert float(out.loss) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("text", ["a||b", "|a", "a|", "|", "a|b|a", "a|a", " a", "a |b", " ", "a| b"])
def test_a_text_that_is_no_set_of_names_is_malformed(text: str) -> None:
    assert multilabel.malformed(pl.Series([text])).to_list() == [True]


@pytest.mark.parametrize("text", ["", "a", "b|a", "two words|a", "a.b|c-d", "ä|Ä"])
def test_any_other_text_is_a_set(text: str) -> None:
    assert multilabel.malformed(pl.Series([text])).to_list() == [False]


def test_the_order_of_names_says_nothing() -> None:
    rows = pl.DataFrame({"id": ["1", "2", "3"], "text": ["x", "y", "z"], "labels": ["b|a", "", "c"]})
    names = ["a", "b", "c"]
    given_NK = multilabel.membership(pl.Series(["a|b", "", "c"]), names)
    answers = multilabel.answers(given_NK, np.full((3, 3), 0.5), names)
    assert answers["labels"].to_list() == ["a|b", "", "c"]
    assert PROBLEM.agree(answers, rows).to_list() == [True] * 3
    assert PROBLEM.score(rows, answers, {"labels": names})["correct"].to_list() == [True] * 3
    assert PROBLEM.agree(answers, rows.with_columns(labels=pl.lit("a"))).to_list() == [False] * 3


def test_a_label_that_the_train_split_does_not_have_is_named() -> None:
    with pytest.raises(DataError, match="Labels that the train split does not have: unheard"):
        PROBLEM.encode(PROBLEM.examples().with_columns(labels=pl.lit("warm|unheard")), tokenizer(PROBLEM),
                       PROBLEM.signature(PROBLEM.examples()), 32)  # fmt: skip


@pytest.mark.parametrize("labels", ["", "a", "a|b"])
def test_a_train_split_with_one_set_teaches_nothing(labels: str) -> None:
    with pytest.raises(DataError, match="nothing to tell apart"):
        PROBLEM.signature(pl.DataFrame({"labels": [labels, labels]}))


def test_the_commonest_set_is_the_first_baseline() -> None:
    labels = pl.Series("labels", ["b|a", "a|b", "a", "", "a", "b|a"])
    answers = multilabel.commonest_set(labels, ["a", "b"], 2)
    assert answers["labels"].to_list() == ["a|b"] * 2
    assert answers["probability"].to_list() == [0.5] * 2
    assert answers["probabilities"][0].to_list() == pytest.approx([5 / 6, 3 / 6])


def write(folder: Path, rows: pl.DataFrame) -> None:
    folder.mkdir()
    writer = ShardWriter(folder, 1000, rows.schema, "p00000")
    writer.write(rows)
    writer.finish()


def test_clean_drops_what_is_malformed_or_contradicts_and_counts_each_label(tmp_path: Path) -> None:
    # Of each number: the same set twice, in another order; two sets for one text; and no set at all.
    said = [("same", "a|b"), ("same", "b|a"), ("torn", "a"), ("torn", "a|b"), ("odd", "a||b"), ("none", "")]
    rows = [
        {"id": f"{n}-{place}", "text": f"a {what} text of number {n}", "labels": labels}
        for n in range(100)
        for place, (what, labels) in enumerate(said)
    ]
    write(tmp_path / "valid", pl.DataFrame(rows))
    params = load_model("reviews", REPOSITORY / "params.yaml").clean
    params = params.model_copy(update={"near_duplicates": None, "min_rows": 1})
    clean(tmp_path / "valid", tmp_path / "clean", tmp_path / "clean.json", params=params, problem=PROBLEM)
    tally, kept = read_json(tmp_path / "clean.json"), read_rows(tmp_path / "clean")
    dropped = {reason: number for reason, number in tally["dropped"].items() if number}
    assert dropped == {"conflicting_label": 200, "duplicate_of": 100, "malformed_labels": 100}
    assert len(kept) == 200
    assert set(kept["labels"]) == {"a|b", ""}
    for split, counts in tally["splits"].items():
        having = kept.filter((pl.col("split") == split) & (pl.col("labels") != ""))
        assert counts["labels"] == {"a": len(having), "b": len(having)}


def test_the_recipes_rules_put_unknown_and_malformed_labels_into_quarantine(tmp_path: Path) -> None:
    from tasks.params import Validate

    good = ["", "film", "positive|film", "film|negative", "news|positive|product"]
    bad = ["films", "film|unheard", "film|", "|film", "film||news", "|", "film|film", "film|news|film", "Film", " film"]
    rows = pl.DataFrame({"labels": good * 40 + bad}).with_row_index("id")
    write(tmp_path / "collect", rows.select(pl.col("id").cast(pl.String), "labels", text=pl.lit("a fine text")))
    (tmp_path / "admitted.jsonl").write_text("\n")
    rules = read_yaml(REPOSITORY / "recipes/multilabel_classification.yaml")["model"]["validate"]
    params = Validate.model_validate({**rules, "table": [], "max_quarantined": 1.0, "max_quarantined_per_label": 1.0})
    places = [tmp_path / name for name in ("collect", "admitted.jsonl", "valid", "quarantine", "validate.json", "docs")]
    validate(*places, params=params, problem=PROBLEM)
    assert sorted(read_rows(tmp_path / "quarantine")["labels"]) == sorted(bad)
    assert sorted(set(read_rows(tmp_path / "valid")["labels"])) == sorted(good)
    counted = read_json(tmp_path / "validate.json")["quarantined"]["by_label"]
    assert {label: group["rows"] for label, group in counted.items()} == {
        "film": 120,
        "negative": 40,
        "news": 40,
        "positive": 80,
        "product": 40,
    }


def test_labels_that_come_back_are_read_as_sets_and_what_the_model_does_not_have_is_unknown() -> None:
    rows = pl.concat([PROBLEM.examples()] * 3).with_columns(id=pl.format("p{}", pl.int_range(36)))
    signature = PROBLEM.signature(rows)
    answers = PROBLEM.baselines(rows, rows, signature, seed=1)["tfidf_one_vs_rest"]
    turned = [{"labels": "|".join(reversed(labels.split("|")))} for labels in rows["labels"]]
    said = [*turned[:32], {"labels": "unheard"}, {"labels": "warm||funny"}, {"labels": 7}, {}]
    label_json = pl.Series("label_json", [json.dumps(label) for label in said])
    labelled = pl.concat([rows.drop("labels"), answers, label_json.to_frame()], how="horizontal")
    params = load_model("reviews", REPOSITORY / "params.yaml").evaluate.model_copy(update={"resamples": 100})
    found = measured_quality(labelled, signature, PROBLEM, params, {})
    assert (found["labels"], found["unknown"]) == (36, 4)
    assert found["metrics"]["f1_micro"]["value"] > 0.9
    right = right_where_labelled(labelled.drop("label_json"), labelled.select("id", "label_json"), signature, PROBLEM)
    assert np.isfinite(right).sum() == 32
    assert np.nanmean(right) == found["metrics"]["exact_match"]["value"]
