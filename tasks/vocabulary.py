"""Texts that a model cannot read: those that its vocabulary has no words for, and those that are too long for it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Of the tokens that stand for letters. What is left then is a name or two.
_MOST_UNKNOWN = 0.8


def unknown_id(tokenizer: "Tokenizer") -> int | None:
    """The number of the token that stands for what the vocabulary does not have; None where everything has one."""
    name = getattr(tokenizer.model, "unk_token", None)
    if name is None and type(tokenizer.model).__name__ == "Unigram":  # it keeps a number, and does not tell it
        name = next((name for name in ("<unk>", "[UNK]") if tokenizer.token_to_id(name) is not None), None)
    return tokenizer.token_to_id(name) if name is not None else None


def has_no_ascii_letter(column: str) -> pl.Expr:
    """Whether a text has letters, and none of them is of ASCII: only such a one may be in no known script."""
    return pl.col(column).str.contains(r"\p{L}") & ~pl.col(column).str.contains("[A-Za-z]")


def is_in_no_known_script(texts: pl.Series, tokenizer: "Tokenizer") -> pl.Series:
    """Whether a text is written in letters of which the vocabulary knows hardly any. Never where it is null.

    A text with a letter of ASCII is not looked at, since all vocabularies have those. The tokenizer is left without
    padding and truncation.
    """
    unknown = unknown_id(tokenizer)
    # One look over all, so that what is usual costs no second tokenizing.
    strange = texts.to_frame().select(has_no_ascii_letter(texts.name)).to_series().arg_true()
    if unknown is None or strange.is_empty():
        return pl.repeat(False, len(texts), dtype=pl.Boolean, eager=True)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    asked = texts.gather(strange).to_list()
    is_unread = []
    for text, encoded in zip(asked, tokenizer.encode_batch(asked, add_special_tokens=False), strict=True):
        spans = zip(encoded.ids, encoded.offsets, strict=True)
        of_letters = [number for number, (start, end) in spans if any(map(str.isalpha, text[start:end]))]
        is_unread.append(of_letters.count(unknown) > _MOST_UNKNOWN * len(of_letters))
    return pl.repeat(False, len(texts), dtype=pl.Boolean, eager=True).scatter(strange, is_unread)


def unread_reasons(rows: pl.DataFrame, names: Sequence[str], tokenizer: "Tokenizer") -> pl.Series:
    """Why a row has no answer and is not learned from: which of the columns holds such a text; null where none does."""
    found = pl.repeat(None, len(rows), dtype=pl.String, eager=True)
    for name in names:
        reason = f"{name} is in no script that the model has learned: its vocabulary has none of the words"
        is_unread = is_in_no_known_script(rows[name], tokenizer)
        found = pl.select(pl.coalesce(found, pl.when(is_unread).then(pl.lit(reason)))).to_series()
    return found


def too_long_reason(names: Sequence[str], max_tokens: int) -> str:
    """Why a row has none that the model could read a part of only."""
    return f"{' and '.join(names)} is longer than the {max_tokens} tokens that the model reads"
