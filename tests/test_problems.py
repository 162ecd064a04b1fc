"""The problem contract, over every file of tasks/problems/: a new file is tested by existing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tasks import problems
from tasks.errors import ParamsError
from tasks.expectations import read_rules
from tasks.gx import RowJudge
from tasks.params import Scratch
from tasks.problems import Problem
from tasks.problems._text import specials

NAMES = sorted(path.stem for path in Path(problems.__file__).parent.glob("[!_]*.py"))

# What is built for a problem; an encoder but for these.
WRITERS = {"text_generation": "gpt2", "translation": "marian"}


@pytest.fixture(scope="module", params=NAMES)
def problem(request: pytest.FixtureRequest) -> Problem:
    return problems.load(request.param)


@pytest.fixture(scope="module")
def signature(problem: Problem) -> Any:
    return problem.signature(problem.examples())


def broken(rows: pl.DataFrame, problem: Problem) -> list[str]:
    """The ids of the rows that break something which the problem expects."""
    rules, _ = read_rules([], [], rows.schema, problem.expectations)
    found = RowJudge(rules).judge(rows, Path("examples"))
    return sorted({rows["id"][position] for one in found for position in one.positions})


def test_its_own_examples_keep_what_it_expects(problem: Problem) -> None:
    assert broken(problem.examples(), problem) == []


def test_a_row_without_a_column_that_it_needs_breaks_it(problem: Problem) -> None:
    rows = problem.examples()
    for name in problem.columns:
        empty = pl.when(pl.int_range(len(rows)) == 1).then(None).otherwise(name).alias(name)
        assert broken(rows.with_columns(empty), problem) == [rows["id"][1]]


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("translation", "translation", " \n"),
        ("question_answering", "answer_start", -2),
        ("multilabel_classification", "labels", "film|news|film"),
    ],
)
def test_a_value_that_nobody_can_learn_from_breaks_it(name: str, column: str, value: Any) -> None:
    rows = problems.load(name).examples()
    wrong = pl.when(pl.int_range(len(rows)) == 1).then(pl.lit(value)).otherwise(column).alias(column)
    assert broken(rows.with_columns(wrong), problems.load(name)) == [rows["id"][1]]


@pytest.fixture(scope="module")
def baselines(problem: Problem, signature: Any) -> dict[str, pl.DataFrame]:
    return problem.baselines(problem.examples(), problem.examples(), signature, seed=1)


@pytest.fixture(scope="module")
def encoded(problem: Problem, signature: Any) -> pl.DataFrame:
    return problem.encode(problem.examples(), tokenizer(problem), signature, max_tokens=32)


@pytest.fixture(scope="module")
def outputs(problem: Problem, signature: Any, encoded: pl.DataFrame) -> dict[str, Any]:
    """What a model with random weights says to the examples."""
    import torch

    torch.manual_seed(0)
    model = problem.build(
        scratch(problem), tokenizer(problem).get_vocab_size(), signature, dropout=0.0, attention="eager"
    )
    batch = problem.batch(encoded.drop(problem.targets), pad_id=0)
    with torch.inference_mode():
        arrays = problem.exportable(model.eval())(**{name: torch.from_numpy(array) for name, array in batch.items()})
    return dict(zip(problem.outputs, (array.numpy() for array in arrays), strict=False))


def scratch(problem: Problem) -> Scratch:
    architecture = WRITERS.get(problem.name, "bert")
    return Scratch(architecture=architecture, hidden_size=16, layers=1, heads=2, feed_forward_size=32, max_positions=64)


def tokenizer(problem: Problem) -> Any:
    """A small real tokenizer that learned the words of the examples."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = [text for column in problem.texts for text in problem.examples()[column]]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, words.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return words


def test_a_problem_has_its_files_name_and_its_examples_have_its_columns(problem: Problem) -> None:
    examples = problem.examples()
    assert problem.name in NAMES
    assert problems.load(problem.name) is problem
    assert {name: examples.schema[name] for name in problem.columns} == problem.columns
    assert examples["id"].n_unique() == len(examples) >= 4
    assert {*problem.texts, *problem.inputs} <= set(problem.columns)
    assert problem.label is None or problem.label in problem.columns
    assert {*problem.target_texts, *problem.signs} <= set(problem.columns) - set(problem.inputs)
    assert "pooled_embedding" in problem.outputs


def test_the_headline_is_a_metric_with_a_direction(problem: Problem) -> None:
    assert problem.headline in problem.higher_is_better


def test_a_signature_survives_json_and_does_not_depend_on_the_order_of_rows(problem: Problem, signature: Any) -> None:
    assert json.loads(json.dumps(signature)) == signature
    assert problem.signature(problem.examples().reverse()) == signature


