"""Files of every format, whole and damaged, read by the files source."""

import gzip
import json
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from tasks.errors import SourceError
from tasks.params import CollectFiles, FileFormat
from tasks.sources import Partition
from tasks.sources.files import SOURCE

REVIEWS = Path(__file__).parent.parent / "data/samples/reviews.parquet"
ODD_TEXTS = [
    "plain",
    "nul \0 byte",
    "emoji 👩‍👩‍👧 and flags 🇨🇭",
    "עברית and العربية",
    "two\nlines",
    'a "quote", a comma',
    "é" * 3,
]


def options(path: Path, format: FileFormat = "auto") -> CollectFiles:
    return CollectFiles(columns={"text": "text"}, where=None, rows_per_shard=10, path=str(path), format=format)


def read(path: Path, format: FileFormat = "auto", rows_per_batch: int = 1000) -> pl.DataFrame:
    said = options(path, format)
    partitions = SOURCE.partitions(said, [])
    return pl.concat(rows for part in partitions for rows in SOURCE.read(said, part, rows_per_batch))


def csv_of(rows: pl.DataFrame) -> bytes:
    return rows.write_csv().encode()


def json_lines_of(rows: pl.DataFrame) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.iter_rows(named=True)).encode()


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


@pytest.mark.parametrize("compressed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_the_same_rows_come_from_every_format_and_compression(tmp_path: Path, ending: str, compressed: str) -> None:
    rows = pl.DataFrame({"id": ["007", "8", "9"], "text": ["a", "b, c", None], "label": ["x", "y", "x"]})
    content = csv_of(rows) if ending == ".csv" else json_lines_of(rows)
    if compressed == ".gz":
        content = gzip.compress(content)
    elif compressed == ".zst":
        content = zstd(content)
    (tmp_path / f"rows{ending}{compressed}").write_bytes(content)
    assert read(tmp_path / f"rows{ending}{compressed}").equals(rows)
    assert read(tmp_path / f"rows{ending}{compressed}", rows_per_batch=2).equals(rows)


def test_parquet_comes_in_batches_with_its_own_types(tmp_path: Path) -> None:
    said = options(REVIEWS)
    (partition,) = SOURCE.partitions(said, [])
    batches = list(SOURCE.read(said, partition, 5_000))
    assert max(map(len, batches)) <= 5_000
    assert pl.concat(batches).equals(pl.read_parquet(REVIEWS))
    categories = pl.DataFrame({"label": ["a", "b"]}, schema={"label": pl.Categorical})
    categories.write_parquet(tmp_path / "categories.parquet")
    assert read(tmp_path / "categories.parquet").schema == {"label": pl.String}


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_odd_texts_come_through_unharmed(tmp_path: Path, ending: str) -> None:
    rows = pl.DataFrame({"text": [*ODD_TEXTS, "x" * 10_000_000]})
    path = tmp_path / f"odd{ending}"
    if ending == ".parquet":
        rows.write_parquet(path)
    else:
        path.write_bytes(csv_of(rows) if ending == ".csv" else json_lines_of(rows))
    assert read(path).equals(rows)


def test_csv_columns_are_text_and_an_empty_field_has_no_value(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfid,text,n\r\n007,x,1e5\r\n\r\n8,,\r\n")
    rows = read(tmp_path / "a.csv")
    assert rows.rows() == [("007", "x", "1e5"), ("8", None, None)]
    assert rows.columns == ["id", "text", "n"]
    (tmp_path / "a.tsv").write_text("id\ttext\n1\ta,b\n")
    assert read(tmp_path / "a.tsv").rows() == [("1", "a,b")]


def test_a_type_of_json_is_found_over_the_whole_file(tmp_path: Path) -> None:
    lines = [
        '{"a": null, "n": 1, "tags": []}',
        '{"n": 2.5, "box": {"x": 1}}',
        '{"a": "t", "tags": ["q"], "box": {"y": 2}}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n\n")
    rows = read(tmp_path / "a.jsonl", rows_per_batch=1)
    assert rows.schema == {
        "a": pl.String,
        "n": pl.Float64,
        "tags": pl.List(pl.String),
        "box": pl.Struct({"x": pl.Int64, "y": pl.Int64}),
    }
    assert rows["n"].to_list() == [1.0, 2.5, None]
    assert rows["box"].to_list() == [None, {"x": 1, "y": None}, {"x": None, "y": 2}]


def test_a_text_file_is_a_row_for_every_line_with_empty_ones(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\r\n\ntwo \x85three\nfour".encode())
    assert read(tmp_path / "a.txt", rows_per_batch=2)["text"].to_list() == ["one", "", "two \x85three", "four"]


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_media_are_bytes_with_their_folder_as_label(tmp_path: Path, kind: FileFormat) -> None:
    ending = {"image": "png", "audio": "wav"}[kind]
    for name in ("cat/1", "cat/2", "dog/1", "loose"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.{ending}").write_bytes(f"bytes of {name}".encode())
    (tmp_path / ".hidden").mkdir()
    (tmp_path / f".hidden/1.{ending}").write_bytes(b"no")
    rows = read(tmp_path)
    assert rows.columns == ["path", "label", kind]
    assert rows.rows()[0] == (f"cat/1.{ending}", "cat", b"bytes of cat/1")
    assert rows["label"].to_list() == ["cat", "cat", "dog", None]

    known = SOURCE.partitions(options(tmp_path), [])
    assert len(known) == 1
    (tmp_path / f"dog/0.{ending}").write_bytes(b"new")
    grown = SOURCE.partitions(options(tmp_path), known)
    assert grown[:1] == known
    assert list(grown[1].pin["files"]) == [f"dog/0.{ending}"]
    (tmp_path / f"dog/1.{ending}").write_bytes(b"changed")
    with pytest.raises(SourceError, match=r"dog/1.* is not what it was when it was pinned"):
        list(SOURCE.read(options(tmp_path), known[0], 10))


BROKEN = {
    "short.csv": (
        b"id,text,label\n1,a,x\n2,b\n3,c,x\n",
        r"short.csv, line 3: 2 fields, and the header has 3 \(id, text",
    ),
    "long.csv": (b'id,text,label\n1,"a\nb",x\n2,b,x,y\n', "long.csv, line 4: 4 fields, and the header has 3"),
    "open.csv": (b'id,text\n1,a\n2,"b\n3,c\n', "open.csv, line 3: a quote is opened and never closed"),
    "after.csv": (b'id,text\n1,"a" b\n', "after.csv, line 2: text follows a closing quote"),
    "mac.csv": (b"id,text\r1,a\r", "mac.csv, line 1: a lone carriage return"),
    "twice.csv": (b"id,text,id\n1,a,2\n", "twice.csv, line 1: more than one column is named 'id'"),
    "empty.csv": (b"", "empty.csv is empty"),
    "latin.csv": ("id,text\n1,a\n2,é\n".encode("latin-1"), "latin.csv, line 3: byte 3 of the line is 0xe9.*iconv"),
    "utf16.csv": ("id,text\n".encode("utf-16"), "utf16.csv is UTF-16.*iconv -f UTF-16"),
    "latin.txt": ("ok\né\n".encode("latin-1"), "latin.txt, line 2: byte 1 of the line is 0xe9"),
    "half.jsonl": (b'{"text": "a"}\n{"text": \n', "half.jsonl, line 2: not JSON"),
    "list.jsonl": (b'["a"]\n', "list.jsonl, line 1: a JSON list, and a line holds one object"),
    "mixed.jsonl": (b'{"n": 1}\n{"n": "x"}\n', "mixed.jsonl, line 2: 'n' holds String where earlier rows have Int64"),
    "big.jsonl": (b'{"n": 99999999999999999999}\n', "big.jsonl, line 1: 'n' holds a whole number past 64 bits"),
    "half-pair.jsonl": (b'{"text": "\\ud83d"}\n', "half-pair.jsonl, line 1: not JSON"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "deep.jsonl, line 1: not JSON"),
    "cut.csv.gz": (
        gzip.compress(b"id,text\n" + b"1,a\n" * 9000)[:-30],
        "cut.csv.gz: the compressed data is damaged or cut",
    ),
    "cut.jsonl.zst": (
        zstd(json_lines_of(pl.DataFrame({"n": range(9000)})))[:-30],
        "cut.jsonl.zst: the compressed data is damaged or cut off after line",
    ),
    "cut.parquet": (REVIEWS.read_bytes()[:-100], "cut.parquet is no whole Parquet file: it cannot be read past row 0"),
    "empty.parquet": (b"", "empty.parquet is no whole Parquet file"),
    "rotten.parquet": (
        REVIEWS.read_bytes()[:1000] + b"\0" * 200 + REVIEWS.read_bytes()[1200:],
        "rotten.parquet is no whole Parquet file: it cannot be read past row",
    ),
    "what.xlsx": (b"PK", r"what.xlsx: the name does not say which format it has. Known endings.*\.jsonl"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_is_named_with_its_line_or_row(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        read(tmp_path / name)


def test_names_are_sorted_and_relative_to_the_part_without_wildcards(tmp_path: Path) -> None:
    for name in ("in/b.csv", "in/a.csv", "in/deep/c.csv", "in/.hidden.csv", "in/note.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\nx\n")

    def names(path: str) -> list[str]:
        return [part.name for part in SOURCE.partitions(options(tmp_path / path), [])]

    assert names("in/*.csv") == ["a.csv", "b.csv"]
    assert names("in/**/*.csv") == ["a.csv", "b.csv", "deep/c.csv"]
    assert names("in/deep") == ["c.csv"]
    assert names("in/b.csv") == ["b.csv"]
    with pytest.raises(SourceError, match=r"note\.md: the name does not say which format"):
        names("in")


def test_a_name_with_brackets_is_no_glob_where_there_is_such_a_file(tmp_path: Path) -> None:
    (tmp_path / "data [1].csv").write_text("text\nx\n")
    assert len(read(tmp_path / "data [1].csv")) == 1


def test_a_source_without_files_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file, or an empty folder"):
        SOURCE.partitions(options(tmp_path / "*.csv"), [])


def test_tables_and_pictures_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nx\n")
    (tmp_path / "b.png").write_bytes(b"png")
    with pytest.raises(SourceError, match=r"a\.csv is csv, b\.png is image"):
        SOURCE.partitions(options(tmp_path), [])


def test_a_pinned_file_that_changed_is_refused_by_pull_and_by_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\nx\n")
    known = SOURCE.partitions(options(tmp_path), [])
    path.write_text("text\ny\n")
    with pytest.raises(SourceError, match=r"a.csv is not what it was when it was pinned"):
        SOURCE.partitions(options(tmp_path), known)
    with pytest.raises(SourceError, match=r"a.csv is not what it was when it was pinned"):
        list(SOURCE.read(options(tmp_path), known[0], 10))
    path.unlink()
    assert SOURCE.partitions(options(tmp_path), known) == known
    with pytest.raises(SourceError, match=r"a.csv is pinned, and is no longer there"):
        list(SOURCE.read(options(tmp_path), Partition("a.csv", known[0].pin), 10))
