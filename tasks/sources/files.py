"""Files on this machine: a path, a folder, or a glob.

A file's name is its path below the folder that the option names, so that the folder may move. Hidden files, and what is
inside of hidden folders, are not looked at.
"""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from tasks.errors import SourceError
from tasks.params import CollectFiles
from tasks.shards import sha256_of
from tasks.sources import Partition, Source
from tasks.sources._formats import check_unchanged, gone, one_format, read_media, read_table
from tasks.sources._listing import files_of, partitions_of


class Files:
    """A partition for each file of rows; the pin is the SHA-256 of its bytes."""

    def partitions(self, options: CollectFiles, known: Sequence[Partition]) -> list[Partition]:
        base, paths = _found(options.path)
        try:
            proofs = {
                path.relative_to(base).as_posix(): {"sha256": sha256_of(path), "size": path.stat().st_size}
                for path in paths
            }
        except OSError as error:
            raise SourceError(f"{error.filename} cannot be read: {error.strerror}.") from None
        if not proofs and not known:
            raise SourceError(
                f"{options.path}: no such file, or an empty folder. collect.path is a file, a folder or a glob."
            )
        return partitions_of(proofs, known, options.format)

    def read(self, options: CollectFiles, partition: Partition, rows_per_batch: int) -> Iterator[pl.DataFrame]:
        base = _base(options.path)
        if "files" in partition.pin:
            kind = one_format(files_of(partition), options.format)
            yield from read_media(_contents(base, partition), kind, rows_per_batch)
            return
        path = base / partition.name
        if not path.is_file():
            raise SourceError(gone(str(path)))
        check_unchanged(path, partition.pin["sha256"], str(path))
        yield from read_table(path, str(path), options.format, rows_per_batch)


def _contents(base: Path, partition: Partition) -> Iterator[tuple[str, bytes]]:
    for name, proof in files_of(partition).items():
        path = base / name
        if not path.is_file():
            raise SourceError(gone(str(path)))
        content = path.read_bytes()
        check_unchanged(content, proof["sha256"], str(path))
        yield name, content


def _found(path: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files below it."""
    base, place = _base(path), Path(path)
    if place.is_file():
        return base, [place]
    # Path.glob's ** means another thing in each version of Python.
    candidates = place.rglob("*") if place.is_dir() else map(Path, glob.glob(path, recursive=True))  # noqa: PTH207
    visible = (file for file in candidates if not any(part.startswith(".") for part in file.relative_to(base).parts))
    return base, sorted(file for file in visible if file.is_file())


def _base(path: str) -> Path:
    place = Path(path)
    if place.is_dir():
        return place
    if place.exists() or not glob.has_magic(path):
        return place.parent
    parts = place.parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed])


SOURCE: Source[CollectFiles] = Files()
