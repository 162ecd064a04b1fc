"""What a person wrote, in params.yaml or in a mended row, as the value of a column; and back, short enough to read."""

import datetime as dt
import json
import math
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

MAX_SHOWN_CHARS = 80


def fit(value: Any, kind: pl.DataType) -> Any:
    """The value as Python holds the values of a column of this type. Raises ValueError with what the column takes."""
    if value is None:
        return None
    fitted = _as_held(value, kind)
    try:
        pl.Series([fitted], dtype=kind, strict=True)
    except (pl.exceptions.PolarsError, TypeError, OverflowError):
        raise _misfit(value, f"a value of {kind}") from None
    return fitted


def is_writable(kind: pl.DataType) -> bool:
    """Whether JSON can say the values of a column of this type, so that a person can mend them."""
    if isinstance(kind, (pl.List, pl.Array)):
        return is_writable(_inner(kind))
    texts_and_times = (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Date, pl.Datetime)
    return kind.is_numeric() or isinstance(kind, texts_and_times)


def as_json(value: Any) -> Any:
    """The value as JSON says it, in a form that `fit` takes back where the column is writable."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case dt.date() | dt.time():
            return value.isoformat()
        case Decimal() | dt.timedelta():
            return str(value)
        case bytes():
            return f"<{len(value):,} bytes>"
        case list() | tuple():
            return [as_json(item) for item in value]
        case Mapping():
            return {str(key): as_json(item) for key, item in value.items()}
        case _:
            return value


def shortened(value: Any) -> str:
    """The value as one readable line of about 80 characters at most; what is left out of a text is counted."""
    if isinstance(value, str):
        shown = json.dumps(value[:MAX_SHOWN_CHARS], ensure_ascii=False)
        return shown if len(value) <= MAX_SHOWN_CHARS else f"{shown}… ({len(value):,} characters)"
    shown = json.dumps(as_json(value), ensure_ascii=False)
    return shown if len(shown) <= MAX_SHOWN_CHARS else f"{shown[:MAX_SHOWN_CHARS]}…"


def _as_held(value: Any, kind: pl.DataType) -> Any:
    match kind:
        case pl.String() | pl.Categorical() | pl.Enum():
            if not isinstance(value, str):
                raise _misfit(value, "text")
            return value
        case pl.Boolean():
            if not isinstance(value, bool):
                raise _misfit(value, "true or false")
            return value
        case pl.Date():
            return _date(value)
        case pl.Datetime():
            return _moment(value, kind.time_zone)
        case pl.List() | pl.Array():
            if not isinstance(value, list):
                raise _misfit(value, "a list")
            return [fit(item, _inner(kind)) for item in value]
        case _ if kind.is_numeric():
            return _number(value, kind)
        case _:
            raise ValueError(f"a column of {kind} cannot be written by hand")


def _number(value: Any, kind: pl.DataType) -> int | float | Decimal:
    if kind.is_float() and value in ("nan", "inf", "-inf"):
        return float(value)
    if kind.is_decimal() and isinstance(value, str):
        try:
            return Decimal(value)
        except InvalidOperation:
            raise _misfit(value, "a decimal number") from None
    if isinstance(value, bool) or not isinstance(value, int if kind.is_integer() else (int, float)):
        raise _misfit(value, "a whole number" if kind.is_integer() else "a number")
    if kind.is_decimal():
        return Decimal(str(value))
    return float(value) if kind.is_float() else value


def _date(value: Any) -> dt.date:
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return value
    try:
        return dt.date.fromisoformat(value)
    except (TypeError, ValueError):
        raise _misfit(value, "a date such as 2026-01-31") from None


def _moment(value: Any, time_zone: str | None) -> dt.datetime:
    if isinstance(value, dt.datetime):
        moment = value
    elif isinstance(value, dt.date):
        moment = dt.datetime.combine(value, dt.time())
    else:
        try:
            moment = dt.datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise _misfit(value, "a time such as 2026-01-31T12:00:00") from None
    if time_zone is None and moment.tzinfo is not None:
        raise _misfit(value, "a time without a zone")
    if time_zone is None:
        return moment
    zone = ZoneInfo(time_zone)
    return moment.astimezone(zone) if moment.tzinfo else moment.replace(tzinfo=zone)


def _inner(kind: pl.List | pl.Array) -> pl.DataType:
    return kind.inner if isinstance(kind.inner, pl.DataType) else kind.inner()


def _misfit(value: Any, wanted: str) -> ValueError:
    return ValueError(f"{shortened(value)} is not {wanted}")