def test_encoding_keeps_ids_and_order_and_gives_targets_only_with_a_signature(
    problem: Problem, encoded: pl.DataFrame
) -> None:
    request = problem.encode(problem.examples().select("id", *problem.inputs), tokenizer(problem), None, max_tokens=32)
    assert encoded["id"].unique(maintain_order=True).equals(problem.examples()["id"])
    assert problem.targets
    assert set(problem.targets) == set(encoded.columns) - set(request.columns)
    assert request["input_ids"].equals(encoded["input_ids"])


def test_truncation_is_said_of_the_rows_that_it_met(problem: Problem, encoded: pl.DataFrame) -> None:
    assert not encoded["truncated"].any()
    shortest = encoded["input_ids"].list.len().min()
    assert isinstance(shortest, int)
    short = problem.encode(problem.examples(), tokenizer(problem), None, max_tokens=shortest)
    assert short["input_ids"].list.len().max() == shortest
    # What is longer than the model is cut, and says so, or has become several.
    is_longer = dict(zip(encoded["id"], encoded["input_ids"].list.len() > shortest, strict=True))
    pieces = short.group_by("id").agg(num=pl.len(), truncated=pl.col("truncated").all())
    for row in pieces.iter_rows(named=True):
        assert (row["truncated"] or row["num"] > 1) == is_longer[row["id"]]


def test_a_batch_is_as_long_as_its_longest_row(problem: Problem, encoded: pl.DataFrame) -> None:
    batch = problem.batch(encoded, pad_id=0)
    assert batch["input_ids"].shape == (len(encoded), encoded["input_ids"].list.len().max())
    assert batch["attention_mask"].sum(axis=1).tolist() == encoded["input_ids"].list.len().to_list()
    assert set(problem.batch(encoded.drop(problem.targets), pad_id=0)) < set(batch)
    assert all(len(array) == len(encoded) for array in batch.values())


def test_what_is_learned_from_is_some_of_the_encoded_rows_and_the_same_for_one_seed(
    problem: Problem, encoded: pl.DataFrame
) -> None:
    learned = problem.learned(encoded, seed=1)
    assert 0 < len(learned) <= len(encoded)
    assert learned.equals(problem.learned(encoded, seed=1))
    assert learned.equals(encoded.join(learned, on=["id", "input_ids"], how="semi", maintain_order="left"))


def test_what_is_packed_has_every_id_and_the_same_arrays_each_time(problem: Problem, encoded: pl.DataFrame) -> None:
    packed = problem.packed(encoded, 32, seed=1)
    assert packed.equals(problem.packed(encoded, 32, seed=1))
    assert set(" ".join(packed["id"]).split()) <= set(encoded["id"])
    assert "labels" in problem.batch(packed, pad_id=0) or set(problem.batch(packed, pad_id=0)) == set(
        problem.batch(encoded, pad_id=0)
    )


def test_chance_touches_no_special_token_and_no_target_or_is_refused(problem: Problem, encoded: pl.DataFrame) -> None:
    marks = specials(tokenizer(problem))
    packed = problem.packed(encoded, 32, seed=1)
    seen: list[pl.Series] = []

    def turned(movable: pl.Series) -> pl.Series:
        """Of what may move every other token is gone, and the rest stands the other way round."""
        seen.append(movable)
        places = [[place for place, may in enumerate(row) if may] for row in movable]
        left = [dict(zip(row[::2], row[::2][::-1], strict=True)) for row in places]
        return pl.Series(
            [
                [some.get(place, place) for place, may in enumerate(row) if not may or place in some]
                for row, some in zip(movable, left, strict=True)
            ]
        )

    try:
        stays = problem.augment(packed, marks, lambda movable: pl.Series([list(range(len(row))) for row in movable]))
    except ParamsError:
        assert problem.decoding, "only what writes learns from its own words"
        return
    assert stays.equals(packed)
    changed = problem.augment(packed, marks, turned)
    assert changed["id"].equals(packed["id"])
    assert not changed["input_ids"].equals(packed["input_ids"])
    before, after = (problem.batch(rows, pad_id=0) for rows in (packed, changed))
    assert after["attention_mask"].sum() < before["attention_mask"].sum()
    for movable, row, new in zip(seen[0], packed["input_ids"], changed["input_ids"], strict=True):
        assert not {token for token, may in zip(row, movable, strict=True) if may} & set(marks)
        assert [token for token in new if token in marks] == [token for token in row if token in marks]


