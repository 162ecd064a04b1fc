"""The answer to a question as a span of a passage, or that the passage holds none.

A passage that is longer than the model is read in overlapping windows. The exported graph chooses each window's best
span itself (`_spans.py`), so that its outputs have one size whatever the length. Arrays are named by shape: W windows,
N rows.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.errors import DataError, ParamsError
from tasks.params import Scratch
from tasks.problems import Arrays, Draw, Problem, Signature, _classification, _spans, _squad, _text
from tasks.problems._squad import NO_ANSWER, exact_match

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from torch import nn
    from transformers import PreTrainedModel

# The longest question is half of a window, and a quarter of it is shared with the window before; room for the rest of
# the passage is left in windows of so many tokens.
_QUESTION, _OVERLAP, _LEAST_TOKENS = 2, 4, 16

# What is read of one passage at most; clean.max_chars decides for training.
_MOST_WINDOWS = 64

# Of the windows without an answer that are learned from.
_SHARE_OF_OTHERS = 0.1

# Where an answer begins that the passage does not hold.
_NOWHERE = -1

_KINDS = ("answer", "no answer")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class QuestionAnswering(Problem):
    """One span or none, learned and judged as SQuAD 2 has it (Rajpurkar, Jia and Liang 2018)."""

    name = "question_answering"
    columns: Mapping[str, pl.DataType] = {
        "context": pl.String(),
        "question": pl.String(),
        "answer": pl.String(),  # "" where the context holds none
        "answer_start": pl.Int64(),  # in characters; -1 where the context holds none
    }
    expects = ({"expect_column_values_to_be_between": {"column": "answer_start", "min_value": -1}},)
    texts = ("context", "question")
    target_texts = ("answer",)
    label = None
    inputs = ("context", "question")
    signs = ("answer_start",)
    targets = ("start", "end")
    reasons = ("answer_not_in_context",)
    outputs = ("start", "end", "score", "null_score", "pooled_embedding")
    higher_is_better = _squad.HIGHER_IS_BETTER
    headline = "f1"

    def realign(self, raw: pl.DataFrame, tidied: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
        """Where the answer stands in the tidied context: of several places, the one nearest to the old one."""
        starts: list[int | None] = [
            _moved(before, now)
            for before, now in zip(raw.iter_rows(named=True), tidied.iter_rows(named=True), strict=True)
        ]
        found = pl.Series("answer_start", starts, dtype=pl.Int64)
        reasons = pl.select(pl.when(found.is_null()).then(pl.lit(self.reasons[0]))).to_series()
        return tidied.with_columns(found), reasons

    def signature(self, train: pl.DataFrame) -> Signature:
        if not (train["answer_start"] >= 0).any():
            raise DataError("No row of the train split has an answer; there is nothing to learn.")
        return {"kinds": list(_KINDS)}

    def encode(
        self, rows: pl.DataFrame, tokenizer: "Tokenizer", signature: Signature | None, max_tokens: int
    ) -> pl.DataFrame:
        if max_tokens < _LEAST_TOKENS:
            raise ParamsError(f"tokenize.max_tokens is {max_tokens}; a question and a passage need {_LEAST_TOKENS}.")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        questions, is_cut = _shortened(rows["question"].to_list(), tokenizer, max_tokens // _QUESTION)
        tokenizer.enable_truncation(max_tokens, stride=max_tokens // _OVERLAP, strategy="only_second")
        encodings = tokenizer.encode_batch(list(zip(questions, rows["context"].to_list(), strict=True)))
        windows = [
            (row, window)
            for row, encoding in enumerate(encodings)
            for window in (encoding, *encoding.overflowing)[:_MOST_WINDOWS]
        ]
        is_cut = [cut or len(one.overflowing) >= _MOST_WINDOWS for cut, one in zip(is_cut, encodings, strict=True)]
        encoded = pl.DataFrame(
            {
                "id": rows["id"].gather([row for row, _ in windows]),
                "input_ids": _text.lists([window.ids for _, window in windows]),
                "truncated": pl.Series([is_cut[row] for row, _ in windows], dtype=pl.Boolean),
                "token_type_ids": _text.lists([window.type_ids for _, window in windows]),
                "context_mask": _text.lists([[int(of == 1) for of in window.sequence_ids] for _, window in windows]),
                "starts": _text.lists([[start for start, _ in window.offsets] for _, window in windows]),
                "ends": _text.lists([[end for _, end in window.offsets] for _, window in windows]),
            }
        )
        if signature is None:
            return encoded
        spans = [(start, start + len(answer)) for start, answer in rows.select("answer_start", "answer").iter_rows()]
        places = [_place(window, *spans[row]) for row, window in windows]
        return encoded.with_columns(
            start=pl.Series([first for first, _ in places], dtype=pl.Int32),
            end=pl.Series([last for _, last in places], dtype=pl.Int32),
        )

    def learned(self, encoded: pl.DataFrame, seed: int) -> pl.DataFrame:
        """Every window with an answer, one of each row that has none, and one in ten of the rest, which is most."""
        drawn = pl.Series("drawn", np.random.default_rng(seed).random(len(encoded)))
        holds_it = pl.col("end") > 0
        is_first = (pl.col("drawn") == pl.col("drawn").min().over("id")) & ~holds_it.any().over("id")
        return (
            encoded.with_columns(drawn).filter(holds_it | is_first | (pl.col("drawn") < _SHARE_OF_OTHERS)).drop("drawn")
        )

    def augment(self, encoded: pl.DataFrame, specials: Sequence[int], draw: Draw) -> pl.DataFrame:
        """The question alone: an answer is a span of the passage, which has to be there whole and in order."""
        tokens = encoded.select("input_ids", "context_mask").iter_rows()
        movable = [
            [token not in specials and not is_context for token, is_context in zip(*row, strict=True)] for row in tokens
        ]
        order = draw(pl.Series(movable, dtype=pl.List(pl.Boolean)))
        places = order.to_list()
        moved = {
            name: [row.index(place) for row, place in zip(places, encoded[name], strict=True)] for name in self.targets
        }
        return encoded.with_columns(
            pl.col("input_ids", "token_type_ids", "context_mask", "starts", "ends").list.gather(order),
            *(pl.Series(name, found, dtype=pl.Int32) for name, found in moved.items()),
        )

    def batch(self, encoded: pl.DataFrame, pad_id: int) -> dict[str, NDArray[np.int64]]:
        arrays = _text.padded(encoded, pad_id, ("token_type_ids", "context_mask"))
        if "start" in encoded.columns:
            arrays["start_positions"] = encoded["start"].to_numpy().astype(np.int64)
            arrays["end_positions"] = encoded["end"].to_numpy().astype(np.int64)
        return arrays

    def build(
        self, base: str | Scratch, vocabulary: int, signature: Signature, *, dropout: float, attention: str
    ) -> "PreTrainedModel":
        from tasks.pretrained import build

        return build("AutoModelForQuestionAnswering", base, vocabulary, dropout, attention)

    def exportable(self, model: "PreTrainedModel") -> "nn.Module":
        return _spans.expected_overlap(model)

    def gather(self, outputs: Arrays, encoded: pl.DataFrame) -> Arrays:
        """The best span of each window side by side (`start` and `end` in characters of the context, `score` over
        having no answer), and the mean embedding, by row.
        """
        spans = _spans.by_row(outputs, encoded)
        embedding_WD, firsts_N = outputs["pooled_embedding"], spans.pop("window")[:, 0]
        if len(firsts_N):
            sizes_N = np.diff(np.append(firsts_N, len(encoded)))
            embedding_WD = np.add.reduceat(embedding_WD, firsts_N, axis=0) / sizes_N[:, None]
        return {**spans, "pooled_embedding": embedding_WD.astype(np.float32)}

    def compare(self, reference: Arrays, outputs: Arrays) -> tuple[float, float]:
        expected_W, found_W = (one["score"] - one["null_score"] for one in (reference, outputs))
        elsewhere_W = (reference["start"] != outputs["start"]) | (reference["end"] != outputs["end"])
        changed_W = ((expected_W > 0) != (found_W > 0)) | ((expected_W > 0) & elsewhere_W)
        return float(np.abs(_classification.sigmoid(expected_W) - _classification.sigmoid(found_W)).max()), float(
            changed_W.mean()
        )

    def calibrate(self, outputs: Arrays, encoded: pl.DataFrame, signature: Signature) -> dict[str, float]:
        """What decides between windows and from which margin answering gains more F1 than it loses."""
        return _spans.fit(outputs, encoded)

    def answer(
        self, rows: pl.DataFrame, outputs: Arrays, signature: Signature, calibration: Mapping[str, float]
    ) -> pl.DataFrame:
        best_N, margin_N = _spans.choose(outputs["start"], outputs["score"], calibration.get("late", 0.0))
        starts_N, ends_N = (outputs[name][np.arange(len(rows)), best_N] for name in ("start", "end"))
        beyond_N = margin_N - calibration.get("threshold", 0.0)
        answerable_N = _classification.sigmoid(calibration.get("scale", 1.0) * beyond_N)
        spans = [
            _trimmed(context, int(start), int(end)) if is_answered else (NO_ANSWER, _NOWHERE)
            for context, start, end, is_answered in zip(rows["context"], starts_N, ends_N, beyond_N > 0, strict=True)
        ]
        return _answers(spans, np.maximum(answerable_N, 1 - answerable_N))

    def answer_schema(self, signature: Signature) -> pl.Schema:
        return _ANSWER

    def watched(self, answers: pl.DataFrame) -> pl.DataFrame:
        answer = pl.col("answer")
        return answers.select(
            answered=pl.when(answer == NO_ANSWER).then(pl.lit(_KINDS[1])).otherwise(pl.lit(_KINDS[0])),
            answer_num_words=answer.str.count_matches(r"\w+"),
            probability="probability",
        )

    def agree(self, answers: pl.DataFrame, others: pl.DataFrame) -> pl.Series:
        pairs = zip(answers["answer"], others["answer"], strict=True)
        return pl.Series([None not in pair and exact_match(*pair) for pair in pairs], dtype=pl.Boolean)

    def score(self, rows: pl.DataFrame, answers: pl.DataFrame, signature: Signature) -> pl.DataFrame:
        return _squad.score(rows, answers)

    def measure(
        self,
        rows: pl.DataFrame,
        answers: pl.DataFrame,
        signature: Signature,
        weights_RN: NDArray[np.float64],
        bins: int,
    ) -> dict[str, NDArray[np.float64]]:
        return _squad.measure(rows, answers, weights_RN)

    def baselines(
        self, train: pl.DataFrame, test: pl.DataFrame, signature: Signature, seed: int
    ) -> dict[str, pl.DataFrame]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        tfidf = TfidfVectorizer(sublinear_tf=True, token_pattern=_text.WORD)
        tfidf.fit(train["context"].unique(maintain_order=True))
        asked = [(_sentences(context), question) for context, question in test.select(self.inputs).iter_rows()]
        given = {
            "first_sentence": [sentences[0] for sentences, _ in asked],
            "no_answer": [(NO_ANSWER, _NOWHERE)] * len(test),
            "tfidf_sentence": [_likest(sentences, question, tfidf) for sentences, question in asked],
        }
        return {name: _answers(spans, np.ones(len(test))) for name, spans in given.items()}

    def curves(
        self, rows: pl.DataFrame, answers: pl.DataFrame, signature: Signature, bins: int
    ) -> dict[str, list[dict[str, Any]]]:
        """Of whether there is an answer: what a classifier of two labels has."""
        is_none_N = (answers["answer"] == NO_ANSWER).to_numpy()
        sure_N = answers["probability"].to_numpy()
        none_N = np.where(is_none_N, sure_N, 1 - sure_N)
        actual_N = (rows["answer"] == NO_ANSWER).to_numpy().astype(np.int64)
        return _classification.curves(actual_N, np.stack([1 - none_N, none_N], axis=1), _KINDS, bins)

    def descriptors(self, rows: pl.DataFrame) -> pl.DataFrame:
        words = [pl.col(name).str.to_lowercase().str.extract_all(r"\w+").list.unique() for name in self.inputs]
        shared = words[1].list.set_intersection(words[0]).list.len() / words[1].list.len()
        return rows.select(
            "id",
            *_text.descriptors("context", "context_"),
            *_text.descriptors("question", "question_"),
            share_in_context=pl.when(words[1].list.len() > 0).then(shared).otherwise(0.0),
        )

    def examples(self) -> pl.DataFrame:
        passages = {
            "Ada moved to Paris in 1843. She wrote notes on the engine.": [
                ("Where did Ada move?", "Paris"),
                ("When did Ada move?", "1843"),
                ("What did Ada eat?", ""),
            ],
            "The bridge was built by Roman soldiers. A flood took it in 1602.": [
                ("Who built the bridge?", "Roman soldiers"),
                ("What took the bridge?", "A flood"),
                ("Who paid for it?", ""),
            ],
        }
        rows = [
            {"context": context, "question": question, "answer": answer}
            | {"answer_start": context.find(answer) if answer else _NOWHERE}
            for context, asked in passages.items()
            for question, answer in asked
        ]
        ids = pl.Series("id", [f"e{number}" for number in range(len(rows))])
        return pl.DataFrame(rows, schema=self.columns).select(ids, *self.columns)


_ANSWER = pl.Schema({"answer": pl.String(), "answer_start": pl.Int64(), "probability": pl.Float64()})


def _answers(spans: Sequence[tuple[str, int]], probability_N: NDArray[np.float64]) -> pl.DataFrame:
    texts, starts = [text for text, _ in spans], [start for _, start in spans]
    return pl.DataFrame({"answer": texts, "answer_start": starts, "probability": probability_N}, schema=_ANSWER)


def _trimmed(context: str, start: int, end: int) -> tuple[str, int]:
    """The span without white space at its ends, which tokens of some vocabularies bring along."""
    text = context[start:end]
    return text.strip(), start + len(text) - len(text.lstrip())


def _moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> int | None:
    """Where the answer stands now; None where it did not stand where it was said to, or stands nowhere now."""
    answer, start = before["answer"], before["answer_start"]
    if answer is None or start is None:
        return None
    if start == _NOWHERE and answer == NO_ANSWER:
        return _NOWHERE
    if start < 0 or not answer or before["context"][start : start + len(answer)] != answer or not now["answer"]:
        return None
    expected = start * len(now["context"]) / len(before["context"])
    places = [found.start() for found in re.finditer(f"(?={re.escape(now['answer'])})", now["context"])]
    return min(places, key=lambda place: abs(place - expected), default=None)


def _shortened(questions: Sequence[str], tokenizer: "Tokenizer", most: int) -> tuple[list[str], list[bool]]:
    """The questions with at most so many tokens, and which of them had more."""
    encodings = tokenizer.encode_batch(list(questions), add_special_tokens=False)
    is_cut = [len(encoding.ids) > most for encoding in encodings]
    return [
        question[: encoding.offsets[most - 1][1]] if cut else question
        for question, encoding, cut in zip(questions, encodings, is_cut, strict=True)
    ], is_cut


def _place(window: "Encoding", start: int, end: int) -> tuple[int, int]:
    """The first and the last token of the answer; 0 and 0 where the window does not hold all of it."""
    tokens = [token for token, of in enumerate(window.sequence_ids) if of == 1]
    if start < 0 or not tokens or window.offsets[tokens[0]][0] > start or window.offsets[tokens[-1]][1] < end:
        return 0, 0
    first = next(token for token in tokens if window.offsets[token][1] > start)
    last = next(token for token in reversed(tokens) if window.offsets[token][0] < end)
    return first, last


def _sentences(context: str) -> list[tuple[str, int]]:
    """The sentences of a passage, one at the least, and where each begins."""
    ends = [*(found.end() for found in _SENTENCE_END.finditer(context)), len(context)]
    return [(context[start:end].strip(), start) for start, end in zip([0, *ends], ends, strict=False)]


def _likest(sentences: Sequence[tuple[str, int]], question: str, tfidf: Any) -> tuple[str, int]:
    """The sentence whose words are most like the question's, by the cosine of TF-IDF; the first of equals."""
    likeness = (tfidf.transform([text for text, _ in sentences]) @ tfidf.transform([question]).T).toarray()
    return sentences[int(likeness[:, 0].argmax())]


PROBLEM = QuestionAnswering()
