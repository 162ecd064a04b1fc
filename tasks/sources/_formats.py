"""Files of rows as batches of rows, wherever the file came from."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import polars as pl

from tasks.errors import SourceError
from tasks.params import FileFormat
from tasks.sources._lines import read_csv, read_json_lines, read_text

_COMPRESSED = (".gz", ".zst")

_FORMATS: dict[FileFormat, tuple[str, ...]] = {
    "csv": (".csv", ".tsv"),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet", ".pq"),
    "text": (".txt", ".text"),
    "image": (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
    "audio": (".aac", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"),
}

MEDIA = ("image", "audio")

# Pictures and sounds are large: a batch of them ends at this size, whatever the number of rows.
_BYTES_PER_BATCH = 64_000_000


def format_of(name: str, declared: FileFormat) -> FileFormat:
    """The format as declared, or as the name's ending says. Raises SourceError where it says nothing."""
    if declared != "auto":
        return declared
    ending = _ending(name)
    for known, endings in _FORMATS.items():
        if ending in endings:
            return known
    every = " ".join(sorted(ending for endings in _FORMATS.values() for ending in endings))
    raise SourceError(
        f"{name}: the name does not say which format it has. Known endings, also with .gz or .zst: {every}. Say "
        "collect.format, or narrow the path to the files of rows, for instance by *.csv."
    )


def one_format(names: Iterable[str], declared: FileFormat) -> FileFormat:
    """A format that speaks for all: their own, or that of tables where tables are mixed.

    Raises SourceError where tables and media stand side by side, or two kinds of media.
    """
    found: dict[FileFormat, str] = {}
    for name in names:
        found.setdefault(format_of(name, declared), name)
    if len(found) > 1 and any(kind in MEDIA for kind in found):
        said = ", ".join(f"{name} is {kind}" for kind, name in sorted(found.items()))
        raise SourceError(
            f"One source has one kind of media and nothing else: {said}. Narrow the path, for instance by *.png."
        )
    return next(iter(found))


def read_table(path: Path, shown: str, declared: FileFormat, rows_per_batch: int) -> Iterator[pl.DataFrame]:
    """The rows of one file; `shown` is its name for people, and tells its format."""
    match format_of(shown, declared):
        case "csv":
            yield from read_csv(path, shown, rows_per_batch, "\t" if _ending(shown) == ".tsv" else ",")
        case "jsonl":
            yield from read_json_lines(path, shown, rows_per_batch)
        case "text":
            yield from read_text(path, shown, rows_per_batch)
        case "parquet":
            yield from _read_parquet(path, shown, rows_per_batch)
        case media:
            yield from read_media([(shown, path.read_bytes())], media, rows_per_batch)


def read_media(files: Iterable[tuple[str, bytes]], kind: FileFormat, rows_per_batch: int) -> Iterator[pl.DataFrame]:
    """A row for each file: `path`, `label` (the folder it stands in, if any), and its bytes as `image` or `audio`."""
    schema = {"path": pl.String(), "label": pl.String(), kind: pl.Binary()}
    batch: list[tuple[str, str | None, bytes]] = []
    num_bytes = 0
    for name, content in files:
        batch.append((name, PurePosixPath(name).parent.name or None, content))
        num_bytes += len(content)
        if len(batch) == rows_per_batch or num_bytes >= _BYTES_PER_BATCH:
            yield pl.DataFrame(batch, schema=schema, orient="row")
            batch, num_bytes = [], 0
    if batch:
        yield pl.DataFrame(batch, schema=schema, orient="row")


def check_unchanged(content: bytes | Path, sha256: str, shown: str) -> None:
    """Raise SourceError where this is not the content that was pinned."""
    if isinstance(content, bytes):
        found = hashlib.sha256(content).hexdigest()
    else:
        with content.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise SourceError(changed(shown))


def changed(shown: str) -> str:
    """What to say of data that is not as it was pinned."""
    return (
        f"{shown} is not what it was when it was pinned, and data that was collected never changes. Put back what it "
        "was, and give new data a new name. If the change is meant, delete the model's source.json and run `mill "
        "pull`: the source is then collected anew, as if for the first time."
    )


def gone(shown: str) -> str:
    """What to say of data that is pinned, was not collected here, and is no longer at its place."""
    return (
        f"{shown} is pinned, and is no longer there. Put it back; or, where another copy of this repository has "
        "collected it, bring the rows over with `dvc pull`."
    )


def _ending(name: str) -> str:
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix


def _read_parquet(path: Path, shown: str, rows_per_batch: int) -> Iterator[pl.DataFrame]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    num_rows = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(rows_per_batch):
                rows = pl.DataFrame(pl.from_arrow(batch))
                yield rows.cast({pl.Categorical: pl.String})
                num_rows += len(rows)
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise SourceError(
            f"{shown} is no whole Parquet file: it cannot be read past row {num_rows:,} ({why}). Fetch or write it "
            "again."
        ) from None
