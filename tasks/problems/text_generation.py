"""Text that goes on from its beginning, by a decoder that learned to predict each token from those before it.

A text that is longer than the model is read in windows that overlap, and each token is counted once. Arrays are named
by shape: W windows, N rows, T tokens, P tokens of the cache, L layers, H heads, D width, E bytes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.errors import DataError, ParamsError
from tasks.params import Scratch
from tasks.problems import Arrays, Draw, Problem, Signature, _byte_ngram, _copied, _text

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import nn
    from transformers import PreTrainedModel

# A quarter of a window has been read in the window before, and is what its first new token follows on.
_OVERLAP = 4

# What is read of one text at most; clean.max_chars decides for training.
_MOST_WINDOWS = 64

# What a label is where the loss looks away.
_NOT_COUNTED = -100

# Words that repeat so many of an earlier place are counted as repetition (Welleck et al. 2020).
_REPEATED_WORDS = 4

# How many characters of a held-out text the monitor takes for a prompt.
_PROMPT_CHARS = 20, 200

_ANSWER = pl.Schema({"continuation": pl.String(), "bits_per_byte": pl.Float64()})


class TextGeneration(Problem):
    """Decoders of any architecture that transformers has as a causal language model."""

    name = "text_generation"
    columns: Mapping[str, pl.DataType] = {"text": pl.String()}
    texts = ("text",)
    label = None
    inputs = ("text",)
    signs = ()
    targets = ("labels",)
    outputs = ("nll", "num_tokens", "next_token", "pooled_embedding")
    decoding = ("logits",)
    writes = "continuation"
    higher_is_better: Mapping[str, bool] = {
        "bits_per_byte": False,
        "word_perplexity": False,
        "repetition": False,
        "copied_words": False,
    }
    headline = "bits_per_byte"

    def signature(self, train: pl.DataFrame) -> Signature:
        if train.is_empty():
            raise DataError("The train split has no text; there is nothing to learn.")
        return {}

    def encode(
        self, rows: pl.DataFrame, tokenizer: "Tokenizer", signature: Signature | None, max_tokens: int
    ) -> pl.DataFrame:
        """`num_bytes` is how much of its text a row's windows have read, all of it but of one that is cut."""
        tokenizer.no_padding()
        tokenizer.no_truncation()
        first, last = _text.ends(tokenizer)
        encodings = tokenizer.encode_batch(rows["text"].to_list(), add_special_tokens=False)
        whole = [[first, *encoding.ids, last] for encoding in encodings]
        step = max_tokens - max_tokens // _OVERLAP
        windows = [
            (row, start)
            for row, ids in enumerate(whole)
            for start in [0, *range(step, len(ids) - max_tokens + step, step)][:_MOST_WINDOWS]
        ]
        most = max_tokens + (_MOST_WINDOWS - 1) * step
        cut = [len(ids) > most for ids in whole]
        # Where the last token that is read ends in the text, of which the first of all is no part.
        ends = [one.offsets[most - 2][1] if is_cut else None for one, is_cut in zip(encodings, cut, strict=True)]
        num_bytes = [len(text[:end].encode()) for text, end in zip(rows["text"], ends, strict=True)]
        pieces = [whole[row][start : start + max_tokens] for row, start in windows]
        # The first token follows on nothing, and what overlaps has been counted.
        seen = [1 if start == 0 else max_tokens - step for _, start in windows]
        counted = [[int(place >= skip) for place in range(len(ids))] for ids, skip in zip(pieces, seen, strict=True)]
        encoded = pl.DataFrame(
            {
                "id": rows["id"].gather([row for row, _ in windows]),
                "input_ids": _text.lists(pieces),
                "truncated": pl.Series([cut[row] for row, _ in windows], dtype=pl.Boolean),
                "counted": _text.lists(counted),
                "num_bytes": [num_bytes[row] for row, _ in windows],
            }
        )
        if signature is None:
            return encoded
        labels = [
            [token if is_counted else _NOT_COUNTED for token, is_counted in zip(ids, mask, strict=True)]
            for ids, mask in zip(pieces, counted, strict=True)
        ]
        return encoded.with_columns(labels=_text.lists(labels))

    def packed(self, encoded: pl.DataFrame, max_tokens: int, seed: int) -> pl.DataFrame:
        """Texts one after the other in rows of exactly `max_tokens`, so that nothing is padding.

        `position_ids` begins anew with each text and each row, which keeps texts from attending to each other. What is
        left at the end, less than a row, is not learned from, unless there is nothing else.
        """
        order = np.random.default_rng(seed).permutation(len(encoded))
        ordered = encoded[order]
        lengths_W = ordered["input_ids"].list.len().to_numpy().astype(np.int64)
        num = max(int(lengths_W.sum()) // max_tokens, 1) * max_tokens
        window = np.repeat(np.arange(len(ordered)), lengths_W)[:num]
        starts_W = np.cumsum(lengths_W) - lengths_W
        place = np.arange(len(window))
        # A window goes on from where it began, or from where its row of the packed ones does.
        position = place - np.maximum(starts_W[window], place // max_tokens * max_tokens)
        tokens = pl.DataFrame(
            {
                "row": place // max_tokens,
                "id": ordered["id"].gather(window),
                "input_ids": ordered["input_ids"].explode(empty_as_null=False).head(num),
                "labels": ordered["labels"].explode(empty_as_null=False).head(num),
                "position_ids": position.astype(np.int32),
            }
        )
        return (
            tokens.group_by("row", maintain_order=True)
            .agg(pl.col("id").unique(maintain_order=True), "input_ids", "labels", "position_ids")
            .select(pl.col("id").list.join(" "), "input_ids", "labels", "position_ids")
        )

    def augment(self, encoded: pl.DataFrame, specials: Sequence[int], draw: Draw) -> pl.DataFrame:
        raise ParamsError(
            f"train.augment has no meaning for {self.name}: every token is what the ones before it should lead to, so "
            "that from texts with some left out or exchanged the model would learn to write such. Set it to null."
        )

    def batch(self, encoded: pl.DataFrame, pad_id: int) -> dict[str, NDArray[np.int64]]:
        if "position_ids" in encoded.columns:
            arrays = _text.padded(encoded, pad_id, ("labels", "position_ids"))
            # Without a mask transformers reads off the positions where one text ends and the next begins.
            del arrays["attention_mask"]
            return arrays
        is_taught = "labels" in encoded.columns
        arrays = _text.padded(encoded, pad_id, ("counted", "labels") if is_taught else ("counted",))
        if is_taught:
            arrays["labels"][arrays["attention_mask"] == 0] = _NOT_COUNTED
        return arrays

    def build(
        self, base: str | Scratch, vocabulary: int, signature: Signature, *, dropout: float, attention: str
    ) -> "PreTrainedModel":
        from tasks.pretrained import build

        own = {"tie_word_embeddings": True} if isinstance(base, Scratch) else {}
        # A cache is for writing; while learning it would hide from transformers that rows are packed.
        return build("AutoModelForCausalLM", base, vocabulary, dropout, attention, use_cache=False, **own)

    def exportable(self, model: "PreTrainedModel") -> "nn.Module":
        from tasks.problems._decoder import decoder_with_cache

        return decoder_with_cache(model)

    def traced(self, model: "PreTrainedModel", batch: Arrays) -> Arrays:
        from tasks.problems._decoder import empty_cache

        return {**batch, **empty_cache(model, len(batch["input_ids"]))}

    def gather(self, outputs: Arrays, encoded: pl.DataFrame) -> Arrays:
        """The sums over a row's windows, the mean of its embeddings, and how many bytes that is about."""
        if not len(encoded):
            return {name: array for name, array in outputs.items() if name != "next_token"} | {"num_bytes": np.zeros(0)}
        firsts_N = np.flatnonzero(_text.begins_row(encoded))
        num_windows_N = np.diff(np.append(firsts_N, len(encoded)))
        sums_ND = np.add.reduceat(outputs["pooled_embedding"], firsts_N, axis=0)
        return {
            "nll": np.add.reduceat(outputs["nll"].astype(np.float64), firsts_N),
            "num_tokens": np.add.reduceat(outputs["num_tokens"], firsts_N),
            "num_bytes": encoded["num_bytes"].gather(firsts_N).to_numpy(),
            "pooled_embedding": (sums_ND / num_windows_N[:, None]).astype(np.float32),
        }

    def compare(self, reference: Arrays, outputs: Arrays) -> tuple[float, float]:
        """Of the mean probability of a window's tokens, and of the token that would come next."""
        expected_W, found_W = (
            np.exp(-one["nll"].astype(np.float64) / np.maximum(one["num_tokens"], 1)) for one in (reference, outputs)
        )
        changed_W = reference["next_token"] != outputs["next_token"]
        return float(np.abs(expected_W - found_W).max()), float(changed_W.mean())

    def perplexity(self, outputs: Arrays, encoded: pl.DataFrame) -> float | None:
        return _text.perplexity(outputs)

    def answer(
        self, rows: pl.DataFrame, outputs: Arrays, signature: Signature, calibration: Mapping[str, float]
    ) -> pl.DataFrame:
        # What lies behind the fourth place depends on what was computed beside it.
        bits_N = np.round(outputs["nll"] / np.log(2) / np.maximum(outputs["num_bytes"], 1), 4)
        written = outputs.get("continuation", np.full(len(rows), "", dtype=object))
        return pl.DataFrame({"continuation": list(written), "bits_per_byte": bits_N}, schema=_ANSWER)

    def answer_schema(self, signature: Signature) -> pl.Schema:
        return _ANSWER

    def against_train(self, answers: pl.DataFrame, train: pl.DataFrame) -> pl.DataFrame:
        """With `copied_words`: of each continuation the longest run of words that stands in one text of `train`."""
        copied_N = _copied.longest_copied(answers["continuation"], train["text"])
        return answers.with_columns(pl.Series("copied_words", copied_N))

    def asked(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Beginnings, since that is what a prompt is: up to a word's end, the first characters of each text."""
        beginnings = [_beginning(text, row_id) for row_id, text in rows.select("id", "text").iter_rows()]
        return rows.with_columns(text=pl.Series(beginnings, dtype=pl.String))

    def watched(self, answers: pl.DataFrame) -> pl.DataFrame:
        if _text.was_drawn(answers):  # how long it is and how often it says the same is what the caller has asked for
            return answers.select("bits_per_byte")
        return answers.select(
            "bits_per_byte",
            continuation_num_words=pl.col("continuation").str.count_matches(r"\w+"),
            repetition=pl.Series([_repetition(text) for text in answers["continuation"]], dtype=pl.Float64),
        )

    def agree(self, answers: pl.DataFrame, others: pl.DataFrame) -> pl.Series:
        if "continuation" not in others.columns:  # no one knows how a text is right to go on
            return pl.repeat(None, len(answers), dtype=pl.Boolean, eager=True)
        return (answers["continuation"] == others["continuation"]).fill_null(value=False)

    def score(self, rows: pl.DataFrame, answers: pl.DataFrame, signature: Signature) -> pl.DataFrame:
        repetition = [_repetition(text) for text in answers["continuation"]]
        return rows.select("id").with_columns(
            answers["bits_per_byte"],
            pl.Series("repetition", repetition, dtype=pl.Float64),
            *answers.select("^copied_words$"),
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
        # A text that was not read to its end counts as one that goes on as it began.
        bytes_N = _num_bytes(rows)
        bits_R = weights_RN @ (scored["bits_per_byte"].to_numpy() * bytes_N)
        words_N = np.maximum(rows["text"].str.count_matches(r"\w+").to_numpy(), 1)
        means = [name for name in ("repetition", "copied_words") if name in scored.columns]
        # A model can be infinitely surprised; and of a small slice a resample may have drawn no row.
        with np.errstate(over="ignore", invalid="ignore"):
            return {
                "bits_per_byte": bits_R / (weights_RN @ bytes_N),
                "word_perplexity": np.exp2(bits_R / (weights_RN @ words_N)),
                **{name: weights_RN @ scored[name].to_numpy() / weights_RN.sum(axis=1) for name in means},
            }

    def baselines(
        self, train: pl.DataFrame, test: pl.DataFrame, signature: Signature, seed: int
    ) -> dict[str, pl.DataFrame]:
        """What bytes tell of the next one. It writes nothing, so that it repeats and copies nothing either."""
        bits_N = _byte_ngram.bits(train["text"].to_list(), test["text"].to_list())
        answers = pl.DataFrame(
            {"continuation": [""] * len(test), "bits_per_byte": bits_N / _num_bytes(test)}, schema=_ANSWER
        )
        return {"byte_5gram": answers}

    def descriptors(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select("id", *_text.descriptors("text"))

    def examples(self) -> pl.DataFrame:
        texts: Sequence[str] = (
            "The sun rises in the east and sets in the west.",
            "Water boils when it is hot and freezes when it is cold.",
            "A week has seven days and a year has twelve months.",
            "Birds have wings and fish have fins.",
            "The river flows down to the sea.",
            "人工智能是未来科技发展的关键。",
        )
        return pl.DataFrame({"id": [f"e{number}" for number in range(len(texts))], "text": texts})


def _beginning(text: str, row_id: str) -> str:
    """The first 20 to 200 characters, as many as a hash of the id says, without a word that they cut in two."""
    fewest, most = _PROMPT_CHARS
    size = fewest + int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8]) % (most - fewest + 1)
    cut = text[:size]
    if len(text) > size and not text[size].isspace() and len(whole := cut.rsplit(None, 1)) == 2:
        cut = whole[0]
    return cut.rstrip() or text


def _num_bytes(rows: pl.DataFrame) -> NDArray[np.float64]:
    return np.asarray(np.maximum(rows["text"].str.len_bytes().to_numpy(), 1), dtype=np.float64)


def _repetition(text: str) -> float:
    """The share of a text's runs of four words that it has had before; 0 where it has no such run."""
    words = text.lower().split()
    runs = [tuple(words[place : place + _REPEATED_WORDS]) for place in range(len(words) - _REPEATED_WORDS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


PROBLEM = TextGeneration()
