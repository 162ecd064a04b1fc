"""CSV, JSON lines and plain text: UTF-8, plain or compressed, a batch at a time, and every mistake with its line.

Compression is told by the first bytes, which no UTF-8 text can have.
"""

import contextlib
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import polars as pl

from tasks.errors import SourceError
from tasks.sources._values import NOTHING, Unfit, frame, widened

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_csv(path: Path, shown: str, rows_per_batch: int, delimiter: str) -> Iterator[pl.DataFrame]:
    """Rows of comma-separated values, RFC 4180, the names first.

    CSV knows no types, and guessing them would lose leading zeros and long keys: every column is text, and an empty
    field has no value. Raises SourceError, with the line, for a row that is shorter or longer than the header.
    """
    csv.field_size_limit(sys.maxsize)  # a text of 10 MB is a field like any other
    with _opened(path, shown) as file:
        rows = csv.reader(_lines(file, shown), delimiter=delimiter, strict=True)
        names: list[str] | None = None
        batch: list[list[str]] = []
        first_line = 1
        try:
            for row in rows:
                if not row:  # a blank line
                    pass
                elif names is None:
                    names = _header(row, shown)
                elif len(row) != len(names):
                    raise SourceError(
                        f"{shown}, line {first_line}: {len(row)} fields, and the header has {len(names)} "
                        f"({', '.join(names)}). Mend the row; a field that holds a comma or a line break stands in "
                        "quotes."
                    )
                else:
                    batch.append(row)
                    if len(batch) == rows_per_batch:
                        yield _text_frame(names, batch)
                        batch = []
                first_line = rows.line_num + 1
        except csv.Error as error:
            raise SourceError(f"{shown}, line {first_line}: {_csv_mistake(error)}.") from None
    if names is None:
        raise SourceError(f"{shown} is empty; CSV has at least a line of column names.")
    if batch:
        yield _text_frame(names, batch)


def _header(row: list[str], shown: str) -> list[str]:
    twice = sorted({name for name in row if row.count(name) > 1})
    if twice:
        raise SourceError(
            f"{shown}, line 1: more than one column is named {', '.join(map(repr, twice))}. Name each once."
        )
    return row


def _text_frame(names: list[str], rows: list[list[str]]) -> pl.DataFrame:
    columns = zip(*rows, strict=True)
    return pl.DataFrame(
        {
            name: pl.Series(name, [field or None for field in column], dtype=pl.String)
            for name, column in zip(names, columns, strict=True)
        }
    )


def _csv_mistake(error: csv.Error) -> str:
    said = str(error)
    if "unexpected end of data" in said:
        return "a quote is opened and never closed"
    if "expected after" in said:
        return "text follows a closing quote; a quote inside of quotes is written twice"
    if "new-line character" in said:
        return "a lone carriage return; end lines with a line feed, or put the field in quotes"
    return said


def read_json_lines(path: Path, shown: str, rows_per_batch: int) -> Iterator[pl.DataFrame]:
    """An object a line. The file is read twice: for the type of every column, then for the rows."""
    kinds: dict[str, pl.DataType] = {}
    for number, row in _objects(path, shown):
        for name, value in row.items():
            try:
                kinds[name] = widened(kinds.get(name, NOTHING), value)
            except Unfit as unfit:
                raise SourceError(
                    f"{shown}, line {number}: {name!r} holds {unfit}. Give it one kind of value in all lines."
                ) from None
    batch: list[dict[str, Any]] = []
    for _, row in _objects(path, shown):
        batch.append(row)
        if len(batch) == rows_per_batch:
            yield frame({name: [row.get(name) for row in batch] for name in kinds}, kinds)
            batch = []
    if batch:
        yield frame({name: [row.get(name) for row in batch] for name in kinds}, kinds)


def _objects(path: Path, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with _opened(path, shown) as file:
        for number, line in enumerate(_lines(file, shown), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if "\\u" in line:  # half of a surrogate pair is JSON, and is no text
                    json.dumps(row, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{shown}, line {number}: not JSON ({error}). A line holds one object.") from None
            if not isinstance(row, dict):
                raise SourceError(
                    f"{shown}, line {number}: a JSON {type(row).__name__}, and a line holds one object. "
                    'Write {"text": …} on each line.'
                )
            yield number, row


def read_text(path: Path, shown: str, rows_per_batch: int) -> Iterator[pl.DataFrame]:
    """A row for every line, empty ones too: the column `text`, without the line's end."""
    batch: list[str] = []
    with _opened(path, shown) as file:
        for line in _lines(file, shown):
            batch.append(line.removesuffix("\n").removesuffix("\r"))
            if len(batch) == rows_per_batch:
                yield pl.DataFrame({"text": batch}, schema={"text": pl.String})
                batch = []
    if batch:
        yield pl.DataFrame({"text": batch}, schema={"text": pl.String})


def _lines(file: BinaryIO, shown: str) -> Iterator[str]:
    """Lines with their ends, decoded one by one, so that a wrong byte is found where it stands."""
    number = 0
    try:
        for number, line in enumerate(file, start=1):
            if number == 1:
                if line.startswith(_UTF16):
                    raise SourceError(f"{shown} is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8.")
                line = line.removeprefix(_BYTE_ORDER_MARK)
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"{shown}, line {number}: byte {error.start + 1} of the line is 0x{line[error.start]:02x}, which "
                    "is no UTF-8. Convert the file, for instance by iconv -f WINDOWS-1252 -t UTF-8."
                ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(_damaged(shown, number, error)) from None
    except OSError as error:
        if error.errno is not None:  # the disk's, not the decompressor's
            raise
        raise SourceError(_damaged(shown, number, error)) from None


def _damaged(shown: str, number: int, error: Exception) -> str:
    return f"{shown}: the compressed data is damaged or cut off after line {number} ({error}). Fetch or write it again."


@contextlib.contextmanager
def _opened(path: Path, shown: str) -> Iterator[BinaryIO]:
    with contextlib.ExitStack() as stack:
        try:
            file: BinaryIO = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise SourceError(f"{shown} cannot be read: {error.strerror}.") from None
        start = file.read(4)
        file.seek(0)
        if start.startswith(_GZIP):
            file = cast(BinaryIO, stack.enter_context(gzip.open(file)))
        elif start.startswith(_ZSTD):
            import pyarrow as pa

            # Arrow's stream offers no lines; the buffer around it does.
            file = cast(BinaryIO, stack.enter_context(io.BufferedReader(pa.CompressedInputStream(file, "zstd"))))
        yield file
