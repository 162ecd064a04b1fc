"""What problems over text share: padded batches, the embedding, descriptors."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.errors import ParamsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

# What a baseline counts. Every character that is no white space belongs to some word, so that no text is without any.
WORD = r"\w+|[^\w\s]"

# What the end of a text is called, by GPT-2's kin, Llama's, Gemma's and others'. The first that a tokenizer has counts:
# Gemma's has </s> as well, for what is struck out.
_ENDS = ("<eos>", "<|end_of_text|>", "<|endoftext|>", "</s>", "<|im_end|>", "[SEP]")


def padded(encoded: pl.DataFrame, pad_id: int, also: Sequence[str] = ()) -> dict[str, NDArray[np.int64]]:
    """`input_ids` (BT), `attention_mask` (BT), and a list column of the same lengths for each name in `also`, with 0
    where there is padding.
    """
    # As Python's lists, since an expression of Polars would take a request of one row longer than all else here.
    lists_of = {name: encoded[name].to_list() for name in ("input_ids", *also)}
    lengths_B = np.array([len(tokens) for tokens in lists_of["input_ids"]], dtype=np.int64)
    attention_mask_BT = (np.arange(lengths_B.max(initial=0)) < lengths_B[:, None]).astype(np.int64)
    arrays = {}
    for name, values in lists_of.items():
        arrays[name] = np.full(attention_mask_BT.shape, pad_id if name == "input_ids" else 0, dtype=np.int64)
        flat = itertools.chain.from_iterable(values)
        arrays[name][attention_mask_BT == 1] = np.fromiter(flat, dtype=np.int64, count=lengths_B.sum())
    return {"input_ids": arrays.pop("input_ids"), "attention_mask": attention_mask_BT, **arrays}


def lists(values: Sequence[Sequence[int]]) -> pl.Series:
    """Token numbers and the like as the stages keep them."""
    return pl.Series(values, dtype=pl.List(pl.Int32))


def begins_row(encoded: pl.DataFrame) -> NDArray[np.bool_]:
    """Of rows that may have become several, one after the other: where each begins."""
    ids = encoded["id"].to_numpy()
    return np.concatenate([np.ones(min(len(ids), 1), dtype=np.bool_), ids[1:] != ids[:-1]])


def ends(tokenizer: "Tokenizer") -> tuple[int, int]:
    """The tokens that stand before and behind a text; one may be both. Raises ParamsError where there is none."""
    ids = tokenizer.encode("").ids
    if len(ids) == 2:
        return ids[0], ids[1]
    last = next((number for name in _ENDS if (number := tokenizer.token_to_id(name)) is not None), None)
    if last is None:
        raise ParamsError(
            f"The tokenizer has no token for the end of a text ({', '.join(_ENDS)}), so a decoder would "
            "never stop. Use another base, or let tokenize.tokenizer learn one."
        )
    return (ids[0] if ids else last), last


def specials(tokenizer: "Tokenizer") -> list[int]:
    """The tokens that stand for no text, in order."""
    return sorted(number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def pooled(hidden_BTD: "Tensor", attention_mask_BT: "Tensor") -> "Tensor":
    """The mean of the last layer over the tokens that are no padding, BD (Reimers and Gurevych 2019)."""
    mask_BT1 = attention_mask_BT[:, :, None].to(hidden_BTD.dtype)
    return (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)


def descriptors(column: str, prefix: str = "") -> list[pl.Expr]:
    """Numbers that describe the texts of a column: lengths, shares of kinds of characters, pseudonyms."""
    text = pl.col(column)
    num_chars, num_words = text.str.len_chars(), text.str.count_matches(r"\w+")

    def share(count: pl.Expr, of: pl.Expr) -> pl.Expr:
        return pl.when(of > 0).then(count / of).otherwise(0.0)

    described = {
        "num_chars": num_chars,
        "num_words": num_words,
        "chars_per_word": share(text.str.count_matches(r"\w"), num_words),
        "share_upper_case": share(text.str.count_matches(r"\p{Lu}"), text.str.count_matches(r"\p{L}")),
        "share_digits": share(text.str.count_matches(r"\p{Nd}"), num_chars),
        "share_not_ascii": share(text.str.count_matches(r"[^\x00-\x7F]"), num_chars),
        "num_redacted": text.str.count_matches(r"⟨[A-Z]+_\d+⟩"),
    }
    return [expression.alias(prefix + name) for name, expression in described.items()]


def was_drawn(answers: pl.DataFrame) -> bool:
    """Whether chance has written any of these answers; their `sampling` is there where they are from the journal."""
    if "sampling" not in answers.columns:
        return False
    return bool((answers["sampling"].struct.field("temperature") > 0).any())


def perplexity(outputs: Mapping[str, NDArray[Any]]) -> float:
    """exp of the mean negative log likelihood of a token, from `nll`, in nats of N rows, and their `num_tokens`."""
    num_tokens = int(outputs["num_tokens"].sum())
    with np.errstate(over="ignore"):  # a model can be infinitely surprised
        return float(np.exp(outputs["nll"].astype(np.float64).sum() / max(num_tokens, 1)))
