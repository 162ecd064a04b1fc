"""Statistics of a table that is read shard by shard. They are exact, so how the rows are sharded does not show in them.

Sums are kept as fractions of whole numbers, not as floats, whose last digits depend on the order. Distinct values are
kept as 64-bit hashes, 8 bytes a row: two different values share one with a chance of n² / 2⁶⁵, below 3 in 10,000 for
a hundred million rows. NaN counts as null, as in pandas.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

MAX_EXAMPLES = 20


class Numbers:
    """Extremes of a column, and of numbers the sum, mean and standard deviation."""

    def __init__(self, kind: pl.DataType) -> None:
        self.low: Any = None
        self.high: Any = None
        self._adds_up = kind.is_numeric()
        # Sums are counted in units of 1 / 2^bits: every double is a whole number of them.
        self._bits = 1074 if kind.is_float() else 0
        self._count = 0
        self._infinite = False
        self._sum = 0
        self._sum_of_squares = 0

    def add(self, values: pl.Series) -> None:
        """Take the values of one shard, no null among them."""
        if values.is_empty():
            return
        low, high = values.min(), values.max()
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)
        if self._adds_up:
            self._count += len(values)
            units = values.to_list()
            if self._bits:
                self._infinite = self._infinite or bool(values.is_infinite().any())
                units = [_units(value, self._bits) for value in units if math.isfinite(value)]
            self._sum += sum(units)
            self._sum_of_squares += sum(number * number for number in units)

    @property
    def sum(self) -> int | float | None:
        """The sum, rounded once; None where there are no values, or infinite ones."""
        if not self._is_finite():
            return None
        return _rounded(self._exact_sum()) if self._bits else self._sum

    @property
    def mean(self) -> float | None:
        """None where there are no values, or infinite ones."""
        return _rounded(self._exact_sum() / self._count) if self._is_finite() else None

    @property
    def standard_deviation(self) -> float | None:
        """With n - 1 in the denominator, as in pandas; None for fewer than two values, or infinite ones."""
        if not self._is_finite() or self._count < 2:
            return None
        squares = Fraction(self._sum_of_squares, 1 << (2 * self._bits))
        variance = (squares - self._exact_sum() ** 2 / self._count) / (self._count - 1)
        # A variance can lie beyond the range of a double where its root does not.
        halved = (variance.numerator.bit_length() - variance.denominator.bit_length()) // 2
        return math.ldexp(math.sqrt(variance / Fraction(4) ** halved), halved)

    def _exact_sum(self) -> Fraction:
        return Fraction(self._sum, 1 << self._bits)

    def _is_finite(self) -> bool:
        return self._count > 0 and not self._infinite


class Distinct:
    """How many different values there are, or combinations of values, and how many rows share theirs with another."""

    def __init__(self) -> None:
        self._hashes: list[NDArray[np.uint64]] = []
        self._counted: tuple[int, int, NDArray[np.uint64]] | None = None

    def add(self, hashes: pl.Series) -> None:
        """Take one hash for each row that counts."""
        self._hashes.append(hashes.to_numpy())
        self._counted = None

    @property
    def num_values(self) -> int:
        return self._count()[0]

    @property
    def num_repeated_rows(self) -> int:
        return self._count()[1]

    @property
    def repeated(self) -> pl.Series:
        """The hashes that more than one row has."""
        return pl.Series(self._count()[2], dtype=pl.UInt64)

    def _count(self) -> tuple[int, int, NDArray[np.uint64]]:
        if self._counted is None:
            hashes = np.concatenate([np.empty(0, dtype=np.uint64), *self._hashes])
            hashes.sort()
            self._hashes = [hashes]
            starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(hashes)])
            sizes = np.diff(np.append(starts, len(hashes)))
            repeated = sizes > 1
            self._counted = len(starts), int(sizes[repeated].sum()), hashes[starts[repeated]]
        return self._counted


class Members:
    """Which values of a set a column has, and which values outside of it: the smallest few, and how many."""

    def __init__(self, value_set: Sequence[Any], kind: pl.DataType) -> None:
        self._expected = pl.Series(list(dict.fromkeys(value_set)), dtype=kind)
        self._seen: set[Any] = set()
        self._others = Distinct()
        self.examples: list[Any] = []

    def add(self, values: pl.Series) -> None:
        """Take the values of one shard that are not null."""
        known = values.is_in(self._expected.implode())
        self._seen.update(values.filter(known).unique().to_list())
        others = values.filter(~known).unique()
        self._others.add(others.hash())
        self.examples = sorted({*self.examples, *others.bottom_k(MAX_EXAMPLES).to_list()})[:MAX_EXAMPLES]

    @property
    def num_others(self) -> int:
        return self._others.num_values

    @property
    def missing(self) -> list[Any]:
        """The values of the set that the column does not have, in the set's order."""
        return [value for value in self._expected.to_list() if value not in self._seen]


