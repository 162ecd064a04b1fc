"""The sql source on a real PostgreSQL that the tests start, one of them to kill it in mid-stream."""

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks import problems
from tasks.collect import collect
from tasks.errors import SourceError
from tasks.params import CollectSql
from tasks.shards import read_json, read_rows
from tasks.sources import Partition, write_pins
from tasks.sources.sql import SOURCE
from tests.postgres_server import PASSWORD, Server, started


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from started()


@pytest.fixture
def doomed() -> Iterator[Server]:
    """A server that the test may kill."""
    yield from started()


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILL_PASSWORD", PASSWORD)


def options(server: Server, query: str, watermark: str | None) -> CollectSql:
    return CollectSql(
        columns={"id": "id", "text": "text", "label": "label"},
        where=None,
        rows_per_shard=1000,
        url=f"postgresql://mill:$MILL_PASSWORD@127.0.0.1:{server.port}/postgres",
        query=query,
        watermark=watermark,
    )


def read(said: CollectSql, partition: Partition) -> pl.DataFrame:
    return pl.concat(SOURCE.read(said, partition, 2))


def test_every_common_type_comes_as_it_is(server: Server) -> None:
    query = """
        SELECT 1 AS id, 10000000000::bigint AS big, 1.50::numeric AS price, 0.1::float8 AS share, true AS yes,
               'é 😀'::text AS text, '\\x00ff'::bytea AS bytes, DATE '2026-11-01' AS day, TIME '10:30' AS at,
               TIMESTAMP '2026-11-01 10:00:00.000001' AS local, TIMESTAMPTZ '2026-11-01 10:00:00+02' AS moment,
               INTERVAL '90 minutes' AS span, '{"b": [1], "a": "é"}'::jsonb AS data, ARRAY['x', 'y'] AS tags,
               '5f0c6f1e-0000-4000-8000-000000000001'::uuid AS key, NULL::int AS nothing
    """
    said = options(server, query, None)
    (partition,) = SOURCE.partitions(said, [])
    assert read(said, partition).row(0, named=True) == {
        "id": 1,
        "big": 10_000_000_000,
        "price": Decimal("1.50"),
        "share": 0.1,
        "yes": True,
        "text": "é 😀",
        "bytes": b"\x00\xff",
        "day": dt.date(2026, 11, 1),
        "at": dt.time(10, 30),
        "local": dt.datetime(2026, 11, 1, 10, 0, 0, 1),
        "moment": dt.datetime(2026, 11, 1, 8, tzinfo=dt.UTC),
        "span": dt.timedelta(minutes=90),
        "data": '{"a": "é", "b": [1]}',
        "tags": '["x", "y"]',
        "key": "5f0c6f1e-0000-4000-8000-000000000001",
        "nothing": None,
    }


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("bigint", [10_000_000_000, 10_000_000_001, 20_000_000_000]),
        ("numeric", [Decimal("1.5"), Decimal("1.50001"), Decimal("2")]),
        ("float8", [0.1, 0.30000000000000004, 1.0]),
        ("date", [dt.date(2026, 1, 1), dt.date(2026, 1, 2), dt.date(2026, 2, 1)]),
        ("timestamp", [dt.datetime(2026, 1, 1, 0, 0, 0, n) for n in (1, 2, 3)]),
        # Between the first two, New York puts its clocks back.
        ("timestamptz", [dt.datetime(2026, 11, 1, hour, 30, 0, 1, tzinfo=dt.UTC) for hour in (5, 6, 7)]),
        ("text", ["a", "b'", "é:x"]),
    ],
)
def test_a_watermark_of_any_type_parts_rows_exactly(
    server: Server, kind: str, values: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGTZ", "America/New_York")  # the session's time zone must not matter
    server.run(f"CREATE TABLE {kind}_marks (id int, mark {kind})")
    said = options(server, f"SELECT id, mark FROM {kind}_marks", "mark")
    known: list[Partition] = []
    for number, value in enumerate(values):
        server.run(f"INSERT INTO {kind}_marks VALUES (%s, %s)", number, value)
        known = SOURCE.partitions(said, known)
    assert SOURCE.partitions(said, known) == known
    assert [read(said, partition)["id"].to_list() for partition in known] == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("query", "watermark", "message"),
    [
        ("SELECT 1 AS id, 2 AS id", None, "more than one column named 'id'.*AS"),
        ("SELECT '{}'::json AS data", None, "could not identify an ordering operator.*Cast that column to text"),
        ("SELECT int4range(1, 5) AS span", None, "'span' holds a value of type Range.*CAST it to text"),
        ("SELECT 'NaN'::numeric AS price", None, "'price' holds NaN among decimals"),
        ("SELECT * FROM absent", None, 'relation "absent" does not exist'),
    ],
)
def test_what_cannot_be_collected_is_explained(server: Server, query: str, watermark: str | None, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        SOURCE.partitions(options(server, query, watermark), [])


def test_a_wrong_password_is_not_repeated(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILL_PASSWORD", "hunter2 is wrong")
    with pytest.raises(
        SourceError, match=r"postgresql://mill:\$MILL_PASSWORD@.*password authentication failed"
    ) as refused:
        SOURCE.partitions(options(server, "SELECT 1 AS id", None), [])
    assert "hunter2" not in str(refused.value)


class KilledAfterTheFirstBatch:
    """The sql source, whose server is killed once rows have come."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.num_rows = 0

    def read(self, said: CollectSql, partition: Partition, rows_per_batch: int) -> Iterator[pl.DataFrame]:
        for rows in SOURCE.read(said, partition, rows_per_batch):
            if not self.num_rows and len(rows):
                self.server.control("-m", "immediate", "stop")
            self.num_rows += len(rows)
            yield rows


def test_a_database_that_goes_away_in_mid_stream_replaces_nothing_and_the_next_run_is_whole(
    doomed: Server, tmp_path: Path
) -> None:
    doomed.run("CREATE TABLE reviews (id int PRIMARY KEY, text text, label text)")
    fill = "INSERT INTO reviews SELECT n, repeat('word ', 40) || n, 'l' || mod(n, 2) FROM generate_series({}, {}) n"
    said = options(doomed, "SELECT id, text, label FROM reviews", "id")
    pin, collected = tmp_path / "source.json", tmp_path / "collect"
    known: list[Partition] = []

    def pull_and_collect(source: Any = SOURCE, pull: bool = True) -> None:
        nonlocal known
        if pull:
            known = SOURCE.partitions(said, known)
            write_pins(pin, known)
        problem = problems.load("text_classification")
        nothing, report = tmp_path / "forgotten.jsonl", tmp_path / "report.json"
        collect(pin, nothing, collected, report, params=said, source=source, problem=problem)

    doomed.run(fill.format(1, 2000))
    pull_and_collect()
    before = {path.name: path.read_bytes() for path in collected.iterdir()}
    doomed.run(fill.format(2001, 100_000))
    killed = KilledAfterTheFirstBatch(doomed)
    with pytest.raises(SourceError, match=r"the database says: .*Nothing was replaced; run it again"):
        pull_and_collect(killed)
    assert 0 < killed.num_rows < 98_000
    assert {path.name: path.read_bytes() for path in collected.iterdir()} == before

    doomed.control(
        "-o", f"-p {doomed.port} -c unix_socket_directories={doomed.folder}", "-l", str(doomed.folder / "log"), "start"
    )
    pull_and_collect(pull=False)
    rows = read_rows(collected)
    assert rows["id"].to_list() == [str(number) for number in range(1, 100_001)]
    assert len(read_json(collected / "manifest.json")["partitions"]) == 2


def test_no_credential_reaches_what_is_written(server: Server, tmp_path: Path) -> None:
    said = options(server, "SELECT 1 AS id, 'a' AS text, 'b' AS label", "id")
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
    for path in (tmp_path / "source.json", tmp_path / "report.json", *(tmp_path / "collect").iterdir()):
        content = path.read_bytes()
        assert PASSWORD.encode() not in content
        assert b"p%40ss" not in content
