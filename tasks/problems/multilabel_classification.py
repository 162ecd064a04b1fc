"""Any number of labels for a text, none among them. Each label has a probability and a threshold of its own."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.errors import DataError
from tasks.params import Scratch
from tasks.problems import Arrays, Draw, Problem, Signature, _classification, _encoder, _multilabel, _text

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import nn
    from transformers import PreTrainedModel


class MultilabelClassification(Problem):
    """Labels that do not exclude each other: a set a row, as `_multilabel` writes it."""

    name = "multilabel_classification"
    columns: Mapping[str, pl.DataType] = {"text": pl.String(), "labels": pl.String()}
    expects = ({"expect_column_values_to_not_match_regex": {"column": "labels", "regex": _multilabel.TWICE}},)
    texts = ("text",)
    label = "labels"
    separator = _multilabel.SEPARATOR
    inputs = ("text",)
    signs = ("labels",)
    targets = ("labels",)
    reasons = ("malformed_labels",)
    outputs = ("logits", "pooled_embedding")
    higher_is_better = _multilabel.HIGHER_IS_BETTER
    headline = "f1_micro"

    def realign(self, raw: pl.DataFrame, tidied: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
        is_malformed = _multilabel.malformed(tidied["labels"])
        return tidied, pl.select(pl.when(is_malformed).then(pl.lit(self.reasons[0]))).to_series()

    def signature(self, train: pl.DataFrame) -> Signature:
        if _multilabel.canonical(train["labels"]).n_unique() < 2:
            one = next(iter(train["labels"]), "") or _multilabel.NO_LABEL
            raise DataError(f"All rows of the train split have the same labels, {one}; there is nothing to tell apart.")
        return {"labels": _multilabel.names_of(train["labels"])}

    def encode(
        self, rows: pl.DataFrame, tokenizer: "Tokenizer", signature: Signature | None, max_tokens: int
    ) -> pl.DataFrame:
        encoded = _encoder.encode(rows, tokenizer, max_tokens)
        if signature is None:
            return encoded
        has_NK = _multilabel.membership(rows["labels"], signature["labels"])
        kind = pl.Array(pl.UInt8, len(signature["labels"]))
        return encoded.with_columns(pl.Series("labels", has_NK.astype(np.uint8), dtype=kind))

    def augment(self, encoded: pl.DataFrame, specials: Sequence[int], draw: Draw) -> pl.DataFrame:
        return _encoder.augment(encoded, specials, draw)

    def batch(self, encoded: pl.DataFrame, pad_id: int) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {**_text.padded(encoded, pad_id)}
        if "labels" in encoded.columns:
            arrays["labels"] = encoded["labels"].to_numpy().astype(np.float32)
        return arrays

    def build(
        self, base: str | Scratch, vocabulary: int, signature: Signature, *, dropout: float, attention: str
    ) -> "PreTrainedModel":
        # transformers then learns by binary cross-entropy, each label by itself.
        kind = "multi_label_classification"
        return _encoder.build(base, vocabulary, signature["labels"], dropout, attention, problem_type=kind)

    def exportable(self, model: "PreTrainedModel") -> "nn.Module":
        return _encoder.exportable(model)

    def compare(self, reference: Arrays, outputs: Arrays) -> tuple[float, float]:
        expected_NK, found_NK = (_classification.sigmoid(one["logits"]) for one in (reference, outputs))
        changed_N = ((expected_NK >= _multilabel.EVEN) != (found_NK >= _multilabel.EVEN)).any(axis=1)
        return float(np.abs(expected_NK - found_NK).max()), float(changed_N.mean())

    def calibrate(self, outputs: Arrays, encoded: pl.DataFrame, signature: Signature) -> dict[str, float]:
        """A temperature for all labels, and with it the threshold of each, for its F1."""
        actual_NK = encoded["labels"].to_numpy() > 0
        temperature = _multilabel.fit_temperature(outputs["logits"], actual_NK)
        probabilities_NK = _classification.sigmoid(outputs["logits"] / temperature)
        thresholds = {
            _threshold_of(name): _multilabel.fit_threshold(probabilities_NK[:, k], actual_NK[:, k])
            for k, name in enumerate(signature["labels"])
        }
        return {"temperature": temperature, **thresholds}

    def answer(
        self, rows: pl.DataFrame, outputs: Arrays, signature: Signature, calibration: Mapping[str, float]
    ) -> pl.DataFrame:
        names = signature["labels"]
        probabilities_NK = _classification.sigmoid(outputs["logits"] / calibration.get("temperature", 1.0))
        thresholds_K = np.array([calibration.get(_threshold_of(name), _multilabel.EVEN) for name in names])
        return _multilabel.answers(probabilities_NK >= thresholds_K, probabilities_NK, names)

    def answer_schema(self, signature: Signature) -> pl.Schema:
        return _multilabel.answer_schema(signature["labels"])

    def watched(self, answers: pl.DataFrame) -> pl.DataFrame:
        labels = pl.col("labels")
        return answers.select(
            labels=pl.when(labels == "").then(pl.lit(_multilabel.NO_LABEL)).otherwise(labels),
            num_labels=pl.when(labels == "")
            .then(0)
            .otherwise(labels.str.count_matches(self.separator, literal=True) + 1),
            probability="probability",
        )

    def agree(self, answers: pl.DataFrame, others: pl.DataFrame) -> pl.Series:
        given, right = (_multilabel.canonical(side["labels"]) for side in (answers, others))
        return (given == right).fill_null(value=False)

    def score(self, rows: pl.DataFrame, answers: pl.DataFrame, signature: Signature) -> pl.DataFrame:
        return _multilabel.score(rows["id"], *_truth_and_answers(rows, answers, signature))

    def measure(
        self,
        rows: pl.DataFrame,
        answers: pl.DataFrame,
        signature: Signature,
        weights_RN: NDArray[np.float64],
        bins: int,
    ) -> dict[str, NDArray[np.float64]]:
        return _multilabel.measure(*_truth_and_answers(rows, answers, signature), signature["labels"], weights_RN)

    def baselines(
        self, train: pl.DataFrame, test: pl.DataFrame, signature: Signature, seed: int
    ) -> dict[str, pl.DataFrame]:
        names = signature["labels"]
        features, test_features = _encoder.word_features(train["text"], test["text"])
        actual_NK = _multilabel.membership(train["labels"], names)
        return {
            "commonest_set": _multilabel.commonest_set(train["labels"], names, len(test)),
            "tfidf_one_vs_rest": _multilabel.one_vs_rest(features, actual_NK, test_features, names),
        }

    def curves(
        self, rows: pl.DataFrame, answers: pl.DataFrame, signature: Signature, bins: int
    ) -> dict[str, list[dict[str, Any]]]:
        return _multilabel.curves(*_truth_and_answers(rows, answers, signature), signature["labels"], bins)

    def descriptors(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select("id", *_text.descriptors("text"))

    def examples(self) -> pl.DataFrame:
        said = {
            "a laugh": "funny",
            "what a laugh it was": "funny",
            "a warm story": "warm",
            "warm and gentle": "warm",
            "much too long": "long",
            "so long a story": "long",
            "a long laugh": "funny|long",
            "a warm laugh": "funny|warm",
            "a long and warm story": "long|warm",
            "a long and warm laugh": "funny|long|warm",
            "the second part": "",
            "shown on friday": "",
        }
        ids = [f"e{number}" for number in range(len(said))]
        return pl.DataFrame({"id": ids, "text": list(said), "labels": list(said.values())})


def _threshold_of(label: str) -> str:
    return f"threshold[{label}]"


def _truth_and_answers(
    rows: pl.DataFrame, answers: pl.DataFrame, signature: Signature
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64]]:
    names = signature["labels"]
    actual_NK, given_NK = (_multilabel.membership(side["labels"], names) for side in (rows, answers))
    return actual_NK, given_NK, answers["probabilities"].to_numpy()


PROBLEM = MultilabelClassification()