class Merged:
    """What one rule on the table has to know of all rows, under the names of Great Expectations' metrics."""

    def __init__(
        self,
        columns: Sequence[str],
        arguments: Mapping[str, Any],
        metrics: Iterable[str],
        schema: Mapping[str, pl.DataType],
    ) -> None:
        self._columns = list(columns)
        self._ignore_row_if = arguments.get("ignore_row_if", "all_values_are_missing")
        self._num_rows = 0
        self._num_counted = 0
        self._numbers: Numbers | None = None
        self._distinct: Distinct | None = None
        self._members: Members | None = None
        self.examples: list[dict[str, Any]] = []
        if "value_set" in arguments:
            self._members = Members(arguments["value_set"], schema[columns[0]])
        elif any("unique" in name or "distinct" in name for name in metrics):
            self._distinct = Distinct()
        elif not _COUNTS.issuperset(metrics):
            self._numbers = Numbers(schema[columns[0]])

    def add(self, rows: pl.DataFrame) -> None:
        """Take the rows of one shard."""
        self._num_rows += len(rows)
        counted = self._counted(rows)
        self._num_counted += len(counted)
        if self._distinct is not None:
            self._distinct.add(self._hashes(counted))
        elif self._members is not None:
            self._members.add(counted[self._columns[0]])
        elif self._numbers is not None:
            self._numbers.add(counted[self._columns[0]])

    @property
    def has_repetitions(self) -> bool:
        """Whether a second look at the shards, with `look_up`, can show rows that share their values."""
        return self._distinct is not None and self._distinct.num_repeated_rows > 0

    def look_up(self, rows: pl.DataFrame) -> None:
        """Note the first few rows, in order, that share their values with another row."""
        if self._distinct is not None and len(self.examples) < MAX_EXAMPLES:
            counted = self._counted(rows)
            repeated = counted.filter(self._hashes(counted).is_in(self._distinct.repeated.implode()))
            found = repeated.head(MAX_EXAMPLES - len(self.examples))
            self.examples += found.select(pl.col("id"), *(pl.col(c) for c in self._columns if c != "id")).to_dicts()

    def metric(self, name: str) -> Any:
        """The value of one of Great Expectations' metrics over all rows that were added."""
        match name.split("."):
            case ["table", "row_count"]:
                return self._num_rows
            case ["column_values", "nonnull", "unexpected_count"]:
                return self._num_rows - self._num_counted
            case [*_, "filtered_row_count"]:
                return self._num_counted
            case ["column", "non_null_proportion"]:
                return self._num_counted / max(self._num_rows, 1)
        if self._numbers is not None:
            return self._of_numbers(name, self._numbers)
        if self._members is not None:
            return self._of_members(name, self._members)
        if self._distinct is not None:
            return self._of_distinct(name, self._distinct)
        raise KeyError(name)

    def _of_numbers(self, name: str, numbers: Numbers) -> Any:
        return {
            "column.min": numbers.low,
            "column.max": numbers.high,
            "column.mean": numbers.mean,
            "column.sum": numbers.sum,
            "column.standard_deviation": numbers.standard_deviation,
        }[name]

    def _of_members(self, name: str, members: Members) -> Any:
        return {
            "column.distinct_values.not_in_set.count": members.num_others,
            "column.distinct_values.not_in_set": members.examples,
            "column.distinct_values.missing_from_column.count": len(members.missing),
            "column.distinct_values.missing_from_column": members.missing[:MAX_EXAMPLES],
        }[name]

    def _of_distinct(self, name: str, distinct: Distinct) -> Any:
        return {
            "column.distinct_values.count": distinct.num_values,
            "column.unique_proportion": distinct.num_values / max(self._num_counted, 1),
            "column_values.unique.unexpected_count": distinct.num_repeated_rows,
            "compound_columns.unique.unexpected_count": distinct.num_repeated_rows,
        }[name]

    def _counted(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows that the rule speaks of: those with a value, or of several columns those that are not ignored."""
        if not self._columns:
            return rows
        missing = [is_missing(rows[column]) for column in self._columns]
        if len(missing) == 1 or self._ignore_row_if == "any_value_is_missing":
            return rows.filter(~pl.any_horizontal(missing))
        return rows if self._ignore_row_if == "never" else rows.filter(~pl.all_horizontal(missing))

    def _hashes(self, rows: pl.DataFrame) -> pl.Series:
        return rows.select(pl.struct(self._columns).hash()).to_series()


def is_missing(values: pl.Series) -> pl.Series:
    """Null, or NaN, which Great Expectations takes for null."""
    return values.is_null() | values.is_nan().fill_null(False) if values.dtype.is_float() else values.is_null()


# What is known of every table without looking at values.
_COUNTS = frozenset({"table.row_count", "column.non_null_proportion"})


def _units(value: float, bits: int) -> int:
    numerator, denominator = value.as_integer_ratio()
    return numerator << (bits - denominator.bit_length() + 1)


def _rounded(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf
