"""Objects on a local S3 server, and files on a local web server."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks import problems
from tasks.collect import collect
from tasks.errors import SourceError
from tasks.params import CollectObjects, FileFormat
from tasks.shards import read_rows
from tasks.sources import Partition, write_pins
from tasks.sources.objects import SOURCE

SECRET = "hunter2+secret/key"


def options(url: str, format: FileFormat = "auto") -> CollectObjects:
    return CollectObjects(
        columns={"text": "text", "label": "label"}, where=None, rows_per_shard=100, url=url, format=format
    )


def read(said: CollectObjects, partition: Partition) -> pl.DataFrame:
    return pl.concat(SOURCE.read(said, partition, 2))


def csv(*texts: str) -> bytes:
    return "".join(["text,label\n", *(f"{text},x\n" for text in texts)]).encode()


class Bucket:
    """A bucket of the local S3 server."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name
        client.create_bucket(Bucket=name)

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Bucket:
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mill-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return Bucket(boto3.client("s3"), f"bucket-{abs(hash(request.node.name))}")


def test_every_object_is_a_partition_and_new_ones_come_behind(bucket: Bucket) -> None:
    bucket.put("in/b.csv", csv("b1", "b2", "b3"))
    for folder in ("in/", "in/deep/"):  # what some tools leave in the place of a folder
        bucket.put(folder, b"")
    bucket.put("other/z.csv", csv("z"))
    said = options(f"s3://{bucket.name}/in/*.csv")
    first = SOURCE.partitions(said, [])
    assert [part.name for part in first] == ["b.csv"]
    bucket.put("in/a.csv", csv("a1"))
    second = SOURCE.partitions(said, first)
    assert [part.name for part in second] == ["b.csv", "a.csv"]
    assert second[:1] == first
    assert read(said, second[0])["text"].to_list() == ["b1", "b2", "b3"]
    assert read(said, second[1])["text"].to_list() == ["a1"]
    assert [part.name for part in SOURCE.partitions(options(f"s3://{bucket.name}/in/"), [])] == ["a.csv", "b.csv"]
    assert [part.name for part in SOURCE.partitions(options(f"s3://{bucket.name}/in/b.csv"), [])] == ["b.csv"]


def test_parquet_and_compressed_objects_are_read_like_files(bucket: Bucket, tmp_path: Path) -> None:
    import gzip

    rows = pl.DataFrame({"text": ["one", "two\nlines"], "label": ["x", None]})
    rows.write_parquet(tmp_path / "rows.parquet")
    bucket.put("rows.parquet", (tmp_path / "rows.parquet").read_bytes())
    bucket.put("rows.csv.gz", gzip.compress(rows.write_csv().encode()))
    for name in ("rows.parquet", "rows.csv.gz"):
        said = options(f"s3://{bucket.name}/{name}")
        assert read(said, SOURCE.partitions(said, [])[0]).equals(rows)


def test_pictures_of_one_pull_are_one_partition(bucket: Bucket) -> None:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        bucket.put(f"pictures/{name}", name.encode())
    said = options(f"s3://{bucket.name}/pictures/")
    (partition,) = SOURCE.partitions(said, [])
    assert read(said, partition).rows() == [
        ("cat/1.png", "cat", b"cat/1.png"),
        ("cat/2.png", "cat", b"cat/2.png"),
        ("dog/1.png", "dog", b"dog/1.png"),
    ]


def test_an_object_that_changed_or_went_is_named(bucket: Bucket) -> None:
    bucket.put("in/a.csv", csv("a"))
    said = options(f"s3://{bucket.name}/in/")
    known = SOURCE.partitions(said, [])
    bucket.put("in/a.csv", csv("b"))
    with pytest.raises(SourceError, match=r"a.csv is not what it was when it was pinned"):
        SOURCE.partitions(said, known)
    with pytest.raises(SourceError, match=r"in/a.csv is not what it was when it was pinned"):
        read(said, known[0])
    bucket.delete("in/a.csv")
    assert SOURCE.partitions(said, known) == known
    with pytest.raises(SourceError, match=r"in/a.csv is pinned, and is no longer there"):
        read(said, known[0])


def test_a_wrong_line_is_named_with_its_object(bucket: Bucket) -> None:
    bucket.put("in/a.csv", csv("a") + b"short\n")
    said = options(f"s3://{bucket.name}/in/")
    (partition,) = SOURCE.partitions(said, [])
    with pytest.raises(SourceError, match=rf"s3://{bucket.name}/in/a.csv, line 3: 1 fields, and the header has 2"):
        read(said, partition)


def test_a_prefix_without_its_slash_is_told_from_an_object(bucket: Bucket) -> None:
    bucket.put("in/a.csv", csv("a"))
    with pytest.raises(SourceError, match="/in is a prefix, not an object; write it with '/' at its end"):
        SOURCE.partitions(options(f"s3://{bucket.name}/in"), [])


@pytest.mark.parametrize("url", ["s3://{}/absent.csv", "s3://{}/absent/", "s3://{}/*.csv"])
def test_an_empty_place_says_so(bucket: Bucket, url: str) -> None:
    with pytest.raises(SourceError, match=r"no such object. collect.url is an object, a prefix"):
        SOURCE.partitions(options(url.format(bucket.name)), [])


