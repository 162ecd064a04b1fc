"""One label for a text. The label with the highest probability is the answer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.errors import DataError
from tasks.params import Scratch, Train
from tasks.problems import Arrays, Signature

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor, nn
    from transformers import PreTrainedModel


class TextClassification:
    """Binary and multi-class: exactly one label a row."""

    name = "text_classification"
    columns: Mapping[str, pl.DataType] = {"text": pl.String(), "label": pl.String()}
    texts = ("text",)
    label = "label"
    inputs = ("text",)
    outputs = ("logits", "embedding")
    headline = "accuracy"

    def signature(self, train: pl.DataFrame) -> Signature:
        labels = sorted(train["label"].unique().to_list())
        if len(labels) < 2:
            raise DataError(f"The train split has one label only ({', '.join(labels)}); there is nothing to tell apart.")
        return {"labels": labels}

    def encode(
        self, rows: pl.DataFrame, tokenizer: "Tokenizer", signature: Signature | None, max_tokens: int
    ) -> pl.DataFrame:
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        encodings = tokenizer.encode_batch(rows["text"].to_list())
        encoded = pl.DataFrame(
            {
                "id": rows["id"],
                "input_ids": pl.Series([encoding.ids for encoding in encodings], dtype=pl.List(pl.Int32)),
                "truncated": pl.Series([bool(encoding.overflowing) for encoding in encodings], dtype=pl.Boolean),
            }
        )
        if signature is None:
            return encoded
        unknown = sorted(set(rows["label"].unique()) - set(signature["labels"]))
        if unknown:
            raise DataError(
                f"Labels that the train split does not have: {', '.join(unknown)}. Collect more rows of them, or take "
                "them out with an expectation on `label`."
            )
        number = {label: index for index, label in enumerate(signature["labels"])}
        return encoded.with_columns(label=rows["label"].replace_strict(number, return_dtype=pl.Int64))

    def batch(self, encoded: pl.DataFrame, pad_id: int) -> dict[str, NDArray[np.int64]]:
        lengths_B = encoded["input_ids"].list.len().to_numpy().astype(np.int64)
        attention_mask_BT = (np.arange(lengths_B.max(initial=0)) < lengths_B[:, None]).astype(np.int64)
        input_ids_BT = np.full(attention_mask_BT.shape, pad_id, dtype=np.int64)
        input_ids_BT[attention_mask_BT == 1] = encoded["input_ids"].explode(empty_as_null=False).to_numpy()
        arrays = {"input_ids": input_ids_BT, "attention_mask": attention_mask_BT}
        if "label" in encoded.columns:
            arrays["labels"] = encoded["label"].to_numpy().astype(np.int64)
        return arrays

    def build(self, base: str | Scratch, vocabulary: int, signature: Signature, train: Train) -> "PreTrainedModel":
        from tasks.pretrained import build_encoder

        return build_encoder(base, vocabulary, signature["labels"], train.dropout, train.attention)

    def exportable(self, model: "PreTrainedModel") -> "nn.Module":
        return _classifier_with_embedding(model)

    def answer(self, outputs: Arrays, signature: Signature, calibration: Mapping[str, float]) -> pl.DataFrame:
        probabilities_NK = _softmax(outputs["logits"] / calibration.get("temperature", 1.0))
        labels = signature["labels"]
        return pl.DataFrame(
            {
                "label": pl.Series([labels[k] for k in probabilities_NK.argmax(axis=1)], dtype=pl.String),
                "probability": probabilities_NK.max(axis=1, initial=0.0),
                "probabilities": pl.Series(probabilities_NK, dtype=pl.Array(pl.Float64, len(labels))),
            }
        )

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


def _softmax(logits_NK: NDArray[Any]) -> NDArray[np.float64]:
    shifted_NK = logits_NK.astype(np.float64) - logits_NK.max(axis=1, keepdims=True, initial=-np.inf)
    exponents_NK = np.exp(shifted_NK)
    return np.asarray(exponents_NK / exponents_NK.sum(axis=1, keepdims=True))


def _classifier_with_embedding(model: "PreTrainedModel") -> "nn.Module":
    import torch

    class ClassifierWithEmbedding(torch.nn.Module):
        """Logits, and the mean of the last layer over the tokens that are no padding (Reimers and Gurevych 2019)."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: "Tensor", attention_mask: "Tensor") -> tuple["Tensor", "Tensor"]:
            out = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
            hidden_BTD = out.hidden_states[-1]
            mask_BT1 = attention_mask[:, :, None].to(hidden_BTD.dtype)
            embedding_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
            return out.logits, embedding_BD

    return ClassifierWithEmbedding()


PROBLEM = TextClassification()
