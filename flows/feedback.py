"""`mill feedback` and `mill backup`: the journal from the command line, beside a server or without one."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from flows.params import load_flows
from flows.serve import journal_url
from tasks import problems
from tasks.errors import DataError, did_you_mean
from tasks.journal import Journal, open_journal
from tasks.labels import NOTHING_TO_LABEL, BadLabel, Kinds, Label, label_of, targets_of
from tasks.params import load_model
from tasks.private_labels import redacted

Rows = list[dict[str, Any]]


def open_root_journal(root: Path) -> Journal:
    """The journal that the server of this root writes."""
    return open_journal(journal_url(root, load_flows(root / "params.yaml").journal))


def add_feedback(root: Path, model: str, file: Path) -> str:
    """Keep the labels of a file and say how many were new; none where one of them cannot be kept.

    Raises DataError or JournalError naming the first that cannot, or that there is nothing to label.
    """
    params = load_model(model, root / "params.yaml")
    problem = problems.load(params.problem)
    targets = targets_of(problem.columns, problem.inputs)
    if not targets:
        raise DataError(f"{model} {NOTHING_TO_LABEL}")
    read = [_label(row, targets, file) for row in _read(file, targets)]
    labels = redacted(read, targets, params.clean.redact, params.clean.phone_regions)
    journal = open_root_journal(root)
    try:
        new = journal.add_labels(labels, model=model, client=None)
    finally:
        journal.close()
    return f"{len(labels)} labels of {model} read, {new} of them new."


def back_up(root: Path, file: Path) -> str:
    """Copy the journal as it stands at this moment, whoever writes to it meanwhile."""
    journal = open_root_journal(root)
    try:
        number = journal.backup(file)
    finally:
        journal.close()
    return f"{file} holds {number} predictions and their labels. It is a journal by itself."


def _label(row: Mapping[str, Any], targets: Kinds, file: Path) -> Label:
    found = row.get("id")
    if found is not None and any(row.get(name) is None for name in targets):
        raise DataError(f"{file}: the row of id {str(found)[:80]} is incomplete. Leave out what has no label yet.")
    try:
        return label_of({**row, "id": None if found is None else str(found)}, targets)
    except BadLabel as error:
        raise DataError(f"{file}: the row of id {str(found)[:80]}: {error}") from None


def _read(file: Path, targets: Kinds) -> Rows:
    """The file's rows, each with what it says of the id and the targets."""
    reader = _READERS.get(file.suffix)
    if reader is None:
        raise DataError(f"{file}: expected {', '.join(_READERS)}.")
    try:
        rows, columns = reader(file, targets)
    except FileNotFoundError:
        raise DataError(f"{file} is not here.") from None
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError, orjson.JSONDecodeError) as error:
        raise DataError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None
    for name in ("id", *targets):
        if name not in columns:
            raise DataError(
                f"{file} has no column {name}.{did_you_mean(name, columns)} It needs id and {', '.join(targets)}."
            )
    return rows


def _csv(file: Path, targets: Kinds) -> tuple[Rows, Iterable[str]]:
    """What is no text is read as its column's type, as far as it can be."""
    frame = pl.read_csv(file, infer_schema=False)
    kinds = {name: kind for name, kind in targets.items() if name in frame.columns and kind != pl.String()}
    read = frame.with_columns(pl.col(name).cast(kind, strict=False) for name, kind in kinds.items())
    for name, kind in kinds.items():
        misfits = frame.filter(frame[name].is_not_null() & read[name].is_null())
        if len(misfits):
            raise DataError(f"{file}: {name} is {misfits[name][0]!r}, and has to be {kind}.")
    return read.to_dicts(), frame.columns


def _json_lines(file: Path, _: Kinds) -> tuple[Rows, Iterable[str]]:
    """A line at a time, so that what is of another type than the lines before it is seen as what it is."""
    rows: Rows = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if line.strip():
            row = orjson.loads(line)
            if not isinstance(row, dict):
                raise DataError(f"{file}, line {number}: expected an object.")
            rows.append(row)
    return rows, {name: None for row in rows for name in row}


def _parquet(file: Path, _: Kinds) -> tuple[Rows, Iterable[str]]:
    frame = pl.read_parquet(file)
    return frame.to_dicts(), frame.columns


_READERS: dict[str, Callable[[Path, Kinds], tuple[Rows, Iterable[str]]]] = {
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
