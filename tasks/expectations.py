"""The closed list of expectations, and params.yaml's rules read against it and against the columns of the rows.

Names and arguments are Great Expectations' own. On rows stand the expectations that one row decides; on the table those
that small statistics, merged from all shards, decide. Nulls are Great Expectations' too: an expectation on a column
says nothing about a row whose value is null, or NaN, except the ones that ask for null.
"""

import datetime as dt
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from tasks.errors import ParamsError, did_you_mean
from tasks.values import fit, shortened

# Great Expectations holds a bound as a float; a whole number beyond this would silently become another one.
_LARGEST_EXACT = 2**53

# Takes an argument's value and the types of the rule's columns; gives the value that Great Expectations gets.
# Raises ValueError with what would be right.
Check = Callable[[Any, Sequence[pl.DataType]], Any]


@dataclass(frozen=True)
class Rule:
    """One expectation of params.yaml, checked: its arguments fit its columns."""

    where: str
    name: str
    columns: tuple[str, ...]
    arguments: Mapping[str, Any]

    @property
    def others(self) -> dict[str, Any]:
        """The arguments that do not name columns."""
        return {key: value for key, value in self.arguments.items() if key not in _NAMES_COLUMNS}

    def __str__(self) -> str:
        said = [*self.columns, *(f"{key}={shortened(value)}" for key, value in self.others.items())]
        return f"{self.name}({', '.join(said)})"


@dataclass(frozen=True)
class _Kind:
    """What an expectation takes: the arguments that name columns, which types those may have, and everything else."""

    names: tuple[str, ...]
    reads: frozenset[str]
    required: Mapping[str, Check]
    optional: Mapping[str, Check]
    one_of: tuple[str, ...] = ()  # arguments of which at least one is needed
    alike: bool = False  # compares its columns with each other


_NAMES_COLUMNS = ("column", "column_A", "column_B", "column_list")


def read_rules(
    rows: Iterable[Mapping[str, Mapping[str, Any]]],
    table: Iterable[Mapping[str, Mapping[str, Any]]],
    schema: Mapping[str, pl.DataType],
    of_problem: Iterable[Mapping[str, Mapping[str, Any]]] = (),
) -> tuple[list[Rule], list[Rule]]:
    """The rules on rows and on the table. Raises ParamsError with every mistake in them.

    What the problem expects of its rows comes behind what params do, where they do not say it themselves.
    """
    mistakes: list[str] = []
    on_rows = list(_read("rows", rows, ROWS, schema, mistakes))
    said = {str(rule) for rule in on_rows}
    on_rows += [rule for rule in _read("problem", of_problem, ROWS, schema, mistakes) if str(rule) not in said]
    on_table = list(_read("table", table, TABLE, schema, mistakes))
    if mistakes:
        raise ParamsError("\n".join(mistakes))
    return on_rows, on_table


def _read(
    part: str,
    written: Iterable[Mapping[str, Mapping[str, Any]]],
    known: Mapping[str, _Kind],
    schema: Mapping[str, pl.DataType],
    mistakes: list[str],
) -> Iterable[Rule]:
    earlier: dict[str, str] = {}
    for number, expectation in enumerate(written):
        (name, arguments), where = next(iter(expectation.items())), f"validate.{part}[{number}]"
        if name not in known:
            mistakes.append(f"{where}: {_unknown(name, part, known)}")
            continue
        found: list[str] = []
        rule = _rule(where, name, known[name], arguments, schema, found)
        mistakes += [f"{where}: {name}: {mistake}" for mistake in found]
        if found:
            continue
        if str(rule) in earlier:
            mistakes.append(f"{where} says the same as {earlier[str(rule)]}: {rule}. Take one of them out.")
        earlier.setdefault(str(rule), where)
        yield rule


def _unknown(name: str, part: str, known: Mapping[str, _Kind]) -> str:
    other_part, others = ("table", TABLE) if part == "rows" else ("rows", ROWS)
    if name in others:
        reason = "one row does not decide it" if part == "rows" else "it is decided row by row"
        return f"{name} stands in the wrong place: {reason}. Move it to validate.{other_part}."
    for refused, reason in _REFUSED.items():
        if re.fullmatch(refused, name):
            return f"{name} is not taken here: {reason}. Allowed: {_listed(known)}."
    return f"there is no expectation {name}.{did_you_mean(name, [*known, *others])} Allowed: {_listed(known)}."


