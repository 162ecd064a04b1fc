"""`mill admit`: rows out of quarantine, to be mended by hand and let back in.

Without a file it writes quarantine to data/<model>/mend.jsonl, one row a line. A person corrects some rows there and
says why; with that file, these become lines of data/<model>/admitted.jsonl, which is in Git and which validate reads.
Raw data is never edited.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from tasks.admissions import Admission, as_line, read_admissions
from tasks.errors import DataError
from tasks.params import load_model
from tasks.paths import Paths
from tasks.shards import Shard, atomic_file, read_shards, write_text
from tasks.values import as_json

REASONS = "reasons"

Row = Mapping[str, Any]


def admit(model: str, file: Path | None, root: Path = Path()) -> str:
    """Write out quarantine, or take in the mended rows of `file`, and say in a sentence what happened.

    All rows are taken in or none is: DataError names every line that cannot be.
    """
    load_model(model, root / "params.yaml")
    paths = Paths(model, root)
    to_mend = paths.admissions.with_name("mend.jsonl")
    shards = read_shards(paths.quarantine)
    schema = {name: kind for name, kind in shards[0].read().schema.items() if name != REASONS}
    admitted = {admission.id: admission for admission in read_admissions(paths.admissions, schema)}
    if file is None:
        return _write_out(model, shards, schema, admitted, to_mend)
    if not file.exists():
        raise DataError(f"{file} is not here. `mill admit {model}` without a file writes one to start from.")
    said = _take_in(model, file, shards, schema, admitted, paths.admissions)
    if file.resolve() == to_mend.resolve():
        file.unlink()  # what is not admitted is still in quarantine, to be written out again
    return said


def _write_out(
    model: str, shards: list[Shard], schema: Mapping[str, pl.DataType], admitted: Mapping[Any, Admission], to_mend: Path
) -> str:
    if to_mend.exists():
        raise DataError(
            f"{to_mend} is here already, perhaps with corrections. Take them in with `mill admit {model} {to_mend}`, "
            "or delete it to start afresh."
        )
    num_rows = 0
    with atomic_file(to_mend) as unfinished, unfinished.open("w", encoding="utf-8", newline="\n") as lines:
        for shard in shards:
            for row in shard.read().iter_rows(named=True):
                earlier = admitted.get(row["id"])
                if earlier is not None and _is_changed(row, earlier.row):
                    continue  # mended since the line last ran; its turn comes with the next run
                lines.write(as_line(row["id"], row, schema, row[REASONS], earlier.why if earlier else "") + "\n")
                num_rows += 1
    if not num_rows:
        to_mend.unlink()
        return f"{model}: no row waits in quarantine to be mended."
    return (
        f"{model}: {_counted(num_rows, 'quarantined row')} written to {to_mend}, each with its reasons. "
        "Correct `row` where you can and say in `why` what you did; what you leave as it is stays in quarantine. Then: "
        f"mill admit {model} {to_mend}"
    )


def _take_in(
    model: str,
    file: Path,
    shards: list[Shard],
    schema: Mapping[str, pl.DataType],
    admitted: Mapping[Any, Admission],
    admissions: Path,
) -> str:
    given = read_admissions(file, schema)
    quarantined = _rows(shards, [admission.id for admission in given])
    wanted, mistakes = [], []
    for admission in given:
        try:
            if _is_news(admission, quarantined.get(admission.id), admitted.get(admission.id)):
                wanted.append(admission)
        except ValueError as error:
            mistakes.append(f"{file}, line {admission.line}: {admission.id}: {error}")
    if mistakes:
        raise DataError("\n".join([*mistakes, "Nothing was admitted."]))
    if not wanted:
        return f"{model}: nothing in {file} is mended: every line is as it was, and no `why` says otherwise."
    lines = admissions.read_text(encoding="utf-8").split("\n") if admissions.exists() else []
    for admission in wanted:
        earlier = admitted.get(admission.id)
        reasons = quarantined[admission.id][REASONS] if admission.id in quarantined else admission.reasons
        line = as_line(admission.id, admission.row, schema, reasons, admission.why)
        if earlier is None:
            lines.append(line)
        else:
            lines[earlier.line - 1] = line
    write_text(admissions, "".join(f"{line}\n" for line in lines if line.strip()))
    num_left = len(given) - len(wanted)
    left = f" {_counted(num_left, 'line')} left as before, out of it." if num_left else ""
    return (
        f"{model}: {_counted(len(wanted), 'mended row')} now in {admissions}.{left} Commit that file and run "
        f"`mill run {model}`: they are judged again, with all other rows."
    )


def _rows(shards: list[Shard], ids: list[Any]) -> dict[Any, Row]:
    """The quarantined rows of these ids."""
    found: dict[Any, Row] = {}
    for shard in shards:
        rows = shard.read()
        wanted = rows["id"].is_in(pl.Series(ids, dtype=rows.schema["id"]).implode())
        found.update((row["id"], row) for row in rows.filter(wanted).iter_rows(named=True))
    return found


def _is_news(admission: Admission, quarantined: Row | None, earlier: Admission | None) -> bool:
    """Whether a line says more than is known. Raises ValueError where it cannot be taken."""
    before = earlier.row if earlier else quarantined
    if before is None:
        raise ValueError("it is not in quarantine, so there is nothing to mend. Correct the id, or take the line out.")
    is_changed = _is_changed(admission.row, before)
    if not admission.why and (is_changed or earlier):
        raise ValueError("`why` is empty. Say what was wrong with the row, and how you know what is right.")
    if admission.why and not is_changed and not earlier:
        raise ValueError("`why` says that it is mended, but `row` is as it was, and would be turned away again.")
    return is_changed or (earlier is not None and admission.why != earlier.why)


def _is_changed(one: Row, other: Row) -> bool:
    """Whether the columns that both have differ."""
    return any(
        as_json(one[name]) != as_json(other[name]) for name in one if name in other and name not in ("id", REASONS)
    )


def _counted(number: int, what: str) -> str:
    return f"1 {what} is" if number == 1 else f"{number:,} {what}s are"
