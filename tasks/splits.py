"""Which split a row belongs to: a function of the row and the parameters alone, so that new rows move no other."""

import datetime as dt
import hashlib
from typing import Any

import polars as pl

from tasks.errors import DataError, ParamsError
from tasks.params import SplitByHash, SplitByTime

SPLITS = ("train", "validation", "test")
SPLIT = pl.Enum(SPLITS)


def draw(rows: pl.DataFrame, params: SplitByHash | SplitByTime) -> pl.Series:
    """The split of each row; null where it goes by time and the row has none.

    A row without a group is a group of its own. Moments without a zone are UTC. Raises DataError where the column is
    missing or is no time, ParamsError where the moments are none.
    """
    if params.column is not None and params.column not in rows.columns:
        raise DataError(
            f"clean.split.column is {params.column!r}, but the valid rows have {', '.join(rows.columns)}. Name one of "
            f"these, or add {params.column!r} to collect.columns."
        )
    if isinstance(params, SplitByTime):
        return _by_time(rows[params.column], params)
    keys = rows["id"] if params.column is None else rows[params.column].cast(pl.String).fill_null(rows["id"])
    return pl.Series("split", [_by_hash(key, params) for key in keys], dtype=SPLIT)


def _by_hash(key: str, params: SplitByHash) -> str:
    digest = hashlib.blake2b(key.encode(), digest_size=8, salt=params.seed.to_bytes(4, "little")).digest()
    drawn = int.from_bytes(digest, "little") / 2**64
    if drawn < params.test:
        return "test"
    return "validation" if drawn < params.test + params.validation else "train"


def _by_time(times: pl.Series, params: SplitByTime) -> pl.Series:
    validation_from, test_from = (_moment_of(params, name) for name in ("validation_from", "test_from"))
    if validation_from > test_from:
        raise ParamsError(
            f"clean.split.validation_from is {params.validation_from!r}, which is after test_from, "
            f"{params.test_from!r}. The order of the splits in time is train, validation, test."
        )

    def split_of(value: Any) -> str | None:
        moment = _moment(value)
        if moment is None:
            return None
        return "train" if moment < validation_from else "validation" if moment < test_from else "test"

    if not (times.dtype in (pl.String, pl.Date) or isinstance(times.dtype, pl.Datetime)):
        raise DataError(
            f"clean.split.column is {times.name!r}, whose type is {times.dtype}. A split by time needs dates, times or "
            "text such as 2026-01-31 or 2026-01-31T12:00:00Z."
        )
    return pl.Series("split", [split_of(value) for value in times], dtype=SPLIT)


def _moment_of(params: SplitByTime, name: str) -> dt.datetime:
    text = getattr(params, name)
    moment = _moment(text)
    if moment is None:
        raise ParamsError(
            f"clean.split.{name} is {text!r}; a date such as 2026-01-31 or 2026-01-31T12:00:00Z is meant."
        )
    return moment


def _moment(value: Any) -> dt.datetime | None:
    """A date, time or ISO 8601 text as a moment; None for anything else."""
    if isinstance(value, str):
        try:
            value = dt.datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    if isinstance(value, dt.datetime):
        return value if value.tzinfo else value.replace(tzinfo=dt.UTC)
    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)
    return None