def _rule(
    where: str,
    name: str,
    kind: _Kind,
    arguments: Mapping[str, Any],
    schema: Mapping[str, pl.DataType],
    mistakes: list[str],
) -> Rule:
    """Read one expectation. What is wrong with it goes to `mistakes`; the rule is of use only where nothing does."""
    checks = {**kind.required, **kind.optional}
    for key in arguments:
        if key in kind.names or key in checks:
            continue
        if key == "mostly":
            mistakes.append(
                "`mostly` has no meaning for one row, which keeps a rule or goes to quarantine. How many may go there "
                "is said once, by validate.max_quarantined."
            )
        else:
            allowed = [*kind.names, *checks]
            mistakes.append(f"it takes no argument {key!r}.{did_you_mean(key, allowed)} Allowed: {_listed(allowed)}.")
    columns = _columns(kind, arguments, schema, mistakes)
    mistakes += [f"{key} is missing." for key in kind.required if key not in arguments]
    if kind.one_of and all(arguments.get(key) is None for key in kind.one_of):
        mistakes.append(f"it needs {' or '.join(kind.one_of)}.")
    types = [schema[column] for column in columns if column in schema]
    checked = {}
    if len(types) == len(columns):
        for key, check in checks.items():
            if arguments.get(key) is None:
                continue
            try:
                checked[key] = check(arguments[key], types)
            except ValueError as error:
                mistakes.append(f"{key}: {error}.")
    if not mistakes and _crossed(checked):
        mistakes.append(f"min_value {arguments['min_value']} is above max_value {arguments['max_value']}.")
    return Rule(where, name, columns, {key: arguments[key] for key in kind.names if key in arguments} | checked)


def _columns(
    kind: _Kind, arguments: Mapping[str, Any], schema: Mapping[str, pl.DataType], mistakes: list[str]
) -> tuple[str, ...]:
    """The columns that the arguments name; each must be there and hold what the expectation reads."""
    columns: list[str] = []
    for key in kind.names:
        named = arguments.get(key)
        several = key == "column_list"
        if named is None:
            mistakes.append(f"{key} is missing.")
        elif several and not (isinstance(named, list) and len(named) > 1 and all(isinstance(n, str) for n in named)):
            mistakes.append(f"{key} is {shortened(named)}; it takes a list of two or more columns.")
        elif not several and not isinstance(named, str):
            mistakes.append(f"{key} is {shortened(named)}; it takes one column's name.")
        else:
            columns += named if several else [named]
    for column in columns:
        if column not in schema:
            mistakes.append(
                f"the rows have no column {column!r}.{did_you_mean(column, schema)} They have: {_listed(schema)}."
            )
        elif _family(schema[column]) not in kind.reads:
            reads = _listed(kind.reads)
            mistakes.append(f"the column {column!r} holds {schema[column]}; this expectation reads {reads}.")
    families = {_family(schema[column]) for column in columns if column in schema}
    if kind.alike and len(families) > 1:
        mistakes.append(f"its columns hold {_listed(families)}, which cannot be compared with each other.")
    return tuple(columns)


def _crossed(arguments: Mapping[str, Any]) -> bool:
    low, high = arguments.get("min_value"), arguments.get("max_value")
    return low is not None and high is not None and bool(low > high)


def _of_the_column(value: Any, types: Sequence[pl.DataType]) -> Any:
    fitted = fit(value, types[0])
    if isinstance(fitted, int) and not isinstance(fitted, bool) and abs(fitted) > _LARGEST_EXACT:
        raise ValueError(f"{value} is too large to be compared exactly; bounds go up to 2^53")
    return fitted


def _values(value: Any, types: Sequence[pl.DataType]) -> list[Any]:
    if not isinstance(value, list) or not value or None in value:
        raise ValueError(
            f"{shortened(value)} is not a list of values (null is never in it; ask for it with ..._be_null)"
        )
    return [fit(item, types[0]) for item in value]


