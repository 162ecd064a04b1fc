"""Rows out of quarantine that a person has mended: one JSON object a line, in Git, and read with every mistake in it.

    {"id": "movie-17", "reasons": ["…"], "row": {"label": "negative", "text": "…"}, "why": "the label was misspelt"}

`row` holds every column but `id`; only columns that JSON cannot say, such as images, are left out and stay as they were
collected. `reasons` is what quarantine said, kept for the record.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tasks.errors import DataError, did_you_mean
from tasks.values import as_json, fit, is_writable, shortened

_KEYS = ("id", "reasons", "row", "why")


@dataclass(frozen=True)
class Admission:
    """One mended row: its values fit the columns of the collected rows."""

    line: int
    id: Any
    row: Mapping[str, Any]
    why: str
    reasons: tuple[str, ...]


def read_admissions(path: Path, schema: Mapping[str, pl.DataType]) -> list[Admission]:
    """The file's rows; none where there is no file. Raises DataError with every line that cannot be taken."""
    if not path.exists():
        return []
    admissions, mistakes = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            admissions.append(_read(number, line, schema))
        except ValueError as error:
            mistakes.append(f"{path}, line {number}: {error}.")
    mistakes += _repeated(admissions, path)
    if mistakes:
        raise DataError("\n".join(mistakes))
    return admissions


def as_line(
    id: Any, row: Mapping[str, Any], schema: Mapping[str, pl.DataType], reasons: Iterable[str], why: str
) -> str:
    """One line of the file, without its end."""
    mended = {name: as_json(row[name]) for name in writable_columns(schema)}
    value = {"id": as_json(id), "row": mended, "reasons": list(reasons), "why": why}
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def writable_columns(schema: Mapping[str, pl.DataType]) -> list[str]:
    """The columns that a mended row has."""
    return [name for name, kind in schema.items() if name != "id" and is_writable(kind)]


def mend(rows: pl.DataFrame, admissions: Mapping[Any, Admission]) -> pl.DataFrame:
    """The rows in their order, each one that was mended in its mended form."""
    numbered = rows.with_row_index("#")
    is_mended = numbered["id"].is_in(pl.Series(list(admissions), dtype=rows.schema["id"]).implode())
    if not is_mended.any():
        return rows
    mended = numbered.filter(is_mended)
    given = [admissions[id].row for id in mended["id"]]
    mended = mended.with_columns(
        pl.Series(name, [row[name] for row in given], dtype=rows.schema[name]) for name in writable_columns(rows.schema)
    )
    return pl.concat([numbered.filter(~is_mended), mended]).sort("#").drop("#")


def _read(number: int, line: bytes, schema: Mapping[str, pl.DataType]) -> Admission:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"this is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{shortened(value)} is not an object with the keys {', '.join(_KEYS)}")
    mistakes = [_unknown("key", key, _KEYS) for key in value if key not in _KEYS]
    mistakes += [f"{key} is missing" for key in ("id", "row", "why") if key not in value]
    row, why, reasons = value.get("row", {}), value.get("why", ""), value.get("reasons", [])
    if not isinstance(why, str):
        mistakes.append(f"why is {shortened(why)}; it takes a text")
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        mistakes.append(f"reasons is {shortened(reasons)}; it takes a list of texts")
    fitted: dict[str, Any] = {}
    if isinstance(row, dict):
        mistakes += _fit_row(row, schema, fitted)
    else:
        mistakes.append(f"row is {shortened(row)}; it takes an object of columns")
    id = _fit("id", value.get("id"), schema["id"], mistakes)
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return Admission(number, id, fitted, why.strip(), tuple(reasons))


def _fit_row(row: Mapping[str, Any], schema: Mapping[str, pl.DataType], fitted: dict[str, Any]) -> list[str]:
    """Put the row's values into `fitted`; give what is wrong with them."""
    columns, mistakes = writable_columns(schema), []
    for name in row:
        if name not in columns:
            mistakes.append(_unknown("column", name, columns))
    for name in columns:
        if name in row:
            fitted[name] = _fit(f"row.{name}", row[name], schema[name], mistakes)
        else:
            mistakes.append(f"row.{name} is missing; a mended row has every column")
    return mistakes


def _fit(where: str, value: Any, kind: pl.DataType, mistakes: list[str]) -> Any:
    try:
        return fit(value, kind)
    except ValueError as error:
        mistakes.append(f"{where}: {error}")
        return None


def _repeated(admissions: Iterable[Admission], path: Path) -> Iterable[str]:
    first: dict[Any, int] = {}
    for admission in admissions:
        if admission.id in first:
            earlier = first[admission.id]
            yield f"{path}, line {admission.line}: {admission.id!r} stands on line {earlier} already. Keep one."
        first.setdefault(admission.id, admission.line)


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    return f"there is no {what} {name!r}.{did_you_mean(name, known)} Known: {', '.join(sorted(known))}"
