"""Question answering: spans that follow their text, windows, the choice between an answer and none, SQuAD's figures."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from tasks.clean import clean
from tasks.errors import DataError, ParamsError
from tasks.params import Scratch, load_model
from tasks.problems import _spans
from tasks.problems._squad import exact_match, f1
from tasks.problems.question_answering import PROBLEM
from tasks.shards import read_json, read_rows
from tests.conftest import REPOSITORY, TIDY, shrunk
from tests.test_problems import tokenizer

PASSAGE = "Ada lived in London. She wrote to Babbage in London about the engine."


def row(context: str, question: str, answer: str, start: int) -> pl.DataFrame:
    values = {"context": [context], "question": [question], "answer": [answer], "answer_start": [start]}
    return pl.DataFrame(values, schema=PROBLEM.columns).select(pl.lit("r").alias("id"), *PROBLEM.columns)


def moved(raw: str, tidied: str, answer: str, start: int, tidied_answer: str | None = None) -> tuple[Any, Any]:
    before, now = (
        row(context, "Where?", said, start) for context, said in ((raw, answer), (tidied, tidied_answer or answer))
    )
    realigned, reasons = PROBLEM.realign(before, now)
    return realigned["answer_start"][0], reasons[0]


@pytest.mark.parametrize(
    ("right", "given", "exact", "overlap"),
    [
        ("The  Roman soldiers.", "roman Soldiers", True, 1.0),
        ("Roman soldiers", "the soldiers", False, 2 / 3),
        ("an engine", "a bridge", False, 0.0),
        ("to be or not to be", "to be", False, 2 * 2 / 8),
        ("", "", True, 1.0),
        ("", "anything", False, 0.0),
        ("something", "", False, 0.0),
        ("the", "", True, 1.0),  # an article alone is no word
    ],
)
def test_answers_are_compared_as_squad_has_it(right: str, given: str, exact: bool, overlap: float) -> None:
    assert exact_match(right, given) is exact
    assert f1(right, given) == pytest.approx(overlap)


def test_an_answer_follows_its_passage_to_the_same_of_several_places() -> None:
    second = PASSAGE.rindex("London")
    assert moved(PASSAGE, PASSAGE, "London", second) == (second, None)
    raw = PASSAGE.replace(" ", "   ")
    assert moved(raw, PASSAGE, "London", raw.rindex("London")) == (second, None)
    assert moved(raw, PASSAGE, "London", raw.index("London")) == (PASSAGE.index("London"), None)


def test_an_answer_that_was_redacted_stands_where_its_pseudonym_does() -> None:
    raw, now = "Write to ada@example.org today.", "Write to ⟨EMAIL_1⟩ today."
    assert moved(raw, now, "ada@example.org", 9, "⟨EMAIL_1⟩") == (9, None)


@pytest.mark.parametrize(
    ("answer", "start"), [("Paris", 13), ("London", 12), ("London", -1), ("", 3), ("London", 10_000)]
)
def test_an_answer_that_is_not_where_it_is_said_to_be_goes_with_its_reason(answer: str, start: int) -> None:
    assert moved(PASSAGE, PASSAGE, answer, start) == (None, "answer_not_in_context")


def test_no_answer_stays_none() -> None:
    assert moved(PASSAGE, PASSAGE, "", -1) == (-1, None)


def test_clean_moves_spans_redacts_answers_and_tallies_those_that_do_not_fit(tmp_path: Any) -> None:
    from tasks.shards import ShardWriter

    params = load_model("reviews", REPOSITORY / "params.yaml").clean
    params = params.model_copy(update={"near_duplicates": None, "min_rows": 1, "redact": ["email"]})
    rows = pl.concat(
        [
            row(f"Nr. {number}   was  sent   to ada{number}@example.org .", f"To whom went {number}?", *asked)
            for number in range(100, 400)
            for asked in [(f"ada{number}@example.org", 26 if number % 3 else 0)]
        ]
    ).with_columns(id=pl.format("{}", pl.int_range(300)))
    start = rows["context"][0].index("ada")
    rows = rows.with_columns(
        answer_start=pl.when(pl.col("answer_start") > 0).then(pl.lit(start)).otherwise("answer_start")
    )
    valid = tmp_path / "valid"
    valid.mkdir()
    writer = ShardWriter(valid, 1000, rows.schema, name="p00000")
    writer.write(rows)
    writer.finish()
    clean(valid, tmp_path / "clean", tmp_path / "clean.json", params=params, problem=PROBLEM)
    tally, kept = read_json(tmp_path / "clean.json"), read_rows(tmp_path / "clean")
    assert tally["dropped"]["answer_not_in_context"] == 100
    assert tally["rows_kept"] == len(kept) == 200
    assert set(kept["answer"]) == {"⟨EMAIL_1⟩"}
    found = kept.select(pl.col("context").str.slice(pl.col("answer_start"), pl.col("answer").str.len_chars()))
    assert set(found.to_series()) == {"⟨EMAIL_1⟩"}


def long_row(num_words: int) -> pl.DataFrame:
    words = [f"Ada lived in London {number}" for number in range(num_words)]
    context = ". ".join(words)
    answer = "London " + str(num_words - 2)
    return row(context, "Where did Ada live?", answer, context.index(answer))


def test_epochs_are_compared_on_windows_drawn_like_those_that_are_learned_from(tmp_path: Any) -> None:
    """Of long passages nearly all windows hold no answer; here learning leaves all of them out."""
    from tasks.shards import ShardWriter
    from tasks.tokenize import tokenize
    from tasks.train import train

    seen: list[pl.DataFrame] = []

    class Watched(type(PROBLEM)):  # type: ignore[misc]
        def learned(self, encoded: pl.DataFrame, seed: int) -> pl.DataFrame:
            return encoded.filter(pl.col("end") > 0)

        def batch(self, encoded: pl.DataFrame, pad_id: int) -> Any:
            seen.append(encoded.select("id", "end"))
            return super().batch(encoded, pad_id)

    params = shrunk(load_model("reviews", REPOSITORY / "params.yaml"))
    params = params.model_copy(update={"train": params.train.model_copy(update={"epochs": 1})})
    rows = pl.concat([long_row(40)] * 40).with_columns(id=pl.format("r{}", pl.int_range(40)), split=pl.lit("train"))
    rows = rows.with_columns(split=pl.when(pl.int_range(40) < 10).then(pl.lit("validation")).otherwise("split"))
    (tmp_path / "clean").mkdir()
    writer = ShardWriter(tmp_path / "clean", 1000, rows.schema)
    writer.write(rows)
    writer.finish(tidy=TIDY)
    places = [tmp_path / name for name in ("tokens", "checkpoint", "train.json", "loss.json", "live", "work")]
    tokenize(
        tmp_path / "clean", places[0], tmp_path / "t.json", params=params.tokenize, base=params.base, problem=PROBLEM
    )
    train(*places, params=params.train, base=params.base, threads=1, problem=Watched())
    assert pl.concat(seen)["end"].min() > 0  # type: ignore[operator]
    assert pl.concat(seen)["id"].n_unique() == 40


def test_a_long_passage_is_read_in_windows_that_overlap_and_miss_nothing() -> None:
    rows = long_row(40)
    encoded = PROBLEM.encode(rows, tokenizer(PROBLEM), {}, max_tokens=32)
    assert len(encoded) > 4
    assert encoded["input_ids"].list.len().max() == 32
    read = np.zeros(len(rows["context"][0]), dtype=int)
    for window in encoded.iter_rows(named=True):
        for start, end, mine in zip(window["starts"], window["ends"], window["context_mask"], strict=True):
            if mine:
                read[start:end] += 1
    letters = np.array([letter != " " for letter in rows["context"][0]])
    assert read[letters].min() >= 1
    assert read.max() >= 2
    assert not encoded["truncated"].any()


def test_the_answer_is_the_target_of_the_windows_that_hold_all_of_it_and_of_no_other() -> None:
    rows = long_row(40)
    encoded = PROBLEM.encode(rows, tokenizer(PROBLEM), {}, max_tokens=32)
    with_answer = encoded.filter(pl.col("end") > 0)
    assert 1 <= len(with_answer) < len(encoded)
    for window in with_answer.iter_rows(named=True):
        said = rows["context"][0][window["starts"][window["start"]] : window["ends"][window["end"]]]
        assert said == rows["answer"][0]
    assert encoded.filter(pl.col("end") == 0)["start"].to_list() == [0] * (len(encoded) - len(with_answer))


def test_a_question_that_fills_the_window_is_cut_and_says_so() -> None:
    rows = row(PASSAGE, "Where did Ada live " * 30 + "?", "London", 13)
    encoded = PROBLEM.encode(rows, tokenizer(PROBLEM), None, max_tokens=32)
    assert encoded["truncated"].all()
    assert encoded["input_ids"].list.len().max() <= 32
    assert encoded["context_mask"].list.sum().min() >= 8


def test_a_passage_that_never_ends_is_read_as_far_as_sixty_four_windows_and_says_so() -> None:
    rows = row("Ada moved. " * 100_000, "Where did Ada move?", "Ada", 0)
    encoded = PROBLEM.encode(rows, tokenizer(PROBLEM), None, max_tokens=32)
    assert len(encoded) == 64
    assert encoded["truncated"].all()


def test_a_window_too_small_for_a_question_and_a_passage_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"tokenize\.max_tokens is 8;"):
        PROBLEM.encode(PROBLEM.examples(), tokenizer(PROBLEM), None, max_tokens=8)


def test_a_train_split_without_any_answer_teaches_nothing() -> None:
    with pytest.raises(DataError, match="nothing to learn"):
        PROBLEM.signature(pl.DataFrame({"answer_start": [-1, -1]}))


def outputs(**arrays: list[Any]) -> dict[str, Any]:
    given = {name: np.array(values) for name, values in arrays.items()}
    return given | {"pooled_embedding": np.arange(2 * len(given["start"]), dtype=np.float32).reshape(-1, 2)}


ENCODED = pl.DataFrame(
    {
        "id": ["a", "a", "b"],
        "starts": [[0, 4, 8], [8, 12, 16], [0, 3, 6]],
        "ends": [[3, 7, 11], [11, 15, 19], [2, 5, 9]],
        "start": [0, 1, 0],
        "end": [0, 2, 0],
    }
)


def test_the_spans_of_a_rows_windows_stand_side_by_side_and_its_lowest_doubt_counts() -> None:
    found = PROBLEM.gather(
        outputs(start=[1, 0, 2], end=[2, 1, 2], score=[1.0, 5.0, 0.5], null_score=[4.0, 3.0, 2.0]), ENCODED
    )
    assert found["start"].tolist() == [[4, 8], [6, 6]]
    assert found["end"].tolist() == [[11, 15], [9, 9]]
    assert found["score"].tolist() == [[-2.0, 2.0], [-1.5, -1.5]]
    assert found["pooled_embedding"].tolist() == [[1.0, 2.0], [4.0, 5.0]]


def test_the_exported_graph_finds_the_span_that_trying_all_of_them_finds() -> None:
    import torch

    torch.manual_seed(3)
    base = Scratch(architecture="bert", hidden_size=16, layers=1, heads=2, feed_forward_size=32, max_positions=64)
    words = tokenizer(PROBLEM)
    model = PROBLEM.build(base, words.get_vocab_size(), {}, dropout=0.0, attention="eager").eval()
    with torch.no_grad():
        model.qa_outputs.weight.mul_(100)  # so that some ends are likely and others not
    encoded = PROBLEM.encode(PROBLEM.examples(), words, None, max_tokens=32)
    batch = {name: torch.from_numpy(array) for name, array in PROBLEM.batch(encoded, pad_id=0).items()}
    with torch.inference_mode():
        start, end, score, null_score, _ = PROBLEM.exportable(model)(**batch)
        mask = batch.pop("context_mask")
        out = model(**batch)
    for row_ in range(len(encoded)):
        tokens = mask[row_].nonzero().flatten().tolist()
        begins, ends = out.start_logits[row_].double(), out.end_logits[row_].double()
        spans = [(first, last) for first in tokens for last in tokens if first <= last]
        weights = {(first, last): float(torch.exp(begins[first] + ends[last])) for first, last in spans}
        total = sum(weights.values())

        def expected(span: tuple[int, int]) -> float:
            def overlap(other: tuple[int, int]) -> int:
                return max(0, min(span[1], other[1]) - max(span[0], other[0]) + 1)

            length = span[1] - span[0] + 1
            lengths = sum(weight * (last - first + 1) for (first, last), weight in weights.items()) / total  # noqa: B023
            shared = sum(weight * overlap(other) for other, weight in weights.items()) / total  # noqa: B023
            return 2 * shared / (length + lengths)

        best = max(spans, key=expected)
        assert (int(start[row_]), int(end[row_])) == best
        assert float(score[row_]) == pytest.approx(float(np.log(expected(best) * total)), abs=1e-4)
        assert float(null_score[row_]) == pytest.approx(float(begins[0] + ends[0]), abs=1e-5)


def test_doubtful_ends_give_the_span_that_most_likely_ones_share_and_not_the_likeliest() -> None:
    import torch

    class Marked(torch.nn.Module):
        """Sure of the beginning at token 2; the end is at 3 with 0.4, or with 0.2 each at 7, 8 and 9."""

        def forward(self, input_ids: Any, attention_mask: Any, output_hidden_states: bool) -> Any:
            from types import SimpleNamespace

            start, end = torch.full((1, 12), -30.0), torch.full((1, 12), -30.0)
            start[0, 2], end[0, 3] = 0.0, float(np.log(0.4))
            end[0, 7:10] = float(np.log(0.2))
            return SimpleNamespace(start_logits=start, end_logits=end, hidden_states=[torch.zeros(1, 12, 4)])

    ones = torch.ones((1, 12), dtype=torch.int64)
    mask = ones.clone()
    mask[0, 0] = 0
    start, end, *_ = _spans.expected_overlap(Marked())(ones, ones, ones, mask)  # type: ignore[arg-type]
    assert (int(start[0]), int(end[0])) == (2, 7)


def test_the_threshold_is_where_answering_begins_to_gain_and_probability_says_which_side() -> None:
    # Three rows with an answer that is found, two without: the line through the gains is 0 at 1.6 - 0.2 · 21.2 / 8.4.
    encoded = pl.DataFrame(
        {
            "id": list("abcde"),
            "starts": [[0, 4]] * 5,
            "ends": [[3, 7]] * 5,
            "start": [1, 1, 1, 0, 0],
            "end": [1, 1, 1, 0, 0],
        }
    )
    raw = outputs(start=[1] * 5, end=[1] * 5, score=[4.0, 3.0, 2.0, 1.0, -2.0], null_score=[0.0] * 5)
    calibration = PROBLEM.calibrate(raw, encoded, {})
    assert calibration["threshold"] == pytest.approx(1.095238)
    rows = pl.DataFrame({"id": list("abcde"), "context": ["One two."] * 5})
    assert calibration["late"] == 0.0
    answers = PROBLEM.answer(rows, PROBLEM.gather(raw, encoded), {}, calibration)
    assert answers["answer"].to_list() == ["two", "two", "two", "", ""]
    assert answers["answer_start"].to_list() == [4, 4, 4, -1, -1]
    assert (answers["probability"] > 0.5).all()


@pytest.mark.parametrize(("answered", "given"), [(4, 5), (1, 0)])
def test_margins_that_say_nothing_leave_all_rows_answered_or_none(answered: int, given: int) -> None:
    encoded = pl.DataFrame(
        {
            "id": list("abcde"),
            "starts": [[0, 4]] * 5,
            "ends": [[3, 7]] * 5,
            "start": [0] * (5 - answered) + [1] * answered,
            "end": [0] * (5 - answered) + [1] * answered,
        }
    )
    raw = outputs(start=[1] * 5, end=[1] * 5, score=[5.0, 4.0, 3.0, 2.0, 1.0], null_score=[0.0] * 5)
    calibration = PROBLEM.calibrate(raw, encoded, {})
    rows = pl.DataFrame({"id": list("abcde"), "context": ["One two."] * 5})
    answers = PROBLEM.answer(rows, PROBLEM.gather(raw, encoded), {}, calibration)
    assert (answers["answer"] != "").sum() == given


def test_where_earlier_windows_are_right_more_often_a_later_one_has_to_be_surer() -> None:
    """In each row the later window scores a little more, and the first one holds the answer."""
    encoded = pl.DataFrame(
        {
            "id": [name for name in "abcd" for _ in range(2)],
            "starts": [[0, 4], [900, 904]] * 4,
            "ends": [[3, 7], [903, 907]] * 4,
            "start": [1, 0] * 3 + [0, 1],
            "end": [1, 0] * 3 + [0, 1],
        }
    )
    score = [3.0, 3.5] * 3 + [3.0, 9.0]
    raw = outputs(start=[1] * 8, end=[1] * 8, score=score, null_score=[0.0] * 8)
    calibration = PROBLEM.calibrate(raw, encoded, {})
    assert calibration["late"] > 0
    rows = pl.DataFrame({"id": list("abcd"), "context": ["One two." + " " * 894 + "." * 10] * 4})
    gathered = PROBLEM.gather(raw, encoded)
    assert PROBLEM.answer(rows, gathered, {}, calibration)["answer_start"].to_list() == [4, 4, 4, 904]
    assert PROBLEM.answer(rows, gathered, {}, {**calibration, "late": 0.0})["answer_start"].to_list() == [904] * 4


def test_metrics_are_means_over_the_rows_they_are_about() -> None:
    examples = PROBLEM.examples()
    answers = PROBLEM.baselines(examples, examples, {}, seed=1)["no_answer"]
    found = PROBLEM.measure(examples, answers, {}, np.ones((1, len(examples))), bins=5)
    assert {name: values[0] for name, values in found.items()} == pytest.approx(
        {
            "f1": 2 / 6,
            "exact_match": 2 / 6,
            "answerability": 2 / 6,
            "f1_where_answered": 0.0,
            "exact_match_where_answered": 0.0,
            "no_answer_recall": 1.0,
        }
    )


def test_another_baseline_gives_the_first_sentence_whatever_is_asked() -> None:
    examples = PROBLEM.examples()
    given = PROBLEM.baselines(examples, examples, {}, seed=1)["first_sentence"]
    first = ["Ada moved to Paris in 1843."] * 3 + ["The bridge was built by Roman soldiers."] * 3
    assert given["answer"].to_list() == first
    assert set(given["answer_start"]) == {0}


def test_the_first_sentence_of_the_shipped_questions_is_harder_to_beat_than_the_likest() -> None:
    rows = pl.read_parquet(REPOSITORY / "data/samples/questions.parquet").head(600)
    baselines = PROBLEM.baselines(rows, rows, {}, seed=1)
    reached = {
        name: PROBLEM.measure(rows, given, {}, np.ones((1, len(rows))), 5)["f1"][0] for name, given in baselines.items()
    }
    assert reached["first_sentence"] > 0.2 > reached["tfidf_sentence"]


def test_the_baseline_gives_the_sentence_that_is_most_like_the_question() -> None:
    examples = PROBLEM.examples()
    given = PROBLEM.baselines(examples, examples, {}, seed=1)["tfidf_sentence"]
    assert given["answer"].to_list()[0] == "Ada moved to Paris in 1843."
    assert given["answer"].to_list()[3] == "The bridge was built by Roman soldiers."
    for context, answer, start in zip(examples["context"], given["answer"], given["answer_start"], strict=True):
        assert context[start : start + len(answer)] == answer


def test_the_shipped_questions_stand_where_they_say() -> None:
    rows = pl.read_parquet(REPOSITORY / "data/samples/questions.parquet")
    assert PROBLEM.realign(rows, rows)[1].null_count() == len(rows) == 3000
