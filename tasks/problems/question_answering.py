"""The answer to a question as a span of a passage, or that the passage holds none.

A passage that is longer than the model is read in overlapping windows. The exported graph chooses each window's best
span itself, so that its outputs have one size whatever the length. Arrays are named by shape: W windows, N rows.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.errors import DataError, ParamsError
from tasks.params import Scratch
from tasks.problems import Arrays, Signature, _classification, _text

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# The longest question is half of a window, and a quarter of it is shared with the window before; room for the rest of
# the passage is left in windows of so many tokens.
_QUESTION, _OVERLAP, _LEAST_TOKENS = 2, 4, 16

# What is read of one passage at most; clean.max_chars decides for training.
_MOST_WINDOWS = 64

# Of the windows without an answer that are learned from.
_SHARE_OF_OTHERS = 0.1

_MOST_ANSWER_TOKENS = 96

# Where a passage holds no answer.
_NO_ANSWER, _NOWHERE = "", -1

_KINDS = ("answer", "no answer")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class QuestionAnswering:
    """One span or none, learned and judged as SQuAD 2 has it (Rajpurkar, Jia and Liang 2018)."""

    name = "question_answering"
    columns: Mapping[str, pl.DataType] = {
        "context": pl.String(),
        "question": pl.String(),
        "answer": pl.String(),  # "" where the context holds none
        "answer_start": pl.Int64(),  # in characters; -1 where the context holds none
    }
    texts = ("context", "question")
    target_texts = ("answer",)
    label = None
    inputs = ("context", "question")
    signs = ("answer_start",)
    targets = ("start", "end")
    reasons = ("answer_not_in_context",)
    outputs = ("start", "end", "score", "null_score", "pooled_embedding")
    decoding = ()
    writes: str | None = None
    reads_whole = False
    higher_is_better: Mapping[str, bool] = {
        "f1": True,
        "exact_match": True,
        "answerability": True,
        "f1_where_answered": True,
        "exact_match_where_answered": True,
        "no_answer_recall": True,
    }
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

    def packed(self, encoded: pl.DataFrame, max_tokens: int, seed: int) -> pl.DataFrame:
        return encoded

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
        return _best_span(model)

    def traced(self, model: "PreTrainedModel", batch: Arrays) -> Arrays:
        return batch

    def gather(self, outputs: Arrays, encoded: pl.DataFrame) -> Arrays:
        """`start` and `end` in characters of the context, `margin` over having no answer, and the embedding, by row."""
        best_N, firsts_N = _best_windows(outputs, encoded)
        chosen = encoded[best_N].with_columns(
            pl.Series("first", outputs["start"][best_N]), pl.Series("last", outputs["end"][best_N])
        )
        if not len(firsts_N):
            sums_ND = nulls_N = sizes_N = outputs["null_score"][:0]
            embedding_ND = outputs["pooled_embedding"][:0]
        else:
            sums_ND = np.add.reduceat(outputs["pooled_embedding"], firsts_N, axis=0)
            sizes_N = np.diff(np.append(firsts_N, len(encoded)))
            nulls_N = np.minimum.reduceat(outputs["null_score"], firsts_N)
            embedding_ND = (sums_ND / sizes_N[:, None]).astype(np.float32)
        return {
            "start": chosen.select(pl.col("starts").list.get(pl.col("first"))).to_series().to_numpy().astype(np.int64),
            "end": chosen.select(pl.col("ends").list.get(pl.col("last"))).to_series().to_numpy().astype(np.int64),
            "margin": outputs["score"][best_N] - nulls_N,
            "pooled_embedding": embedding_ND,
        }

    def compare(self, reference: Arrays, outputs: Arrays) -> tuple[float, float]:
        expected_W, found_W = (one["score"] - one["null_score"] for one in (reference, outputs))
        elsewhere_W = (reference["start"] != outputs["start"]) | (reference["end"] != outputs["end"])
        changed_W = ((expected_W > 0) != (found_W > 0)) | ((expected_W > 0) & elsewhere_W)
        return float(np.abs(_sigmoid(expected_W) - _sigmoid(found_W)).max()), float(changed_W.mean())

    def calibrate(self, outputs: Arrays, encoded: pl.DataFrame, signature: Signature) -> dict[str, float]:
        """The margin from which answering gains more F1 than it loses, and how sure a margin beyond it makes."""
        best_N, firsts_N = _best_windows(outputs, encoded)
        targets = encoded.select("start", "end").to_numpy()
        answerable_N = np.logical_or.reduceat(targets[:, 1] > 0, firsts_N)
        nulls_N = np.minimum.reduceat(outputs["null_score"], firsts_N)
        margins_N = (outputs["score"][best_N] - nulls_N).astype(np.float64)
        found = np.stack([outputs["start"][best_N], outputs["end"][best_N]], axis=1)
        gains_N = np.where(answerable_N, _overlap(found, targets[best_N]), -1.0)
        threshold = _best_threshold(margins_N, gains_N)
        return {"scale": _fit_scale(margins_N - threshold, answerable_N), "threshold": threshold}

    def answer(
        self, rows: pl.DataFrame, outputs: Arrays, signature: Signature, calibration: Mapping[str, float]
    ) -> pl.DataFrame:
        beyond_N = outputs["margin"].astype(np.float64) - calibration.get("threshold", 0.0)
        answerable_N = _sigmoid(calibration.get("scale", 1.0) * beyond_N)
        spans = [
            _trimmed(context, int(start), int(end)) if is_answered else (_NO_ANSWER, _NOWHERE)
            for context, start, end, is_answered in zip(
                rows["context"], outputs["start"], outputs["end"], beyond_N > 0, strict=True
            )
        ]
        return _answers(spans, np.maximum(answerable_N, 1 - answerable_N))

    def answer_schema(self, signature: Signature) -> pl.Schema:
        return _ANSWER

    def watched(self, answers: pl.DataFrame) -> pl.DataFrame:
        answer = pl.col("answer")
        return answers.select(
            answered=pl.when(answer == _NO_ANSWER).then(pl.lit(_KINDS[1])).otherwise(pl.lit(_KINDS[0])),
            answer_num_words=answer.str.count_matches(r"\w+"),
            probability="probability",
        )

    def agree(self, answers: pl.DataFrame, others: pl.DataFrame) -> pl.Series:
        pairs = zip(answers["answer"], others["answer"], strict=True)
        return pl.Series([None not in pair and exact_match(*pair) for pair in pairs], dtype=pl.Boolean)

    def score(self, rows: pl.DataFrame, answers: pl.DataFrame, signature: Signature) -> pl.DataFrame:
        scored = [
            (exact_match(right, given), f1(right, given), (right == _NO_ANSWER) == (given == _NO_ANSWER))
            for right, given in zip(rows["answer"], answers["answer"], strict=True)
        ]
        schema = {"correct": pl.Boolean, "f1": pl.Float64, "answerability_right": pl.Boolean}
        return pl.concat(
            [rows.select("id"), pl.DataFrame(scored, schema=schema, orient="row")],
            how="horizontal",
        )

    def measure(
        self,
        rows: pl.DataFrame,
        answers: pl.DataFrame,
        signature: Signature,
        weights_RN: NDArray[np.float64],
        bins: int,
    ) -> dict[str, NDArray[np.float64]]:
        scored = self.score(rows, answers, signature)
        exact_N, f1_N, right_N = (scored[name].to_numpy() for name in ("correct", "f1", "answerability_right"))
        has_answer_N = (rows["answer"] != _NO_ANSWER).to_numpy()
        return {
            "f1": _mean(f1_N, weights_RN),
            "exact_match": _mean(exact_N, weights_RN),
            "answerability": _mean(right_N, weights_RN),
            "f1_where_answered": _mean(f1_N, weights_RN, has_answer_N),
            "exact_match_where_answered": _mean(exact_N, weights_RN, has_answer_N),
            "no_answer_recall": _mean(exact_N, weights_RN, ~has_answer_N),
        }

    def baselines(
        self, train: pl.DataFrame, test: pl.DataFrame, signature: Signature, seed: int
    ) -> dict[str, pl.DataFrame]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        tfidf = TfidfVectorizer(sublinear_tf=True, token_pattern=_text.WORD)
        tfidf.fit(train["context"].unique(maintain_order=True))
        sure_N = np.ones(len(test))
        sentences = [
            _likest_sentence(context, question, tfidf)
            for context, question in test.select("context", "question").iter_rows()
        ]
        return {
            "no_answer": _answers([(_NO_ANSWER, _NOWHERE)] * len(test), sure_N),
            "tfidf_sentence": _answers(sentences, sure_N),
        }

    def curves(
        self, rows: pl.DataFrame, answers: pl.DataFrame, signature: Signature, bins: int
    ) -> dict[str, list[dict[str, Any]]]:
        """Of whether there is an answer: what a classifier of two labels has."""
        is_none_N = (answers["answer"] == _NO_ANSWER).to_numpy()
        sure_N = answers["probability"].to_numpy()
        none_N = np.where(is_none_N, sure_N, 1 - sure_N)
        actual_N = (rows["answer"] == _NO_ANSWER).to_numpy().astype(np.int64)
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


def exact_match(right: str, given: str) -> bool:
    """Whether both are the same words, as SQuAD counts: without case, punctuation, articles."""
    return _words(right) == _words(given)


def f1(right: str, given: str) -> float:
    """How well the bags of words agree, 0 to 1; where either has no words, whether neither has any."""
    right_words, given_words = _words(right), _words(given)
    if not right_words or not given_words:
        return float(right_words == given_words)
    shared = (Counter(right_words) & Counter(given_words)).total()
    return 2 * shared / (len(right_words) + len(given_words))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


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
    if start == _NOWHERE and answer == _NO_ANSWER:
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


def _best_windows(outputs: Arrays, encoded: pl.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row its window with the best span (the first of equals), and its first window."""
    is_first_W = _text.begins_row(encoded)
    row_W = np.cumsum(is_first_W) - 1
    order_W = np.lexsort((-outputs["score"], row_W))
    firsts_N = np.flatnonzero(is_first_W)
    return order_W[firsts_N], firsts_N


