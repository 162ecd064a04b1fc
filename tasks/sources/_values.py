"""Columns out of Python values, as JSON and database drivers give them: one type for a column, or a clear no."""

import datetime as dt
import functools
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import polars as pl

_MAX_DECIMAL_DIGITS = 38

NOTHING: pl.DataType = pl.Null()

_SCALARS: Mapping[type, pl.DataType] = {
    bool: pl.Boolean(),
    int: pl.Int64(),
    float: pl.Float64(),
    str: pl.String(),
    bytes: pl.Binary(),
    dt.date: pl.Date(),
    dt.timedelta: pl.Duration("us"),
}


class Unfit(ValueError):
    """Values that no one column holds. The message says which, without the place."""


def widened(kind: pl.DataType, value: Any) -> pl.DataType:
    """The type of a column that holds what `kind` holds, and this value. Raises Unfit where there is none."""
    # Nearly every value is of the type that was found before: that path has to be short.
    if value is None or (_SCALARS.get(type(value)) is kind and not isinstance(value, int)):
        return kind
    return common(kind, kind_of(value))


def kind_of(value: Any) -> pl.DataType:
    """The type of a column that holds this value. Raises Unfit where there is none."""
    match value:
        case None:
            return NOTHING
        case int() if not -(2**63) <= value < 2**63:
            raise Unfit("a whole number past 64 bits; write it as text")
        case dt.datetime():
            return pl.Datetime("us", "UTC" if value.tzinfo else None)
        case dt.time() if value.tzinfo is None:
            return pl.Time()
        case Decimal():
            return _decimal(value)
        case list():
            return pl.List(functools.reduce(widened, value, NOTHING))
        case dict():
            return pl.Struct({name: kind_of(item) for name, item in value.items()})
    kind = _SCALARS.get(type(value))
    if kind is None:
        raise Unfit(f"a value of type {type(value).__name__}, which no column holds")
    return kind


def common(one: pl.DataType, other: pl.DataType) -> pl.DataType:
    """The type of a column that holds values of both. Raises Unfit where there is none."""
    if one == other or isinstance(other, pl.Null):
        return one
    match one, other:
        case pl.Null(), _:
            return other
        case (pl.Int64(), pl.Float64()) | (pl.Float64(), pl.Int64()):
            return pl.Float64()
        case (pl.Decimal(), pl.Int64()):
            return one
        case (pl.Int64(), pl.Decimal()):
            return other
        case pl.Decimal(), pl.Decimal():
            return pl.Decimal(_MAX_DECIMAL_DIGITS, max(one.scale, other.scale))
        case pl.List(), pl.List():
            return pl.List(common(_kind(one.inner), _kind(other.inner)))
        case pl.Struct(), pl.Struct():
            fields = {field.name: _kind(field.dtype) for field in one.fields}
            for field in other.fields:
                fields[field.name] = common(fields.get(field.name, NOTHING), _kind(field.dtype))
            return pl.Struct(fields)
    raise Unfit(f"{other} where earlier rows have {one}")


def frame(columns: Mapping[str, Sequence[Any]], kinds: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Columns of these types, which must fit."""
    return pl.DataFrame({name: pl.Series(name, _held(columns[name], kind), dtype=kind) for name, kind in kinds.items()})


def _held(values: Iterable[Any], kind: pl.DataType) -> list[Any]:
    if isinstance(kind, pl.Decimal):  # Polars mixes no whole numbers into a column of decimals
        return [None if value is None else Decimal(value) for value in values]
    return list(values)


def _decimal(value: Decimal) -> pl.DataType:
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int):
        raise Unfit(f"{value} among decimals; make it a double")
    if max(-exponent, len(value.as_tuple().digits) + max(exponent, 0)) > _MAX_DECIMAL_DIGITS:
        raise Unfit(f"a decimal of more than {_MAX_DECIMAL_DIGITS} digits; make it a double or text")
    return pl.Decimal(_MAX_DECIMAL_DIGITS, max(0, -exponent))


def _kind(inner: Any) -> pl.DataType:
    """The inside of a type, for which Polars allows a class as well; what is made here is always an instance."""
    kind: pl.DataType = inner
    return kind