def _pairs(value: Any, types: Sequence[pl.DataType]) -> list[tuple[Any, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise ValueError(f"{shortened(value)} is not a list of pairs such as [[a, b], [c, d]]")
    return [(fit(first, types[0]), fit(second, types[1])) for first, second in value]


def _number(value: Any, _: Sequence[pl.DataType]) -> float:
    number: float = fit(value, pl.Float64())
    if number != number:
        raise ValueError("nan is not a bound")
    return number


def _share(value: Any, types: Sequence[pl.DataType]) -> float:
    number = _number(value, types)
    if not 0 <= number <= 1:
        raise ValueError(f"{value} is not between 0 and 1")
    return number


def _count(value: Any, _: Sequence[pl.DataType]) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_EXACT:
        raise ValueError(f"{shortened(value)} is not a count (0, 1, 2, …)")
    return value


def _flag(value: Any, _: Sequence[pl.DataType]) -> bool:
    flag: bool = fit(value, pl.Boolean())
    return flag


def _text(value: Any, _: Sequence[pl.DataType]) -> str:
    text: str = fit(value, pl.String())
    return text


def _pattern(value: Any, types: Sequence[pl.DataType]) -> str:
    text = _text(value, types)
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{shortened(text)} is not a regular expression ({error})") from None
    return text


def _time_format(value: Any, types: Sequence[pl.DataType]) -> str:
    """A format that cannot be read back would turn every row away."""
    text = _text(value, types)
    try:
        dt.datetime.strptime(dt.datetime(2026, 1, 31).strftime(text), text)
    except ValueError as error:
        raise ValueError(f"{shortened(text)} is not a format of strptime ({error})") from None
    return text


def _patterns(value: Any, types: Sequence[pl.DataType]) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{shortened(value)} is not a list of regular expressions")
    return [_pattern(item, types) for item in value]


def _one_of(*allowed: str) -> Check:
    def check(value: Any, _: Sequence[pl.DataType]) -> Any:
        if value not in allowed:
            raise ValueError(
                f"{shortened(value)} is not known.{did_you_mean(str(value), allowed)} Allowed: {_listed(allowed)}"
            )
        return value

    return check


def _family(kind: pl.DataType) -> str:
    """What a column can be compared with. Decimals stand apart: Great Expectations would compare them with floats."""
    match kind:
        case pl.String() | pl.Categorical() | pl.Enum():
            return "texts"
        case pl.Boolean():
            return "true and false"
        case pl.Date():
            return "dates"
        case pl.Datetime():
            return "times"
        case pl.Decimal():
            return "decimals"
        case _:
            return "numbers" if kind.is_numeric() else "other values"


_TEXTS = frozenset({"texts"})
_NUMBERS = frozenset({"numbers"})
_ORDERED = frozenset({"numbers", "dates", "times"})
_COMPARABLE = _ORDERED | {"texts", "true and false", "decimals"}
_ANYTHING = _COMPARABLE | {"other values"}

_BOUNDS = ("min_value", "max_value")


def _between(check: Check) -> dict[str, Check]:
    return {"min_value": check, "max_value": check, "strict_min": _flag, "strict_max": _flag}


def _on(reads: frozenset[str], required: Mapping[str, Check] | None = None, **optional: Check) -> _Kind:
    return _Kind(("column",), reads, required or {}, optional)


def _bounded(reads: frozenset[str], check: Check) -> _Kind:
    return _Kind(("column",), reads, {}, _between(check), _BOUNDS)


def _on_pair(alike: bool, required: Mapping[str, Check] | None = None, **optional: Check) -> _Kind:
    nulls = _one_of("both_values_are_missing", "either_value_is_missing", "neither")
    return _Kind(
        ("column_A", "column_B"), _COMPARABLE, required or {}, {**optional, "ignore_row_if": nulls}, alike=alike
    )


def _on_several(alike: bool, **optional: Check) -> _Kind:
    nulls = _one_of("all_values_are_missing", "any_value_is_missing", "never")
    return _Kind(("column_list",), _COMPARABLE, {}, {**optional, "ignore_row_if": nulls}, alike=alike)


ROWS: Mapping[str, _Kind] = {
    "expect_column_values_to_not_be_null": _on(_ANYTHING),
    "expect_column_values_to_be_null": _on(_ANYTHING),
    "expect_column_values_to_be_in_set": _on(_COMPARABLE, {"value_set": _values}),
    "expect_column_values_to_not_be_in_set": _on(_COMPARABLE, {"value_set": _values}),
    "expect_column_values_to_be_between": _bounded(_ORDERED, _of_the_column),
    "expect_column_value_lengths_to_be_between": _bounded(_TEXTS, _count),
    "expect_column_value_lengths_to_equal": _on(_TEXTS, {"value": _count}),
    "expect_column_values_to_match_regex": _on(_TEXTS, {"regex": _pattern}),
    "expect_column_values_to_not_match_regex": _on(_TEXTS, {"regex": _pattern}),
    "expect_column_values_to_match_regex_list": _on(_TEXTS, {"regex_list": _patterns}, match_on=_one_of("any", "all")),
    "expect_column_values_to_not_match_regex_list": _on(_TEXTS, {"regex_list": _patterns}),
    "expect_column_values_to_match_strftime_format": _on(_TEXTS, {"strftime_format": _time_format}),
    "expect_column_values_to_be_json_parseable": _on(_TEXTS),
    "expect_column_pair_values_to_be_equal": _on_pair(alike=True),
    "expect_column_pair_values_a_to_be_greater_than_b": _on_pair(alike=True, or_equal=_flag),
    "expect_column_pair_values_to_be_in_set": _on_pair(alike=False, required={"value_pairs_set": _pairs}),
    "expect_multicolumn_values_to_be_equal": _on_several(alike=True),
    "expect_select_column_values_to_be_unique_within_record": _on_several(alike=True),
}

TABLE: Mapping[str, _Kind] = {
    "expect_table_row_count_to_be_between": _Kind((), _ANYTHING, {}, _between(_count), _BOUNDS),
    "expect_table_row_count_to_equal": _Kind((), _ANYTHING, {"value": _count}, {}),
    "expect_column_values_to_be_unique": _on(_COMPARABLE, mostly=_share),
    "expect_compound_columns_to_be_unique": _on_several(alike=False, mostly=_share),
    "expect_column_unique_value_count_to_be_between": _bounded(_COMPARABLE, _count),
    "expect_column_proportion_of_unique_values_to_be_between": _bounded(_COMPARABLE, _share),
    "expect_column_proportion_of_non_null_values_to_be_between": _bounded(_ANYTHING, _share),
    "expect_column_distinct_values_to_be_in_set": _on(_COMPARABLE, {"value_set": _values}),
    "expect_column_distinct_values_to_contain_set": _on(_COMPARABLE, {"value_set": _values}),
    "expect_column_distinct_values_to_equal_set": _on(_COMPARABLE, {"value_set": _values}),
    "expect_column_min_to_be_between": _bounded(_ORDERED, _of_the_column),
    "expect_column_max_to_be_between": _bounded(_ORDERED, _of_the_column),
    "expect_column_mean_to_be_between": _bounded(_NUMBERS, _number),
    "expect_column_sum_to_be_between": _bounded(_NUMBERS, _number),
    "expect_column_stdev_to_be_between": _bounded(_NUMBERS, _number),
}

# Great Expectations has these as well. Why they are left out helps more than "unknown".
_REFUSED = {
    r"expect_column_values_to_be_dateutil_parseable": (
        "what it takes depends on the day it runs; expect_column_values_to_match_strftime_format does not"
    ),
    r"expect_column_values_to_be_(of_type|in_type_list)|expect_column_type_to_be": (
        "a column has one type, which collect gives it"
    ),
    r"expect_column_value(s_to_be_(in|de)creasing|_z_scores.*|s_to_not_be_outliers)": (
        "it compares a row with others, so one row does not decide it, and neither do merged statistics"
    ),
    r"expect_column_(median|quantile|kl|most_common|bootstrapped|chisquare|parameterized|pair_cramers).*": (
        "it needs all values at once, and rows are read shard by shard"
    ),
    r".*like_pattern.*": "it works on SQL databases only; expect_column_values_to_match_regex says the same",
    r".*json_schema": "a value that is no JSON leaves it undecided; expect_column_values_to_be_json_parseable decides",
    r"expect_multicolumn_sum_to_equal": "a null in one of its columns leaves it undecided",
    r"expect_table_column.*|expect_column_to_exist": "the columns are those of collect.columns, and always there",
    r"expect_(table_row_count_to_equal_other_table|query_.*)|unexpected_rows_expectation": (
        "there is one table here, and no database behind it"
    ),
}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