def _overlap(found: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """F1 by tokens of spans from a first to a last one."""
    shared = np.minimum(found[:, 1], right[:, 1]) - np.maximum(found[:, 0], right[:, 0]) + 1
    sizes = (found[:, 1] - found[:, 0] + 1) + (right[:, 1] - right[:, 0] + 1)
    return np.asarray(2 * np.maximum(shared, 0) / sizes, dtype=np.float64)


def _best_threshold(margins_N: NDArray[np.float64], gains_N: NDArray[np.float64]) -> float:
    """Where to begin to answer, so that the sum of the gains of what is answered is the largest.

    Half-way between the margins to both sides, and rounded to six decimals.
    """
    order = np.argsort(-margins_N, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(gains_N[order])])
    margins = margins_N[order]
    is_cut = np.concatenate([[True], np.diff(margins) < 0, [True]])  # between equals there is none
    most = int(np.argmax(np.where(is_cut, sums, -np.inf)))
    edges = np.concatenate([[margins[0] + 1], margins, [margins[-1] - 1]])
    return round(float((edges[most] + edges[most + 1]) / 2), 6)


def _fit_scale(beyond_N: NDArray[np.float64], answerable_N: NDArray[np.bool_]) -> float:
    """The s for which sigmoid(s · margin) has the least log loss (Platt 1999, without the shift), 0.01 to 100."""
    from scipy.optimize import minimize_scalar

    signed_N = np.where(answerable_N, beyond_N, -beyond_N)

    def log_loss(log_scale: float) -> float:
        return float(np.logaddexp(0.0, -np.exp(log_scale) * signed_N).mean())

    found = minimize_scalar(log_loss, bounds=(np.log(0.01), np.log(100)), method="bounded", options={"xatol": 1e-7})
    return round(float(np.exp(found.x)), 6)


