"""A text said in another language, by an encoder that reads it and a decoder that writes the translation.

A pair of which either side is longer than the model is not learned from, and a text that is longer gets no translation:
half of one would look like a whole one. Arrays are named by shape: N rows, T tokens, D width.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.errors import DataError, ParamsError
from tasks.params import Scratch
from tasks.problems import Arrays, Draw, Problem, Signature, _encoder, _text, _translations
from tasks.problems._encoder_decoder import START

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import nn
    from transformers import PreTrainedModel

# What a label is where the loss looks away.
_NOT_COUNTED = -100

# So many test rows are compared with all of the train split at once.
_ROWS_AT_ONCE = 256

_ANSWER = pl.Schema({"translation": pl.String(), "token_probability": pl.Float64(), "length_ratio": pl.Float64()})


class Translation(Problem):
    """Encoder-decoders of any architecture that transformers has as a sequence-to-sequence language model."""

    name = "translation"
    columns: Mapping[str, pl.DataType] = {"text": pl.String(), "translation": pl.String()}
    expects = ({"expect_column_values_to_match_regex": {"column": "translation", "regex": r"\S"}},)
    texts = ("text",)
    target_texts = ("translation",)
    label = None
    inputs = ("text",)
    signs = ("translation",)
    targets = ("labels",)
    reasons = ("no_translation",)
    outputs = ("nll", "num_tokens", "choices", "pooled_embedding")
    decoding = ("logits",)
    writes = "translation"
    reads_whole = True
    higher_is_better: Mapping[str, bool] = {"chrf": True, "bleu": True, "repetition": False}
    headline = "chrf"

    def realign(self, raw: pl.DataFrame, tidied: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
        is_none = tidied["translation"].fill_null("").str.strip_chars() == ""
        return tidied, pl.select(pl.when(is_none).then(pl.lit(self.reasons[0]))).to_series()

    def signature(self, train: pl.DataFrame) -> Signature:
        if train.is_empty():
            raise DataError("The train split has no pair of texts; there is nothing to learn.")
        return {"words": _translations.cut_into_words(train["translation"])}

    def encode(
        self, rows: pl.DataFrame, tokenizer: "Tokenizer", signature: Signature | None, max_tokens: int
    ) -> pl.DataFrame:
        """`written` is what the decoder has written: the start, and the translation where the rows have one."""
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        read = tokenizer.encode_batch(rows["text"].to_list())
        tokenizer.no_truncation()
        _, last = _text.ends(tokenizer)
        is_told = "translation" in rows.columns
        told = (
            tokenizer.encode_batch(rows["translation"].fill_null("").to_list(), add_special_tokens=False)
            if is_told
            else []
        )
        whole = [[*encoding.ids, last] for encoding in told]
        most = max_tokens - 1  # beside the start
        labels = [ids[:most] for ids in whole] or [[] for _ in read]
        is_cut = [len(ids) > most for ids in whole] or [False for _ in read]
        encoded = pl.DataFrame(
            {
                "id": rows["id"],
                "input_ids": _text.lists([encoding.ids for encoding in read]),
                "truncated": pl.Series(
                    [bool(encoding.overflowing) or cut for encoding, cut in zip(read, is_cut, strict=True)],
                    dtype=pl.Boolean,
                ),
                "written": _text.lists([[START, *ids] for ids in labels]),
            }
        )
        return encoded if signature is None else encoded.with_columns(labels=_text.lists(labels))

    def augment(self, encoded: pl.DataFrame, specials: Sequence[int], draw: Draw) -> pl.DataFrame:
        """The text that is read alone: of the translation every token is what the ones before it should lead to."""
        return _encoder.augment(encoded, specials, draw)

    def batch(self, encoded: pl.DataFrame, pad_id: int) -> dict[str, NDArray[np.int64]]:
        arrays = _text.padded(encoded, pad_id)
        arrays["written"], arrays["written_mask"] = _padded(encoded["written"], 0)
        if "labels" in encoded.columns:
            arrays["labels"], _ = _padded(encoded["labels"], _NOT_COUNTED)
        return arrays

    def build(
        self, base: str | Scratch, vocabulary: int, signature: Signature, *, dropout: float, attention: str
    ) -> "PreTrainedModel":
        from tasks.pretrained import build
        from tasks.problems._encoder_decoder import beginning

        own = beginning(base) if isinstance(base, Scratch) else {}
        model = build("AutoModelForSeq2SeqLM", base, vocabulary, dropout, attention, **own)
        if model.config.decoder_start_token_id is None:
            raise ParamsError(f"base is {base!r}, whose config.json does not say with which token its decoder begins.")
        return model

    def exportable(self, model: "PreTrainedModel") -> "nn.Module":
        from tasks.problems._encoder_decoder import encoder_decoder_with_cache

        return encoder_decoder_with_cache(model)

    def traced(self, model: "PreTrainedModel", batch: Arrays) -> Arrays:
        from tasks.problems._encoder_decoder import nothing_read

        return {**batch, **nothing_read(model, len(batch["input_ids"]))}

    def gather(self, outputs: Arrays, encoded: pl.DataFrame) -> Arrays:
        return {name: array for name, array in outputs.items() if name != "choices"}

    def compare(self, reference: Arrays, outputs: Arrays) -> tuple[float, float]:
        """Of the mean probability of a right translation's tokens, and of the tokens chosen while reading it.

        An answer is another one where any of its tokens would be.
        """
        expected_N, found_N = (
            np.exp(-one["nll"].astype(np.float64) / np.maximum(one["num_tokens"], 1)) for one in (reference, outputs)
        )
        changed_N = reference["choices"] != outputs["choices"]
        return float(np.abs(expected_N - found_N).max()), float(changed_N.mean())

    def perplexity(self, outputs: Arrays, encoded: pl.DataFrame) -> float | None:
        return _text.perplexity(outputs)

    def answer(
        self, rows: pl.DataFrame, outputs: Arrays, signature: Signature, calibration: Mapping[str, float]
    ) -> pl.DataFrame:
        written = outputs.get("translation", np.full(len(rows), "", dtype=object))
        mean_N = outputs["nll"].astype(np.float64) / np.maximum(outputs["num_tokens"], 1)
        # What lies behind the fourth place depends on what was computed beside it.
        return _answers(rows, list(written), np.round(np.exp(-mean_N), 4).tolist())

    def answer_schema(self, signature: Signature) -> pl.Schema:
        return _ANSWER

    def watched(self, answers: pl.DataFrame) -> pl.DataFrame:
        if _text.was_drawn(answers):  # chance has written it, as the caller has asked
            return answers.select()
        translation = answers["translation"].fill_null("")
        return answers.select(
            "token_probability",
            "length_ratio",
            translation_num_chars=pl.col("translation").str.len_chars(),
            repetition=pl.Series([_translations.repetition(text) for text in translation], dtype=pl.Float64),
        )

    def agree(self, answers: pl.DataFrame, others: pl.DataFrame) -> pl.Series:
        if "token_probability" not in others.columns:  # of several right translations the rows know one
            return pl.repeat(None, len(answers), dtype=pl.Boolean, eager=True)
        return (answers["translation"] == others["translation"]).fill_null(value=False)

    def score(self, rows: pl.DataFrame, answers: pl.DataFrame, signature: Signature) -> pl.DataFrame:
        given, right = answers["translation"].to_list(), rows["translation"].to_list()
        return rows.select("id").with_columns(
            chrf=pl.Series(_translations.chrf_of_rows(given, right, signature["words"]), dtype=pl.Float64),
            repetition=pl.Series([_translations.repetition(text) for text in given], dtype=pl.Float64),
        )

    def measure(
        self,
        rows: pl.DataFrame,
        answers: pl.DataFrame,
        signature: Signature,
        weights_RN: NDArray[np.float64],
        bins: int,
    ) -> dict[str, NDArray[np.float64]]:
        given, right = answers["translation"].to_list(), rows["translation"].to_list()
        repetition_N = np.array([_translations.repetition(text) for text in given])
        with np.errstate(invalid="ignore"):  # of a small slice a resample may have drawn no row
            repetition_R = weights_RN @ repetition_N / weights_RN.sum(axis=1)
        return {**_translations.measure(given, right, signature["words"], weights_RN), "repetition": repetition_R}

    def baselines(
        self, train: pl.DataFrame, test: pl.DataFrame, signature: Signature, seed: int
    ) -> dict[str, pl.DataFrame]:
        """The translation of the text that is most like it by TF-IDF, and the text itself, untranslated."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_text.WORD)
        known = tfidf.fit_transform(train["text"])
        nearest: list[int] = []
        for some in test.iter_slices(_ROWS_AT_ONCE):
            nearest += (tfidf.transform(some["text"]) @ known.T).toarray().argmax(axis=1).tolist()
        unsure = [None] * len(test)
        return {
            "nearest_text": _answers(test, train["translation"].gather(nearest).to_list(), unsure),
            "untranslated": _answers(test, test["text"].to_list(), unsure),
        }

    def descriptors(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select("id", *_text.descriptors("text"))

    def examples(self) -> pl.DataFrame:
        pairs: Mapping[str, str] = {
            "The sun rises in the east and sets in the west.": "太阳从东方升起，在西方落下。",
            "Water boils when it is hot and freezes when it is cold.": "水热了会沸腾，冷了会结冰。",
            "A week has seven days and a year has twelve months.": "一周有七天，一年有十二个月。",
            "Birds have wings and fish have fins.": "鸟有翅膀，鱼有鳍。",
            "The river flows down to the sea.": "河流向大海。",
            "Click the Save icon.": "点击保存图标。",
        }
        ids = [f"e{number}" for number in range(len(pairs))]
        return pl.DataFrame({"id": ids, "text": list(pairs), "translation": list(pairs.values())})


def _padded(lists: pl.Series, filler: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lists side by side, filled up at their ends, and where they are not."""
    lengths_N = lists.list.len().to_numpy().astype(np.int64)
    mask_NT = (np.arange(lengths_N.max(initial=0)) < lengths_N[:, None]).astype(np.int64)
    values_NT = np.full(mask_NT.shape, filler, dtype=np.int64)
    values_NT[mask_NT == 1] = lists.explode(empty_as_null=False).to_numpy()
    return values_NT, mask_NT


def _answers(rows: pl.DataFrame, written: Sequence[str], sure: Sequence[float | None]) -> pl.DataFrame:
    """`length_ratio`: how many characters stand for each one of the text."""
    num_chars = rows["text"].str.len_chars()
    translation = pl.Series("translation", written, dtype=pl.String)
    ratio = translation.str.len_chars() / num_chars.clip(lower_bound=1)
    return pl.DataFrame(
        {"translation": translation, "token_probability": sure, "length_ratio": ratio.round(4)}, schema=_ANSWER
    )


PROBLEM = Translation()
