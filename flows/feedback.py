"""`mill feedback` and `mill backup`: the journal from the command line, beside a server or without one."""

from pathlib import Path

import polars as pl

from flows.params import load_flows
from flows.serve import journal_url
from tasks import problems
from tasks.errors import DataError, did_you_mean
from tasks.journal import Journal, Label, open_journal
from tasks.params import load_model

_READERS = {
    ".csv": lambda path: pl.read_csv(path, infer_schema=False),
    ".jsonl": pl.read_ndjson,
    ".parquet": pl.read_parquet,
}


def open_root_journal(root: Path) -> Journal:
    """The journal that the server of this root writes."""
    return open_journal(journal_url(root, load_flows(root / "params.yaml").journal))


def add_feedback(root: Path, model: str, file: Path) -> str:
    """Keep the labels of a file, all or none, and say how many were new. Raises DataError or JournalError."""
    problem = problems.load(load_model(model, root / "params.yaml").problem)
    targets = [name for name in problem.columns if name not in problem.inputs]
    rows = _read(file)
    for name in ("id", *targets):
        if name not in rows.columns:
            raise DataError(
                f"{file} has no column {name}.{did_you_mean(name, rows.columns)} It needs id and {', '.join(targets)}."
            )
    incomplete = rows.filter(pl.any_horizontal(pl.col("id", *targets).is_null())).head(1)
    if len(incomplete):
        raise DataError(f"{file}: the row of id {incomplete['id'][0]} is incomplete. Leave out what has no label yet.")
    labels = [Label(str(row["id"]), {name: row[name] for name in targets}) for row in rows.to_dicts()]
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


def _read(file: Path) -> pl.DataFrame:
    reader = _READERS.get(file.suffix)
    if reader is None:
        raise DataError(f"{file}: expected {', '.join(_READERS)}.")
    try:
        return reader(file)
    except FileNotFoundError:
        raise DataError(f"{file} is not here.") from None
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None
