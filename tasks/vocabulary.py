"""Texts that a model cannot read: those that its vocabulary has no words for, and those that are too long for it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Of a text's tokens. What is left then are its digits and full stops.
_MOST_UNKNOWN = 0.8


def unknown_id(tokenizer: "Tokenizer") -> int | None:
    """The number of the token that stands for what the vocabulary does not have; None where everything has one."""
    name = getattr(tokenizer.model, "unk_token", None)
    if name is not None:
        return tokenizer.token_to_id(name)
    # Unigram keeps a number instead of a name.
    number = getattr(tokenizer.model, "unk_id", None)
    return int(number) if number is not None else None


def is_in_no_known_script(texts: pl.Series, tokenizer: "Tokenizer") -> pl.Series:
    """Whether a text is written in letters of which the vocabulary knows hardly any. Never where it is null.

    A text with a letter of ASCII is not looked at, since all vocabularies have those.
    """
    unknown = unknown_id(tokenizer)
    # One look over all, so that what is usual costs no second tokenizing.
    is_strange = texts.str.contains(r"\p{L}") & ~texts.str.contains("[A-Za-z]")
    strange = is_strange.arg_true()
    if unknown is None or strange.is_empty():
        return pl.repeat(False, len(texts), dtype=pl.Boolean, eager=True)
    encoded = tokenizer.encode_batch(texts.gather(strange).to_list(), add_special_tokens=False)
    # What fills up to a length is no token of the text.
    is_unread = [one.ids.count(unknown) > _MOST_UNKNOWN * sum(one.attention_mask) for one in encoded]
    return pl.repeat(False, len(texts), dtype=pl.Boolean, eager=True).scatter(strange, is_unread)


def unread_reason(name: str) -> str:
    """Why a row whose column `name` holds such a text has no answer, and is not learned from."""
    return f"{name} is in no script that the model has learned: its vocabulary has none of the words"


def too_long_reason(names: Sequence[str], max_tokens: int) -> str:
    """The same of a row that the model could read a part of only."""
    return f"{' and '.join(names)} is longer than the {max_tokens} tokens that the model reads"
