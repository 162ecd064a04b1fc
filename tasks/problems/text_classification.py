"""One label for a text. The label with the highest probability is the answer."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.errors import DataError
from tasks.params import Scratch
from tasks.problems import Arrays, Draw, Problem, Signature, _classification, _encoder, _text

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import nn
    from transformers import PreTrainedModel


class TextClassification(Problem):
    """Binary and multi-class: exactly one label a row."""

    name = "text_classification"
    columns: Mapping[str, pl.DataType] = {"text": pl.String(), "label": pl.String()}
    texts = ("text",)
    label = "label"
    inputs = ("text",)
    signs = ("label",)
    targets = ("label",)
    outputs = ("logits", "pooled_embedding")
    higher_is_better = _classification.HIGHER_IS_BETTER
    headline = "accuracy"

    def signature(self, train: pl.DataFrame) -> Signature:
        labels = sorted(train["label"].unique().to_list())
        if len(labels) < 2:
            raise DataError(
                f"The train split has one label only ({', '.join(labels)}); there is nothing to tell apart."
            )
        return {"labels": labels}

    def encode(
        self, rows: pl.DataFrame, tokenizer: "Tokenizer", signature: Signature | None, max_tokens: int
    ) -> pl.DataFrame:
        encoded = _encoder.encode(rows, tokenizer, max_tokens)
        if signature is None:
            return encoded
        return encoded.with_columns(label=_classification.label_numbers(rows["label"], signature["labels"]))

    def augment(self, encoded: pl.DataFrame, specials: Sequence[int], draw: Draw) -> pl.DataFrame:
        return _encoder.augment(encoded, specials, draw)

    def batch(self, encoded: pl.DataFrame, pad_id: int) -> dict[str, NDArray[np.int64]]:
        arrays = _text.padded(encoded, pad_id)
        if "label" in encoded.columns:
            arrays["labels"] = encoded["label"].to_numpy().astype(np.int64)
        return arrays

    def build(
        self, base: str | Scratch, vocabulary: int, signature: Signature, *, dropout: float, attention: str
    ) -> "PreTrainedModel":
        return _encoder.build(base, vocabulary, signature["labels"], dropout, attention)

    def exportable(self, model: "PreTrainedModel") -> "nn.Module":
        return _encoder.exportable(model)

    def compare(self, reference: Arrays, outputs: Arrays) -> tuple[float, float]:
        expected_NK, found_NK = _classification.softmax(reference["logits"]), _classification.softmax(outputs["logits"])
        changed_N = expected_NK.argmax(axis=1) != found_NK.argmax(axis=1)
        return float(np.abs(expected_NK - found_NK).max()), float(changed_N.mean())

    def answer(
        self, rows: pl.DataFrame, outputs: Arrays, signature: Signature, calibration: Mapping[str, float]
    ) -> pl.DataFrame:
        probabilities_NK = _classification.softmax(outputs["logits"] / calibration.get("temperature", 1.0))
        return _classification.answers(probabilities_NK, signature["labels"])

    def answer_schema(self, signature: Signature) -> pl.Schema:
        return _classification.answer_schema(signature["labels"])

    def agree(self, answers: pl.DataFrame, others: pl.DataFrame) -> pl.Series:
        return (answers["label"] == others["label"]).fill_null(value=False)

    def calibrate(self, outputs: Arrays, encoded: pl.DataFrame, signature: Signature) -> dict[str, float]:
        return {"temperature": _classification.fit_temperature(outputs["logits"], encoded["label"].to_numpy())}

    def score(self, rows: pl.DataFrame, answers: pl.DataFrame, signature: Signature) -> pl.DataFrame:
        return _classification.score(rows["id"], *_truth_and_answers(rows, answers, signature))

    def measure(
        self,
        rows: pl.DataFrame,
        answers: pl.DataFrame,
        signature: Signature,
        weights_RN: NDArray[np.float64],
        bins: int,
    ) -> dict[str, NDArray[np.float64]]:
        actual_N, probabilities_NK = _truth_and_answers(rows, answers, signature)
        return _classification.measure(actual_N, probabilities_NK, signature["labels"], weights_RN, bins)

    def baselines(
        self, train: pl.DataFrame, test: pl.DataFrame, signature: Signature, seed: int
    ) -> dict[str, pl.DataFrame]:
        features, test_features = _encoder.word_features(train["text"], test["text"])
        names = signature["labels"]
        return {
            "majority": _classification.majority(train["label"], names, len(test)),
            "tfidf_logistic_regression": _classification.logistic_regression(
                features, train["label"], test_features, names
            ),
        }

    def curves(
        self, rows: pl.DataFrame, answers: pl.DataFrame, signature: Signature, bins: int
    ) -> dict[str, list[dict[str, Any]]]:
        actual_N, probabilities_NK = _truth_and_answers(rows, answers, signature)
        return _classification.curves(actual_N, probabilities_NK, signature["labels"], bins)

    def descriptors(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select("id", *_text.descriptors("text"))

    def examples(self) -> pl.DataFrame:
        good = ["a warm and moving film", "funny from start to end", "a triumph", "the best in years", "I loved it"]
        bad = ["a dull and empty film", "tedious from start to end", "a failure", "the worst in years", "I hated it"]
        return pl.DataFrame(
            {
                "id": [f"e{number}" for number in range(10)],
                "text": good + bad,
                "label": ["positive"] * 5 + ["negative"] * 5,
            }
        )


def _truth_and_answers(
    rows: pl.DataFrame, answers: pl.DataFrame, signature: Signature
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    return _classification.label_numbers(rows["label"], signature["labels"]), answers["probabilities"].to_numpy()


PROBLEM = TextClassification()