def test_outputs_do_not_depend_on_padding(
    problem: Problem, signature: Any, encoded: pl.DataFrame, outputs: dict[str, Any]
) -> None:
    import torch

    torch.manual_seed(0)
    model = problem.build(
        scratch(problem), tokenizer(problem).get_vocab_size(), signature, dropout=0.0, attention="eager"
    )
    alone = problem.batch(encoded.head(1).drop(problem.targets), pad_id=0)
    with torch.inference_mode():
        arrays = problem.exportable(model.eval())(**{name: torch.from_numpy(array) for name, array in alone.items()})
    num_of_cache = sum("." in name for name in problem.traced(model, alone))
    assert bool(num_of_cache) == bool(problem.decoding)
    assert len(arrays) == len(problem.outputs) + len(problem.decoding) + num_of_cache
    for name, array in zip(problem.outputs, arrays, strict=False):
        np.testing.assert_allclose(array.numpy()[0], outputs[name][0], atol=1e-6)


def test_a_model_is_no_way_from_itself_and_some_way_from_another(problem: Problem, outputs: dict[str, Any]) -> None:
    assert problem.compare(outputs, outputs) == (0.0, 0.0)
    difference, changed = problem.compare(outputs, {name: -5 * array for name, array in outputs.items()})
    assert difference > 0
    assert 0 < changed <= 1


def test_a_perplexity_is_said_of_what_predicts_tokens_and_lies_between_one_and_all_of_them(
    problem: Problem, encoded: pl.DataFrame, outputs: dict[str, Any]
) -> None:
    found = problem.perplexity(outputs, encoded)
    assert (found is None) == (not problem.decoding)
    if found is not None:
        assert 1 < found < 2 * tokenizer(problem).get_vocab_size()
        assert problem.perplexity({name: array[::-1] for name, array in outputs.items()}, encoded) == pytest.approx(
            found
        )


def test_what_is_held_against_the_train_split_keeps_its_rows_and_columns(
    problem: Problem, signature: Any, baselines: dict[str, pl.DataFrame]
) -> None:
    for given in baselines.values():
        answers = problem.against_train(given, problem.examples())
        assert answers.select(given.columns).equals(given)
        before, after = (problem.score(problem.examples(), one, signature) for one in (given, answers))
        assert after.select(before.columns).equals(before)


def test_every_row_gets_its_own_answer(
    problem: Problem, signature: Any, encoded: pl.DataFrame, outputs: dict[str, Any]
) -> None:
    calibration = problem.calibrate(outputs, encoded, signature)
    assert all(np.isfinite(value) for value in calibration.values())
    rows, gathered = problem.examples(), problem.gather(outputs, encoded)
    answers = problem.answer(rows, gathered, signature, calibration)
    reversed_outputs = {name: array[::-1] for name, array in gathered.items()}
    assert len(answers) == len(rows)
    assert answers.schema == problem.answer_schema(signature)
    assert problem.answer(rows.reverse(), reversed_outputs, signature, calibration).equals(answers.reverse())


def test_what_is_watched_of_answers_is_no_text_and_says_how_sure_they_are(
    problem: Problem, signature: Any, baselines: dict[str, pl.DataFrame]
) -> None:
    texts = {text for column in (*problem.texts, *problem.target_texts) for text in problem.examples()[column]} - {""}
    for answers in baselines.values():
        watched = problem.watched(answers)
        assert len(watched) == len(answers)
        assert ("probability" in watched.columns) == ("probability" in problem.answer_schema(signature))
        for column in watched.select(pl.col(pl.String)):
            assert not texts & set(column)


def test_answers_agree_with_themselves_and_with_the_targets_where_they_are_right(
    problem: Problem, signature: Any, baselines: dict[str, pl.DataFrame]
) -> None:
    rows = problem.examples()
    for answers in baselines.values():
        assert problem.agree(answers, answers).all()
        right = problem.agree(answers, rows)
        scored = problem.score(rows, answers, signature)
        nobody_can_say = pl.repeat(None, len(rows), dtype=pl.Boolean, eager=True)
        assert right.equals(scored["correct"] if "correct" in scored.columns else nobody_can_say, check_names=False)
        silent = answers.clear(len(answers))
        assert not problem.agree(silent, silent).any(), "nulls agree with nothing"


def test_rows_that_were_tidy_stay_as_they_are(problem: Problem) -> None:
    rows = problem.examples()
    realigned, reasons = problem.realign(rows, rows)
    assert realigned.equals(rows)
    assert reasons.null_count() == len(rows)


