"""Rows with the very same text: the earliest stays, and where the labels contradict each other none of them can."""

import hashlib
from collections.abc import Iterable

import numpy as np
import polars as pl
from numpy.typing import NDArray

_TEXT = ("text_1", "text_2")


def text_hashes(texts: Iterable[str]) -> pl.DataFrame:
    """128 bits of each text, as two numbers: `text_1`, `text_2`."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    return pl.from_numpy(np.frombuffer(digests, dtype="<u8").reshape(-1, 2), schema=_TEXT)


def duplicate_reasons(rows: pl.DataFrame) -> pl.Series:
    """Why each row goes, null where it stays.

    Rows stand in the order partition, then id, with `partition`, `id`, `text_1`, `text_2`, `label` (one for all where
    there is none). What is said of a row depends on its own and earlier partitions alone:

    - Where the first partition that has a text gives it two labels, all of its rows with it are `conflicting_label`,
      and later ones `conflicting_label_with:` the first of them, since nobody knows which label is right.
    - Otherwise the first row stays. Others are `duplicate_of:` it, or `conflicting_label_with:` it where their label is
      another one: a row that stayed once is not moved by what comes later.
    """
    # By half of the hash first; two texts that share it by chance are told apart by the whole.
    several = rows.with_row_index("row").filter(repeated(rows["text_1"].to_numpy()))
    is_early = pl.col("partition") == pl.col("partition").first().over(_TEXT)
    first_id, first_label = (pl.col(name).first().over(_TEXT) for name in ("id", "label"))
    reasons = several.with_columns(
        is_early=is_early, is_torn=pl.col("label").filter(is_early).n_unique().over(_TEXT) > 1
    ).select(
        "row",
        reason=pl.when("is_torn", "is_early")
        .then(pl.lit("conflicting_label"))
        .when(pl.col("is_torn") | (pl.col("label") != first_label))
        .then("conflicting_label_with:" + first_id)
        .when(pl.col("id") != first_id)
        .then("duplicate_of:" + first_id),
    )
    return (
        pl.Series("reason", [None], dtype=pl.String)
        .new_from_index(0, len(rows))
        .scatter(reasons["row"], reasons["reason"])
    )


def conflicts(rows: pl.DataFrame, reasons: pl.Series) -> dict[str, int]:
    """How many rows contradict another of the same text, and how many such texts there are."""
    torn = rows.filter(reasons.str.starts_with("conflicting_label").fill_null(value=False))
    return {"groups": torn.select(_TEXT).n_unique() if len(torn) else 0, "rows": len(torn)}


def repeated(values: NDArray[np.uint64]) -> pl.Series:
    """Which of the values come more than once. A sort, because a table of a million groups takes much more memory."""
    order = np.argsort(values)
    equal = np.diff(values[order]) == 0
    found = np.zeros(len(values), dtype=bool)
    found[order[1:][equal]] = True
    found[order[:-1][equal]] = True
    return pl.Series(found)
