"""What problems share in which an encoder gives one text some labels: inputs, the model, the graph, counted words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from tasks.params import Scratch
from tasks.problems import Draw, _text

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def encode(rows: pl.DataFrame, tokenizer: "Tokenizer", max_tokens: int) -> pl.DataFrame:
    """`id`, `input_ids` and `truncated` of each row's text, which is cut where it is longer than the model."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    encodings = tokenizer.encode_batch(rows["text"].to_list())
    return pl.DataFrame(
        {
            "id": rows["id"],
            "input_ids": _text.lists([encoding.ids for encoding in encodings]),
            "truncated": pl.Series([bool(encoding.overflowing) for encoding in encodings], dtype=pl.Boolean),
        }
    )


def augment(encoded: pl.DataFrame, specials: Sequence[int], draw: Draw) -> pl.DataFrame:
    """The rows with the tokens of their texts changed: a label is that of the text as a whole."""
    movable = encoded["input_ids"].list.eval(~pl.element().is_in(list(specials)))
    return encoded.with_columns(pl.col("input_ids").list.gather(draw(movable)))


def build(
    base: str | Scratch, vocabulary: int, labels: Sequence[str], dropout: float, attention: str, **config: Any
) -> "PreTrainedModel":
    """The encoder with a logit for each label, in their order; `config` is transformers' own."""
    from tasks.pretrained import build

    return build(
        "AutoModelForSequenceClassification",
        base,
        vocabulary,
        dropout,
        attention,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        **config,
    )


def exportable(model: "PreTrainedModel") -> "nn.Module":
    """A module from a batch to `logits` (BK) and `pooled_embedding` (BD)."""
    import torch

    class ClassifierWithEmbedding(torch.nn.Module):
        """Logits, and the embedding."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: "Tensor", attention_mask: "Tensor") -> tuple["Tensor", "Tensor"]:
            out = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
            return out.logits, _text.pooled(out.hidden_states[-1], attention_mask)

    return ClassifierWithEmbedding()


def word_features(train: pl.Series, test: pl.Series) -> tuple[Any, Any]:
    """TF-IDF of the texts' words and pairs of words, weighed as in the train texts: what baselines learn from."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_text.WORD)
    return tfidf.fit_transform(train), tfidf.transform(test)