def test_no_rows_get_no_answers_of_the_same_columns(
    problem: Problem, signature: Any, encoded: pl.DataFrame, outputs: dict[str, Any]
) -> None:
    nothing = problem.gather({name: array[:0] for name, array in outputs.items()}, encoded.head(0))
    none = problem.answer(problem.examples().head(0), nothing, signature, {})
    assert none.is_empty()
    assert none.schema == problem.answer_schema(signature)


def test_a_baseline_answers_in_the_models_own_columns(
    problem: Problem, signature: Any, baselines: dict[str, pl.DataFrame]
) -> None:
    expected = problem.answer_schema(signature)
    assert baselines
    for answers in baselines.values():
        assert answers.schema == expected
        assert len(answers) == len(problem.examples())


def test_a_baseline_is_the_same_each_time(problem: Problem, signature: Any, baselines: dict[str, pl.DataFrame]) -> None:
    again = problem.baselines(problem.examples(), problem.examples(), signature, seed=1)
    assert list(again) == list(baselines)
    assert all(again[name].equals(baselines[name]) for name in again)


def test_scores_are_numbers_of_each_row_in_order(
    problem: Problem, signature: Any, baselines: dict[str, pl.DataFrame]
) -> None:
    for answers in baselines.values():
        scored = problem.score(problem.examples(), answers, signature)
        assert scored["id"].equals(problem.examples()["id"])
        assert len(scored.columns) > 1
        for name in scored.columns[1:]:
            assert scored.schema[name].is_numeric() or scored.schema[name] == pl.Boolean
            assert scored[name].null_count() == 0


def test_every_metric_is_known_and_has_a_value_for_each_weighting(
    problem: Problem, signature: Any, baselines: dict[str, pl.DataFrame]
) -> None:
    weights_RN = np.ones((3, len(problem.examples())))
    weights_RN[1] *= 2
    for given in baselines.values():
        answers = problem.against_train(given, problem.examples())
        found = problem.measure(problem.examples(), answers, signature, weights_RN, bins=5)
        assert problem.headline in found
        assert {name.partition("[")[0] for name in found} == set(problem.higher_is_better)
        for values in found.values():
            assert values.shape == (3,)
            np.testing.assert_allclose(values, values[0], atol=1e-12)


def test_a_weight_of_none_takes_a_row_out(problem: Problem, signature: Any, baselines: dict[str, pl.DataFrame]) -> None:
    answers, rows = (
        baselines["majority"] if "majority" in baselines else next(iter(baselines.values())),
        problem.examples(),
    )
    kept = np.arange(len(rows)) % 3 > 0
    weighted = problem.measure(rows, answers, signature, kept[None, :].astype(np.float64), bins=5)
    taken = problem.measure(rows.filter(kept), answers.filter(kept), signature, np.ones((1, int(kept.sum()))), bins=5)
    assert set(weighted) == set(taken)
    for name, values in weighted.items():
        np.testing.assert_allclose(values, taken[name], atol=1e-12)


def test_curves_are_records_that_json_holds(
    problem: Problem, signature: Any, baselines: dict[str, pl.DataFrame]
) -> None:
    for answers in baselines.values():
        for points in problem.curves(problem.examples(), answers, signature, bins=5).values():
            assert json.loads(json.dumps(points, allow_nan=False)) == points
            assert all(isinstance(point, dict) for point in points)


def test_descriptors_are_finite_numbers_for_every_row(problem: Problem) -> None:
    described = problem.descriptors(problem.examples())
    assert described.columns[0] == "id"
    assert described["id"].equals(problem.examples()["id"])
    assert len(described.columns) > 1
    assert np.isfinite(described.drop("id").to_numpy().astype(np.float64)).all()


def test_odd_texts_are_described_and_encoded_like_any_other(problem: Problem, signature: Any) -> None:
    odd = ["", " ", "🙂🙂🙂", "مرحبا بالعالم", "1234", "A" * 100_000, "⟨EMAIL_1⟩ wrote to ⟨PHONE_2⟩", "null\x00byte"]
    rows = pl.concat([problem.examples()] * len(odd)).head(len(odd))
    rows = rows.with_columns(pl.Series(name, odd) for name in problem.texts).with_columns(
        id=pl.format("odd-{}", pl.int_range(len(odd)))
    )
    described = problem.descriptors(rows).drop("id").to_numpy().astype(np.float64)
    assert np.isfinite(described).all()
    encoded = problem.encode(rows, tokenizer(problem), None, max_tokens=32)
    assert encoded["id"].unique(maintain_order=True).equals(rows["id"])
    answers = problem.baselines(rows, rows, signature, seed=1)
    assert all(len(given) == len(odd) for given in answers.values())
