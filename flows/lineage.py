"""Which rows are in which state of a model's data, and what became of them there: in a commit, or in a working tree.

What a commit has is said by its dvc.lock and read from DVC's objects, a few columns of a file and no more; what a
working tree has is read as it stands.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import polars as pl

from flows.git import attempt
from flows.merge import LOCK
from flows.objects import Objects, Opener
from tasks.clean import DROPPED
from tasks.ids import Separator, keys_and_numbers
from tasks.paths import Paths
from tasks.release import GOLDEN
from tasks.shards import write_parquet

# What may become of a row in a state of the data, the furthest that it came first.
FATES = ("train", "validation", "test", "dropped", "quarantined", "collected")

# What is read of a file that has rows, where it has it.
_COLUMNS = ("id", "split", "reason", "reasons")

_PARQUET, _ARROW = b"PAR1", b"ARROW1"


@dataclass(frozen=True)
class Wanted:
    """Rows by their ids; with a `separator` by their keys, so that the number behind a repeated key does not matter."""

    ids: frozenset[str]
    separator: Separator | None = None

    def among(self, ids: pl.Series) -> pl.Series:
        """For each id whether it is one of them."""
        found = ids.cast(pl.String)
        if self.separator is not None:
            found = keys_and_numbers(found, self.separator)[0]
        return found.is_in(sorted(self.ids)).fill_null(False)

    def named_in(self, reasons: pl.Series) -> pl.Series:
        """For each reason for which a row was dropped whether it names one of them: near_duplicate_of:ID."""
        return self.among(reasons.cast(pl.String).str.extract(r"^[a-z_]+:(.*)$"))


class State(Protocol):
    """A state of the data."""

    def files(self, path: str) -> Mapping[str, Opener | None] | None:
        """The files of an output by their place in it, None for those that are gone; None where all of it is."""
        ...


@dataclass
class Sighting:
    """What became of a row."""

    id: str
    fate: str  # one of FATES
    why: str = ""


@dataclass
class Found:
    """The wanted rows of a state, the rows that were dropped there as copies of one, and what could not be read."""

    rows: dict[str, Sighting] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


class OfCommit:
    """What a commit's dvc.lock names.

    Of objects that were purged, with `known`, the ids and fates that `keep_fates` has left there of the other rows.
    """

    def __init__(self, objects: Objects, outputs: Mapping[str, str], known: Path | None = None) -> None:
        self._objects = objects
        self._outputs = outputs
        self._known = known

    def files(self, path: str) -> Mapping[str, Opener | None] | None:
        oid = self._outputs.get(path)
        if oid is None:
            return {}
        listed = self._objects.files(oid)
        return None if listed is None else {name: self._opener(one) for name, one in listed.items()}

    def _opener(self, oid: str) -> Opener | None:
        found = self._objects.opener(oid)
        if found is None and self._known is not None and (self._known / f"{oid}.parquet").exists():
            return _opener(self._known / f"{oid}.parquet")
        return found


class OfTree:
    """What stands in a working tree."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def files(self, path: str) -> Mapping[str, Opener | None] | None:
        folder = self._root / path
        found = (file for file in sorted(folder.rglob("*")) if file.is_file())
        return {file.relative_to(folder).as_posix(): _opener(file) for file in found}


def known_fates(home: Path, model: str) -> Path:
    """Where the ids and fates of rows are kept whose objects were purged because of others in them."""
    return home / ".mill" / "lineage" / model


def keep_fates(folder: Path, objects: Objects, oids: Iterable[str], wanted: Wanted) -> None:
    """Before objects with the wanted rows go: write down what became of all the others in them."""
    for oid in sorted(oids):
        opener = objects.opener(oid)
        if opener is None or (folder / f"{oid}.parquet").exists():
            continue
        with opener() as file:
            rows = rows_of(file, "") if file.read(len(_PARQUET)) == _PARQUET else None
        if rows is not None:
            write_parquet(folder / f"{oid}.parquet", without(rows, wanted))


def without(rows: pl.DataFrame, wanted: Wanted) -> pl.DataFrame:
    """Ids and fates without the wanted rows, also where they are named as what another was a copy of."""
    rows = rows.filter(~wanted.among(rows["id"]))
    if "reason" not in rows.columns:
        return rows
    bare = pl.when(wanted.named_in(rows["reason"])).then(pl.col("reason").str.extract("^([a-z_]+)"))
    return rows.with_columns(reason=bare.otherwise("reason"))


def outputs_at(root: Path, commit: str, model: str) -> dict[str, str]:
    """The objects of a model's outputs as a commit has them, by path. Reports, which are in Git, are not among them."""
    return outputs_in(attempt(root, "cat-file", "blob", f"{commit}:{LOCK}").stdout).get(model, {})


