"""Rows on disk: folders of Parquet shards with a manifest, and every write atomic.

A folder appears whole or not at all. Nothing here reads a clock or depends on the order of a dict, so the same rows
give the same bytes.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tasks.errors import DataError, MillError, OutOfSpace

MANIFEST = "manifest.json"

# What an interrupted write leaves behind, and the next write of the same thing removes.
_UNFINISHED = ".unfinished-"

# A folder that is moved aside for the one that takes its place.
_REPLACED = ".replaced-"

# With less than this left, whatever fails to be written fails for want of room.
_FULL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a folder: its rows, and the SHA-256 of its bytes."""

    path: Path
    rows: int
    sha256: str

    def read(self) -> pl.DataFrame:
        """The rows. Raises DataError where the file is not whole Parquet."""
        try:
            return pl.read_parquet(self.path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(
                f"{self.path} is not a whole Parquet file ({error}). Run the stage that wrote it again."
            ) from None


def read_shards(folder: Path) -> list[Shard]:
    """The shards of a folder in their order. Raises DataError where there is no manifest."""
    manifest = read_json(folder / MANIFEST)
    return [Shard(folder / entry["name"], entry["rows"], entry["sha256"]) for entry in manifest["shards"]]


def read_rows(folder: Path) -> pl.DataFrame:
    """All rows at once, in order: for splits and results, which are small, not for raw data."""
    return pl.concat([shard.read() for shard in read_shards(folder)])


class ShardWriter:
    """Writes `<name>-00000.parquet`, … into a folder that is being made, and its manifest at the end.

    An empty writer still needs its columns, so that a folder without rows can be read: give `schema`.
    """

    def __init__(self, folder: Path, rows_per_shard: int, schema: Mapping[str, Any], name: str = "rows") -> None:
        self._folder = folder
        self._rows_per_shard = rows_per_shard
        self._schema = dict(schema)
        self._name = name
        self._waiting: list[pl.DataFrame] = []
        self._num_waiting = 0
        self.shards: list[Shard] = []

    def write(self, rows: pl.DataFrame) -> None:
        """Take rows of the schema; a full shard goes to disk at once."""
        if rows.is_empty():
            return
        self._waiting.append(rows.select(list(self._schema)))
        self._num_waiting += len(rows)
        while self._num_waiting >= self._rows_per_shard:
            together = pl.concat(self._waiting)
            self._flush(together.head(self._rows_per_shard))
            rest = together.slice(self._rows_per_shard)
            self._waiting, self._num_waiting = [rest], len(rest)

    def _flush(self, rows: pl.DataFrame) -> None:
        path = self._folder / f"{self._name}-{len(self.shards):05d}.parquet"
        self.shards.append(write_parquet(path, rows))

    def end_shard(self) -> None:
        """Write what waits for a full shard as one that is not full; what comes next starts another."""
        if self._num_waiting:
            self._flush(pl.concat(self._waiting))
            self._waiting, self._num_waiting = [], 0

    def finish(self, **facts: Any) -> None:
        """Write what is left and the manifest, with `facts` beside the shards."""
        self.end_shard()
        if not self.shards:
            self._flush(pl.DataFrame(schema=self._schema))
        write_manifest(self._folder, self.shards, self._schema, **facts)


def write_manifest(folder: Path, shards: Iterable[Shard], schema: Mapping[str, Any], **facts: Any) -> None:
    """Name every shard with its rows and hash, and the columns all of them have."""
    entries = [{"name": shard.path.name, "rows": shard.rows, "sha256": shard.sha256} for shard in shards]
    write_json(
        folder / MANIFEST,
        {
            **facts,
            "columns": {name: str(kind) for name, kind in schema.items()},
            "rows": sum(entry["rows"] for entry in entries),
            "shards": entries,
        },
    )


def write_parquet(path: Path, rows: pl.DataFrame) -> Shard:
    """One file, zstd, atomically; its rows and hash."""
    with atomic_file(path) as unfinished:
        rows.write_parquet(unfinished, compression="zstd", statistics=True, row_group_size=50_000)
    return Shard(path, len(rows), sha256_of(path))


def write_json(path: Path, value: Any) -> None:
    """Sorted keys, two spaces, UTF-8, atomically. NaN and infinity are refused: JSON has neither."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """UTF-8, atomically."""
    with atomic_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value. Raises DataError where the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is not here. `dvc repro` makes what is missing, `dvc checkout` restores it.") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}). Run the stage that wrote it again.") from None


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path to write to; it becomes `path` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(path)
    unfinished = path.with_name(f"{_UNFINISHED}{os.getpid()}-{path.name}")
    try:
        with explained_when_full(path):
            yield unfinished
            _sync(unfinished)
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill; it takes the place of `path` when the block ends well.

    Killed at any moment, the old folder or the new one is whole; the next call puts it back in its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(path)
    unfinished = path.with_name(f"{_UNFINISHED}{os.getpid()}-{path.name}")
    unfinished.mkdir()
    try:
        with explained_when_full(path):
            yield unfinished
            for file in sorted(unfinished.rglob("*")):
                if file.is_file():
                    _sync(file)
            replaced = path.with_name(f"{_REPLACED}{os.getpid()}-{path.name}")
            if path.exists():
                path.rename(replaced)
            unfinished.rename(path)
            shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def explained_when_full(path: Path) -> Iterator[None]:
    """Turn a failure on a full disk into a sentence; what stood before still stands."""
    try:
        yield
    except MillError:
        raise
    except Exception as error:
        if not _is_about_room(error, path):
            raise
        raise OutOfSpace(
            f"The disk of {path.parent} is full. Nothing was replaced; make room and run it again."
        ) from None


def _is_about_room(error: Exception, path: Path) -> bool:
    """Whether a full disk is what failed. Code in Rust and C++ passes that on as text, or in words of its own."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return os.strerror(errno.ENOSPC) in str(error) or _free_bytes(path) < _FULL_BYTES


def require_space(folder: Path, num_bytes: int) -> None:
    """Raise OutOfSpace before long work that needs `num_bytes` where the disk of `folder` has less."""
    free = _free_bytes(folder)
    if free < num_bytes:
        raise OutOfSpace(
            f"The disk of {folder} has {free / 1e6:,.0f} MB free; this needs about {num_bytes / 1e6:,.0f} MB. "
            "Make room and run it again; nothing has been written."
        )


def _free_bytes(path: Path) -> int:
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_left_behind(path: Path) -> None:
    """Clear away what dead processes left unfinished, and put back what one of them had moved aside."""
    for replaced in _of_the_dead(path, _REPLACED):
        if path.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(path)
    for unfinished in _of_the_dead(path, _UNFINISHED):
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        else:
            unfinished.unlink()


def _of_the_dead(path: Path, prefix: str) -> Iterator[Path]:
    for left_behind in sorted(path.parent.glob(f"{prefix}*-{glob.escape(path.name)}")):
        owner, _, name = left_behind.name.removeprefix(prefix).partition("-")
        # One of this process's own number is of an earlier life: containers number from 1 at each start.
        if name == path.name and owner.isdigit() and (int(owner) == os.getpid() or not _lives(int(owner))):
            yield left_behind


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