def _sigmoid(margin_N: NDArray[Any]) -> NDArray[np.float64]:
    from scipy.special import expit

    return np.asarray(expit(margin_N.astype(np.float64)))


def _mean(
    values_N: NDArray[Any], weights_RN: NDArray[np.float64], where_N: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """The weighted mean of the rows in `where_N`, under each weighting; NaN where those have no weight."""
    if where_N is not None:
        values_N, weights_RN = values_N[where_N], weights_RN[:, where_N]
    total_R = weights_RN.sum(axis=1)
    sums_R = (weights_RN * values_N.astype(np.float64)).sum(axis=1)
    return np.asarray(np.divide(sums_R, total_R, out=np.full(len(weights_RN), np.nan), where=total_R > 0))


def _likest_sentence(context: str, question: str, tfidf: Any) -> tuple[str, int]:
    """The sentence whose words are most like the question's, by the cosine of TF-IDF."""
    ends = [*(found.end() for found in _SENTENCE_END.finditer(context)), len(context)]
    sentences = [(context[start:end].strip(), start) for start, end in zip([0, *ends], ends, strict=False)]
    likeness = (tfidf.transform([text for text, _ in sentences]) @ tfidf.transform([question]).T).toarray()
    return sentences[int(likeness[:, 0].argmax())]


def _best_span(model: "PreTrainedModel") -> "nn.Module":
    import inspect

    import torch

    reads_types = "token_type_ids" in inspect.signature(model.forward).parameters

    class BestSpan(torch.nn.Module):
        """The span of context tokens with the highest start and end logits together, and what having none scores."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, input_ids: "Tensor", attention_mask: "Tensor", token_type_ids: "Tensor", context_mask: "Tensor"
        ) -> tuple["Tensor", ...]:
            types = {"token_type_ids": token_type_ids} if reads_types else {}
            out = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, **types)
            lowest = torch.finfo(out.start_logits.dtype).min / 4  # two of them can still be added
            start_BT = torch.where(context_mask > 0, out.start_logits, lowest)
            end_BT = torch.where(context_mask > 0, out.end_logits, lowest)
            place_T = torch.arange(input_ids.shape[1], device=input_ids.device)
            length_TT = place_T[None, :] - place_T[:, None]
            allowed_TT = (length_TT >= 0) & (length_TT < _MOST_ANSWER_TOKENS)
            score_BTT = torch.where(allowed_TT, start_BT[:, :, None] + end_BT[:, None, :], 2 * lowest)
            ending_BT, ends_BT = score_BTT.max(dim=2)
            score_B, starts_B = ending_BT.max(dim=1)
            return (
                starts_B,
                ends_BT.gather(1, starts_B[:, None])[:, 0],
                score_B,
                out.start_logits[:, 0] + out.end_logits[:, 0],
                _text.pooled(out.hidden_states[-1], attention_mask),
            )

    return BestSpan()


PROBLEM = QuestionAnswering()