def test_no_credential_reaches_messages_pins_and_shards(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUCKET", bucket.name)
    bucket.put("in/a.csv", csv("a", "b"))
    said = options("s3://$BUCKET/in/")
    write_pins(tmp_path / "source.json", SOURCE.partitions(said, []))
    collect(
        tmp_path / "source.json",
        tmp_path / "forgotten.jsonl",
        tmp_path / "collect",
        tmp_path / "report.json",
        params=said,
        source=SOURCE,
        problem=problems.load("text_classification"),
    )
    assert len(read_rows(tmp_path / "collect")) == 2
    for path in (tmp_path / "source.json", tmp_path / "report.json", *(tmp_path / "collect").iterdir()):
        for secret in (SECRET, "mill-key-id", bucket.name):
            assert secret.encode() not in path.read_bytes()

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(
        SourceError, match=r"s3://\$BUCKET/in/ cannot be read .*credentials in the environment"
    ) as failed:
        SOURCE.partitions(said, [])
    for secret in (SECRET, "mill-key-id", bucket.name):
        assert secret not in str(failed.value)


class Web(http.server.SimpleHTTPRequestHandler):
    """Serves a folder to those who bring the token; without Last-Modified where the name says so."""

    def do_GET(self) -> None:
        if "token=" in self.path and "token=open%2Bsesame" not in self.path:
            self.send_error(403)
        elif "cut" in self.path:
            content = b"text,label\na,x\n"
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) + 100))
            self.send_header("ETag", '"1"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)
        else:
            self.path = self.path.partition("?")[0]
            (super().do_GET if self.command == "GET" else super().do_HEAD)()

    def do_HEAD(self) -> None:
        self.do_GET()

    def send_header(self, keyword: str, value: str) -> None:
        if not (keyword == "Last-Modified" and "undated" in self.path):
            super().send_header(keyword, value)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "web").mkdir()
    handler = functools.partial(Web, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("name", "proof"), [("dated.csv", "last_modified"), ("undated.csv", "sha256")])
def test_a_file_on_the_web_is_pinned_by_the_best_mark_it_has(web: str, tmp_path: Path, name: str, proof: str) -> None:
    (tmp_path / "web" / name).write_bytes(csv("a", "b", "c"))
    said = options(f"{web}/{name}")
    (partition,) = SOURCE.partitions(said, [])
    assert (partition.name, sorted(partition.pin)) == (name, sorted([proof, "size"]))
    assert read(said, partition)["text"].to_list() == ["a", "b", "c"]
    (tmp_path / "web" / name).write_bytes(csv("a", "b", "dd"))
    with pytest.raises(SourceError, match="is not what it was when it was pinned"):
        read(said, partition)


def test_files_of_a_web_folder_are_found_by_a_glob(web: str, tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c.txt"):
        (tmp_path / "web" / name).write_bytes(csv(name))
    said = options(f"{web}/*.csv")
    partitions = SOURCE.partitions(said, [])
    assert [part.name for part in partitions] == ["a.csv", "b.csv"]
    assert read(said, partitions[1])["text"].to_list() == ["b.csv"]
    assert [part.name for part in SOURCE.partitions(options(f"{web}/"), [])] == ["a.csv", "b.csv", "c.txt"]


def test_a_token_of_the_environment_opens_the_door_and_is_never_shown(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "web/a.csv").write_bytes(csv("a"))
    said = options(f"{web}/a.csv?token=$MILL_TOKEN")
    monkeypatch.setenv("MILL_TOKEN", "open+sesame")
    (partition,) = SOURCE.partitions(said, [])
    assert read(said, partition)["text"].to_list() == ["a"]
    assert "sesame" not in str(partition)
    monkeypatch.setenv("MILL_TOKEN", "hunter2")
    with pytest.raises(SourceError, match=r"\?token=\$MILL_TOKEN.*403") as refused:
        SOURCE.partitions(said, [])
    assert "hunter2" not in str(refused.value)


def test_a_web_server_that_is_not_there_is_told_from_a_missing_file(web: str) -> None:
    with pytest.raises(SourceError, match="no such object"):
        SOURCE.partitions(options(f"{web}/absent.csv"), [])
    with pytest.raises(SourceError, match="is pinned, and is no longer there"):
        read(options(f"{web}/absent.csv"), Partition("absent.csv", {"etag": "1", "size": 1}))
    with pytest.raises(SourceError, match=r"cannot be read .*ClientConnectorError"):
        SOURCE.partitions(options("http://127.0.0.1:9/a.csv"), [])


def test_a_connection_that_breaks_off_gives_no_rows(web: str) -> None:
    said = options(f"{web}/cut.csv")
    with pytest.raises(SourceError, match=r"cut.csv cannot be read"):
        read(said, Partition("cut.csv", {"etag": "1", "size": 115}))


@pytest.mark.parametrize("url", ["ftp://host/a.csv", "/data/a.csv", "file:///data/a.csv"])
def test_another_kind_of_address_is_explained(url: str) -> None:
    with pytest.raises(SourceError, match=r"objects are read from s3://, gs://, http:// and https://.*source: files"):
        SOURCE.partitions(options(url), [])
