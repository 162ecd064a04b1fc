"""What callers send, as rows; whatever is wrong with it, in a sentence."""

from collections.abc import Mapping
from typing import Any

import orjson
import polars as pl

from tasks.errors import did_you_mean, quoted
from tasks.problems import Problem

# Of one text. A model reads its beginning alone, but personal data is looked for in all of it: a second or two.
_MOST_CHARS = 100_000


class BadRequest(Exception):
    """What the caller has to change. `status` is HTTP's."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


def parse_json(body: bytes) -> Any:
    """Strict JSON: no NaN, UTF-8 alone, nothing nested without end. Raises BadRequest (400)."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not JSON in UTF-8: {error}.", 400) from None


def rows_of(content: Any, problem: Problem, max_rows: int) -> tuple[list[Mapping[str, Any]], bool]:
    """The rows of one input or of a list of them, and whether it was one. Raises BadRequest naming what is wrong."""
    alone = isinstance(content, Mapping)
    listed = [content] if alone else content
    if not isinstance(listed, list):
        raise BadRequest(f"Expected an object with {_named(problem)}, or a list of such objects.")
    if not listed:
        raise BadRequest("The list is empty; nothing is asked.")
    if len(listed) > max_rows:
        raise BadRequest(f"{len(listed)} rows in one request; at most {max_rows} are taken. Send several.", 413)
    for number, row in enumerate(listed):
        _check(row, problem, "" if alone else f"Row {number}: ")
    check_lengths({name: [row[name] for row in listed] for name in problem.inputs})
    # Texts are known to be texts by now; of other types a frame knows best.
    if any(problem.columns[name] != pl.String() for name in problem.inputs):
        frame_of(problem, {name: [row[name] for row in listed] for name in problem.inputs})
    return listed, alone


def check_lengths(columns: Mapping[str, list[Any]]) -> None:
    """Raises BadRequest (413) for a text that would hold up everybody."""
    for name, values in columns.items():
        for number, value in enumerate(values):
            if isinstance(value, str) and len(value) > _MOST_CHARS:
                raise BadRequest(
                    f"Row {number}: {name} has {len(value):,} characters; at most {_MOST_CHARS:,} are taken. A model "
                    "reads far less. Send the beginning, or parts.",
                    413,
                )


def frame_of(problem: Problem, columns: Mapping[str, list[Any]]) -> pl.DataFrame:
    """Columns of the problem's inputs as a frame. Raises BadRequest where a value is not of its column's type."""
    frame: dict[str, pl.Series] = {}
    for name, values in columns.items():
        dtype = problem.columns[name]
        try:
            frame[name] = pl.Series(name, values, dtype=dtype, strict=True)
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
            raise BadRequest(f"{name} has to be {_type_of(dtype)}, in every row.") from None
    return pl.DataFrame(frame)


def _check(row: Any, problem: Problem, where: str) -> None:
    if not isinstance(row, Mapping):
        raise BadRequest(f"{where}expected an object with {_named(problem)}.")
    for name in row:
        if name not in problem.inputs:
            raise BadRequest(
                f"{where}{quoted(str(name))} is no input of this model.{did_you_mean(str(name), problem.inputs)} "
                f"It reads {_named(problem)}."
            )
    for name in problem.inputs:
        if name not in row or row[name] is None:
            raise BadRequest(f"{where}{name} is missing. This model reads {_named(problem)}.")
        if isinstance(row[name], str) != (problem.columns[name] == pl.String()):
            raise BadRequest(f"{where}{name} has to be {_type_of(problem.columns[name])}.")


def _named(problem: Problem) -> str:
    return ", ".join(problem.inputs)


def _type_of(dtype: pl.DataType) -> str:
    return "a string" if dtype == pl.String() else f"of the type {dtype}"
