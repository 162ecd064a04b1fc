"""From a source's columns to the problem's: a plain name, or SQL over the columns of one row.

SQL is Polars' dialect. What looks at more than its own row, or at a clock, is refused: the answer would depend on how
rows fall into batches, or on the day.
"""

import re
from collections.abc import Mapping

import polars as pl

from tasks.errors import ParamsError, SourceError, did_you_mean
from tasks.ids import AFTER_CONTENT, AFTER_KEY, ID_DIGITS, Separator, content_hash, numbered
from tasks.params import Collect
from tasks.problems import Problem

_VALUE = "value"

# More likely a column's name than SQL.
_WORDS = re.compile(r"[\w .-]+")

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_MORE_THAN_A_ROW = re.compile(
    r"\b(OVER|AVG|SUM|COUNT|MIN|MAX|FIRST|LAST|MEDIAN|MODE|STDE?V|STDDEV|VAR|VARIANCE|CORR|COVAR|QUANTILE|ARRAY_AGG|"
    r"STRING_AGG|LISTAGG|BOOL_AND|BOOL_OR|UNNEST|SELECT)(?:_SAMP|_POP|_CONT|_DISC)?\s*\(|\(\s*(SELECT)\b",
    re.IGNORECASE,
)
_CLOCK = re.compile(r"\b(NOW\s*\(|CURRENT_(?:DATE|TIME|TIMESTAMP)\b|TODAY\s*\(|LOCALTIME\w*\b)", re.IGNORECASE)


def check_columns(params: Collect, problem: Problem) -> None:
    """Raise ParamsError where a column that the problem needs is mapped from nothing."""
    missing = [name for name in problem.columns if name not in params.columns]
    if missing:
        said = ", ".join(params.columns)
        raise ParamsError(
            f"params.yaml: collect.columns lacks {', '.join(missing)}, which the problem {problem.name} needs. It has: "
            f"{said}.{did_you_mean(missing[0], params.columns)} Say which column of the source, or which SQL, it is."
        )


def separator_of(params: Collect) -> Separator:
    """How the ids of this source are numbered."""
    return AFTER_KEY if "id" in params.columns else AFTER_CONTENT


def mapped(rows: pl.DataFrame, params: Collect, problem: Problem, place: str, first_row: int) -> pl.DataFrame:
    """The rows that `where` lets through: `id` (as if none came twice), the problem's columns, the others by name.

    The problem's columns have the problem's types; the others keep theirs. Raises SourceError that names `place`, the
    column and the row, counted from `first_row`, and ParamsError for SQL that cannot be.
    """
    numbers = pl.int_range(first_row, first_row + len(rows), eager=True)
    if params.where is not None:
        chosen = _evaluated(rows, params.where, "collect.where", place, numbers)
        if chosen.dtype not in (pl.Boolean, pl.Null):
            raise ParamsError(
                f"params.yaml: collect.where is {params.where!r}, which is {chosen.dtype}, not true or false."
            )
        chosen = chosen.cast(pl.Boolean).fill_null(False)
        rows, numbers = rows.filter(chosen), numbers.filter(chosen)
    columns = {"id": _ids(rows, params, place, numbers)}
    others = sorted(params.columns.keys() - problem.columns.keys() - {"id"})
    for name in (*problem.columns, *others):
        option = f"collect.columns.{name}"
        values = _evaluated(rows, params.columns[name], option, place, numbers)
        wanted = problem.columns.get(name, _lasting(values.dtype))
        columns[name] = _cast(values, wanted, option, place, numbers)
    return pl.DataFrame(columns)


def conformed(rows: pl.DataFrame, schema: Mapping[str, pl.DataType], place: str) -> pl.DataFrame:
    """The rows with the types that earlier partitions have. Raises SourceError where a value would not survive it."""
    different = {name: kind for name, kind in schema.items() if rows.schema[name] != kind}
    for name, kind in different.items():
        values = rows[name]
        try:
            cast = values.cast(kind)
            survives = bool(cast.cast(values.dtype).eq_missing(values).all())
        except pl.exceptions.PolarsError:
            survives = False
        if not survives:
            raise SourceError(
                f"{place}: the column {name!r} is {values.dtype} here and {kind} in the partitions before it. Give it "
                f"one type in params.yaml, for instance collect.columns.{name}: CAST(… AS {_sql_name(kind)})."
            )
        rows = rows.with_columns(cast.alias(name))
    return rows


def _ids(rows: pl.DataFrame, params: Collect, place: str, numbers: pl.Series) -> pl.Series:
    separator = separator_of(params)
    if separator == AFTER_CONTENT:
        # Over all that the source says of the row: so that another choice of columns leaves the ids as they are.
        hashes = pl.Series([content_hash(row)[:ID_DIGITS] for row in rows.iter_rows(named=True)], dtype=pl.String)
        return numbered(hashes, 0, separator)
    option = "collect.columns.id"
    keys = _evaluated(rows, params.columns["id"], option, place, numbers)
    if keys.null_count():
        raise SourceError(
            f"{place}, row {numbers.filter(keys.is_null())[0]}: the key {params.columns['id']!r} has no value. Every "
            "row needs one: mend the row, leave it out by collect.where, or take `id` out of collect.columns, so that "
            "ids come from the rows' content."
        )
    return numbered(_cast(keys, pl.String(), option, place, numbers), 0, separator)