def outputs_in(lock: str) -> dict[str, dict[str, str]]:
    """The same of the text of a dvc.lock, for each model."""
    from dvc.utils.serialize import loads_yaml

    found: dict[str, dict[str, str]] = {}
    for stage in ((loads_yaml(lock) or {}).get("stages", {}) if lock.strip() else {}).values():
        for out in stage.get("outs", []):
            model = model_of_output(out["path"])
            if model is not None and "md5" in out:
                found.setdefault(model, {})[out["path"]] = out["md5"]
    return found


def model_of_output(path: str) -> str | None:
    """Whose data/<model>/… or models/<model>/… it is; None for what belongs to no model."""
    parts = path.split("/")
    return parts[1] if len(parts) > 2 and parts[0] in ("data", "models") else None


def find(state: State, model: str, wanted: Wanted) -> Found:
    """What became of the wanted rows in a state of a model's data."""
    paths, found = Paths(model), Found()
    for folder in (paths.clean, paths.quarantine, paths.collected):
        files = state.files(folder.as_posix())
        if files is None or None in files.values():
            found.missing.append(folder.as_posix())
        for name, opener in (files or {}).items():
            if opener is None:
                continue
            with opener() as file:
                rows = rows_of(file, name)
            if rows is not None:
                _note(found, rows, wanted, name, folder == paths.quarantine)
    return found


def ids_in(state: State, model: str) -> list[str]:
    """The ids of all rows that were collected in a state, as far as they can be read."""
    ids: list[str] = []
    for name, opener in (state.files(Paths(model).collected.as_posix()) or {}).items():
        if opener is not None:
            with opener() as file:
                rows = rows_of(file, name)
            ids += [] if rows is None else rows["id"].cast(pl.String).to_list()
    return ids


def _note(found: Found, rows: pl.DataFrame, wanted: Wanted, name: str, is_quarantine: bool) -> None:
    for row in rows.filter(wanted.among(rows["id"])).iter_rows(named=True):
        if name == DROPPED:
            sighting = Sighting(row["id"], "dropped", row["reason"])
        elif is_quarantine:
            sighting = Sighting(row["id"], "quarantined", "; ".join(row.get("reasons") or []))
        else:
            sighting = Sighting(row["id"], row.get("split") or "collected")
        known = found.rows.get(row["id"])
        if known is None or FATES.index(sighting.fate) < FATES.index(known.fate):
            found.rows[row["id"]] = sighting
    if name == DROPPED:
        copies = rows.filter(wanted.named_in(rows["reason"]) & ~wanted.among(rows["id"]))
        found.copies.update(copies.select("id", "reason").iter_rows())


def holds(file: IO[bytes], name: str, wanted: Wanted) -> bool:
    """Whether a file has one of the wanted rows, or names one as what another was a copy of."""
    rows = rows_of(file, name)
    if rows is None:
        return False
    named = wanted.named_in(rows["reason"]) if "reason" in rows.columns else pl.Series([False])
    return bool(wanted.among(rows["id"]).any() or named.any())


def rows_of(file: IO[bytes], name: str) -> pl.DataFrame | None:
    """The ids of a file's rows, with the splits and reasons that it has of them; None where it is no file of rows.

    Rows are in Parquet, in Arrow's files of tokens, and in a release's golden.json.
    """
    if Path(name).name == GOLDEN:
        rows = json.loads(file.read())["rows"]
        return pl.DataFrame({"id": [str(row["id"]) for row in rows]}, schema={"id": pl.String})
    file.seek(0)
    start = file.read(len(_ARROW))
    file.seek(0)
    table = _parquet(file) if start.startswith(_PARQUET) else _arrow(file) if start == _ARROW else None
    if table is None:
        return None
    frame = pl.from_arrow(table)
    return frame if isinstance(frame, pl.DataFrame) else None


def _parquet(file: IO[bytes]) -> Any:
    from pyarrow import parquet

    opened = parquet.ParquetFile(file)
    columns = [name for name in _COLUMNS if name in opened.schema_arrow.names]
    return opened.read(columns=columns) if "id" in columns else None


def _arrow(file: IO[bytes]) -> Any:
    import pyarrow as pa

    names = pa.ipc.open_file(file).schema.names
    if "id" not in names:
        return None
    options = pa.ipc.IpcReadOptions(included_fields=[names.index("id")])
    return pa.ipc.open_file(file, options=options).read_all()


def _opener(path: Path) -> Opener:
    return lambda: path.open("rb")
