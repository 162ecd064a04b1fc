"""Stable row ids: the source's key, or a hash of the row's content, and a number where one comes again.

An id is a function of the row, of its partition's place and of the rows before it; never of shards, nor of the order of
rows within a partition.
"""

import datetime as dt
import decimal
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

# Of a content's hash, in an id. 80 bits: two of a hundred million different rows share one with a chance below 1e-8.
ID_DIGITS = 20

# What stands between a key, or a hash of content, and its number. A key's own "#1" at the end gets a "#0" behind it, so
# that it is never taken for a number; a hash always has its number.
Separator = Literal["#", "-"]
AFTER_KEY: Separator = "#"
AFTER_CONTENT: Separator = "-"


def content_hash(row: Mapping[str, Any]) -> str:
    """The SHA-256 over a row's values by name, as hexadecimal digits.

    The order of the columns does not matter, nor do columns without a value. Values are what Polars or a database
    driver gives: JSON's own, bytes, decimals, dates and times.
    """
    present = {name: value for name, value in row.items() if value is not None}
    text = json.dumps(present, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_as_text)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return "sha256:" + hashlib.sha256(value).hexdigest()
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, dt.timedelta | decimal.Decimal):
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no canonical text")


def numbered(keys: pl.Series, numbers: pl.Series | int, separator: Separator) -> pl.Series:
    """The ids of keys that have come `numbers` times before."""
    frame = pl.DataFrame({"key": keys}).with_columns(number=pl.lit(numbers))
    suffixed = (
        pl.lit(separator == AFTER_CONTENT) | (pl.col("number") > 0) | pl.col("key").str.contains(rf"{separator}[0-9]+$")
    )
    with_number = pl.concat_str("key", pl.lit(separator), "number")
    return frame.select(id=pl.when(suffixed).then(with_number).otherwise("key")).to_series()


def keys_and_numbers(ids: pl.Series, separator: Separator) -> tuple[pl.Series, pl.Series]:
    """What `numbered` was given."""
    frame = pl.DataFrame({"id": ids}).select(
        key=pl.col("id").str.replace(rf"{separator}[0-9]+$", ""),
        number=pl.col("id").str.extract(rf"{separator}([0-9]+)$").fill_null("0").cast(pl.Int64),
    )
    return frame["key"], frame["number"]


@dataclass(frozen=True)
class Renumbering:
    """The ids of the shards that must have other ones, and how many rows repeat an earlier key."""

    ids: Mapping[int, pl.Series]
    num_repeated: int
    an_example: str | None


def renumber(
    partitions: Sequence[int],
    ids_of: Callable[[int], pl.Series],
    content_of: Callable[[int, pl.Series], list[str]],
    separator: Separator,
) -> Renumbering:
    """Number the rows of equal key in the order partition, then content.

    Shard s belongs to partition `partitions[s]`; `ids_of(s)` reads its ids, numbered in any way or not at all, and
    `content_of(s, rows)` the content hashes of some of its rows. Sixteen bytes a row are held, and more only of
    rows whose key repeats.
    """
    frames = []
    for shard, rows in _suspects(len(partitions), ids_of, separator):
        ids = ids_of(shard).gather(rows)
        frames.append(
            pl.DataFrame({"row": rows, "id": ids, "key": keys_and_numbers(ids, separator)[0]}).with_columns(
                shard=pl.lit(shard),
                partition=pl.lit(partitions[shard]),
                content=pl.Series(content_of(shard, rows), dtype=pl.String),
            )
        )
    if not frames:
        return Renumbering({}, 0, None)
    suspects = (
        pl.concat(frames)
        .sort("key", "partition", "content", "shard", "row")
        .with_columns(number=pl.int_range(pl.len()).over("key"))
    )
    suspects = suspects.with_columns(wanted=numbered(suspects["key"], suspects["number"], separator))
    changed = suspects.filter(pl.col("wanted") != pl.col("id"))
    repeated = suspects.filter(pl.col("number") > 0)
    return Renumbering(
        {
            shard: ids_of(shard).scatter(of_shard["row"], of_shard["wanted"])
            for (shard,), of_shard in changed.sort("shard", "row").group_by("shard", maintain_order=True)
        },
        len(repeated),
        str(repeated["key"][0]) if len(repeated) else None,
    )


def _suspects(
    num_shards: int, ids_of: Callable[[int], pl.Series], separator: Separator
) -> Iterator[tuple[int, pl.Series]]:
    """The rows, shard by shard, whose key may come twice or whose id has a number: all that may need another id.

    Keys are compared by their hashes, so that a row that is alone may be among them.
    """
    hashes, numbered_rows = [], {}
    for shard in range(num_shards):
        keys, numbers = keys_and_numbers(ids_of(shard), separator)
        hashes.append(keys.hash().to_numpy())
        if (numbers > 0).any():
            numbered_rows[shard] = (numbers > 0).to_numpy()
    ordered = np.concatenate(hashes)
    ordered.sort()
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    for shard, hashes_of_shard in enumerate(hashes):
        (rows,) = np.nonzero(np.isin(hashes_of_shard, twice) | numbered_rows.get(shard, False))
        if len(rows):
            yield shard, pl.Series(rows)