def _evaluated(rows: pl.DataFrame, said: str, option: str, place: str, numbers: pl.Series) -> pl.Series:
    """The values of a column or of SQL, one for each row. `numbers` are the rows' numbers for messages."""
    if said in rows.columns:
        return rows[said]
    expression = _parsed(said, option, place, rows.columns)
    missing = [name for name in expression.meta.root_names() if name not in rows.columns]
    if missing:
        # `two words` is SQL for the column `two`, to be called `words`: whoever wrote it may have meant one name.
        meant = said if _WORDS.fullmatch(said) and not did_you_mean(missing[0], rows.columns) else missing[0]
        raise SourceError(_no_column(meant, said, option, place, rows.columns))
    return _computed(rows, expression, said, option, place, numbers)


def _parsed(said: str, option: str, place: str, known: list[str]) -> pl.Expr:
    bare = _QUOTED.sub("''", said)
    if match := _MORE_THAN_A_ROW.search(bare):
        word = (match[1] or match[2]).upper()
        raise ParamsError(
            f"params.yaml: {option} is {said!r}, and {word} looks at more than one row. Rows come in batches, so it "
            "would have another value in each. Compute it in the source."
        )
    if match := _CLOCK.search(bare):
        raise ParamsError(
            f"params.yaml: {option} is {said!r}, and {match[1].rstrip('( ').upper()} has another value at each run. "
            "Write the moment down."
        )
    try:
        return pl.sql_expr(said)
    except pl.exceptions.PolarsError as error:
        if _WORDS.fullmatch(said):
            raise SourceError(_no_column(said, said, option, place, known)) from None
        raise ParamsError(f"params.yaml: {option} is {said!r}, which is not SQL: {_first_line(error)}.") from None


def _no_column(name: str, said: str, option: str, place: str, known: list[str]) -> str:
    return (
        f"{place}: there is no column {name!r}, which {option}{'' if said == name else f' ({said})'} reads."
        f"{did_you_mean(name, known)} It has: {', '.join(known)}."
    )


def _cast(values: pl.Series, kind: pl.DataType, option: str, place: str, numbers: pl.Series) -> pl.Series:
    """The values as another type, if every one of them can be."""
    if values.dtype == kind:
        return values
    if (values.dtype.is_nested() and not kind.is_nested()) or values.dtype == pl.Binary:
        raise SourceError(f"{place}: {option} is {values.dtype}, and must be {kind}.")
    said = f"a cast to {kind}"
    cast = _computed(values.to_frame(_VALUE), pl.col(_VALUE).cast(kind), said, option, place, numbers)
    if kind.is_integer() and (values.dtype.is_float() or values.dtype.is_decimal()):
        rounded = (cast.cast(values.dtype) != values).fill_null(False)
        if rounded.any():
            raise SourceError(
                f"{place}, row {numbers.filter(rounded)[0]}: {option} is {values.filter(rounded)[0]}, and must be a "
                "whole number."
            )
    return cast


def _computed(
    rows: pl.DataFrame, expression: pl.Expr, said: str, option: str, place: str, numbers: pl.Series
) -> pl.Series:
    try:
        return rows.with_columns(expression.alias(_VALUE))[_VALUE]
    except pl.exceptions.PolarsError as error:
        why = _first_line(error)
    first = _first_bad_row(rows, expression)
    if first is not None:
        raise SourceError(f"{place}, row {numbers[first]}: {option} cannot be computed ({said}): {why}.")
    roots = [name for name in expression.meta.root_names() if rows.schema.get(name) == pl.String]
    hint = f" The column {roots[0]!r} is text here: write CAST({roots[0]} AS DOUBLE) for a number." if roots else ""
    raise SourceError(f"{place}: {option} cannot be computed ({said}): {why}.{hint}")


def _first_bad_row(rows: pl.DataFrame, expression: pl.Expr) -> int | None:
    """The row whose value makes the expression fail, by halving; None where it fails for every row, or for none."""

    def works(num_rows: int) -> bool:
        try:
            rows.head(num_rows).select(expression)
        except pl.exceptions.PolarsError:
            return False
        return True

    if not works(0):
        return None
    good, bad = 0, len(rows)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if works(middle) else (good, middle)
    return bad - 1


def _lasting(kind: pl.DataType) -> pl.DataType:
    """The type that a column keeps on disk: one that hangs less on which values a partition happens to have."""
    match kind:
        case pl.Null() | pl.Categorical() | pl.Enum():
            return pl.String()
        case pl.List():
            return pl.List(_lasting(kind.inner))  # type: ignore[arg-type]  # an instance, in the types of values
        case pl.Struct():
            return pl.Struct({field.name: _lasting(field.dtype) for field in kind.fields})  # type: ignore[arg-type]
    return kind


def _sql_name(kind: pl.DataType) -> str:
    return "DOUBLE" if kind.is_float() else "BIGINT" if kind.is_integer() else "VARCHAR"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
