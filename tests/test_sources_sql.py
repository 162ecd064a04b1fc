"""The sql source on SQLite: watermarks, pins, and URLs without secrets."""

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.errors import SourceError
from tasks.params import CollectSql
from tasks.sources import Partition
from tasks.sources.sql import SOURCE

QUERY = "SELECT id, text, label, seen FROM reviews"


class Reviews:
    """A table of reviews in a SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run("CREATE TABLE reviews (id INTEGER, text TEXT, label TEXT, seen TEXT)")

    def run(self, statement: str, rows: Iterable[tuple[Any, ...]] = ((),)) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as connection, connection:
            connection.executemany(statement, rows)

    def add(self, *rows: tuple[Any, ...]) -> None:
        self.run("INSERT INTO reviews VALUES (?, ?, ?, ?)", rows)

    def options(self, watermark: str | None = "id", query: str = QUERY, url: str | None = None) -> CollectSql:
        return CollectSql(
            columns={"text": "text", "label": "label"},
            where=None,
            rows_per_shard=100,
            url=url or f"sqlite:///{self.path}",
            query=query,
            watermark=watermark,
        )

    def pull(
        self, known: list[Partition] | None = None, watermark: str | None = "id", query: str = QUERY
    ) -> list[Partition]:
        return SOURCE.partitions(self.options(watermark, query), known or [])

    def read(self, partition: Partition, watermark: str | None = "id", query: str = QUERY) -> pl.DataFrame:
        return pl.concat(SOURCE.read(self.options(watermark, query), partition, 2))


@pytest.fixture
def reviews(tmp_path: Path) -> Reviews:
    table = Reviews(tmp_path / "reviews.db")
    table.add((1, "one", "good", "2026-01-01"), (2, "two", "bad", "2026-01-01"), (3, None, "bad", "2026-01-02"))
    return table


def test_a_pull_pins_what_came_after_the_last_watermark(reviews: Reviews) -> None:
    first = reviews.pull()
    assert [part.name for part in first] == ["id to 3"]
    assert reviews.pull(first) == first
    reviews.add((5, "five", "good", "2026-01-03"), (4, "four", "good", "2026-01-03"))
    second = reviews.pull(first)
    assert second[:1] == first
    assert (second[1].pin["after"], second[1].pin["until"], second[1].pin["rows"]) == ("integer:3", "integer:5", 2)
    assert reviews.read(second[0])["text"].to_list() == ["one", "two", None]
    assert reviews.read(second[1])["id"].to_list() == [4, 5]


def test_rows_come_in_one_order_however_the_table_holds_them(tmp_path: Path) -> None:
    rows = [(1, "b", "x", "d1"), (2, "a", "x", "d1"), (3, "a", "w", "d0"), (4, None, "w", "d1")]
    read = []
    for number, order in enumerate((rows, rows[::-1])):
        table = Reviews(tmp_path / f"{number}.db")
        table.add(*order)
        (partition,) = table.pull(watermark="seen")
        read.append((partition, table.read(partition, "seen").rows()))
    assert read[0] == read[1]
    assert [row[0] for row in read[0][1]] == [3, 1, 2, 4]


def test_text_watermarks_work(reviews: Reviews) -> None:
    first = reviews.pull(watermark="seen")
    assert first[0].pin["until"] == "text:2026-01-02"
    reviews.add((4, "four", "good", "2026-01-02 10:00"))
    second = reviews.pull(first, watermark="seen")
    assert reviews.read(second[1], "seen")["id"].to_list() == [4]


def test_rows_that_come_late_are_counted_and_refused(reviews: Reviews) -> None:
    known = reviews.pull(watermark="seen")
    reviews.add((4, "late", "good", "2026-01-01"), (5, "late", "good", "2026-01-02"), (6, "new", "good", "2026-01-09"))
    with pytest.raises(SourceError, match=r"2 rows have come late: their 'seen' is at or below 2026-01-02"):
        reviews.pull(known, watermark="seen")


def test_rows_without_a_watermark_are_counted_and_refused(reviews: Reviews) -> None:
    reviews.add((None, "four", "good", "x"), (None, "five", "good", "x"))
    with pytest.raises(SourceError, match=r"2 rows have no 'id'.*WHERE id IS NOT NULL"):
        reviews.pull()


def test_rows_that_were_deleted_take_no_partition_away_but_cannot_be_read_again(reviews: Reviews) -> None:
    known = reviews.pull()
    reviews.run("DELETE FROM reviews WHERE id = 2")
    assert reviews.pull(known) == known
    with pytest.raises(SourceError, match="no longer those that were pinned: 2 rows now, 3 then"):
        reviews.read(known[0])
    reviews.run("DELETE FROM reviews")
    assert reviews.pull(known) == known


def test_a_changed_past_is_noticed_when_it_is_read(reviews: Reviews) -> None:
    (known,) = reviews.pull()
    reviews.run("UPDATE reviews SET label = 'good' WHERE id = 2")
    with pytest.raises(SourceError, match="no longer those that were pinned: the values of some are others"):
        reviews.read(known)
    reviews.run("UPDATE reviews SET id = 'two' WHERE id = 2")
    with pytest.raises(SourceError, match="no longer those that were pinned"):
        reviews.read(known)


def test_a_column_added_to_the_table_changes_nothing_and_one_taken_away_is_named(reviews: Reviews) -> None:
    query = "SELECT * FROM reviews"
    (known,) = reviews.pull(query=query)
    reviews.run("ALTER TABLE reviews ADD COLUMN stars INTEGER DEFAULT 5")
    assert reviews.read(known, query=query).columns == ["id", "text", "label", "seen"]
    reviews.run("ALTER TABLE reviews DROP COLUMN label")
    with pytest.raises(SourceError, match=r"no longer has the column 'label'.*id, text, seen, stars"):
        reviews.read(known, query=query)


def test_without_a_watermark_the_whole_result_is_one_partition_that_is_replaced(reviews: Reviews) -> None:
    first = reviews.pull(watermark=None)
    assert reviews.pull(first, watermark=None) == first
    assert len(reviews.read(first[0], None)) == 3
    reviews.add((4, "four", "good", "x"))
    second = reviews.pull(first, watermark=None)
    assert [part.name for part in second] == ["all"]
    assert second != first
    assert len(reviews.read(second[0], None)) == 4
    with pytest.raises(SourceError, match="4 rows now, 3 then"):
        reviews.read(first[0], None)


def test_another_query_or_watermark_wants_a_new_pin(reviews: Reviews) -> None:
    known = reviews.pull()
    for changed in ({"watermark": "seen"}, {"query": QUERY + " WHERE id > 1"}):
        with pytest.raises(SourceError, match=r"Delete source.json"):
            reviews.pull(known, **changed)
        with pytest.raises(SourceError, match=r"Delete source.json"):
            reviews.read(known[0], **changed)


@pytest.mark.parametrize(
    "query",
    [
        f"{QUERY};",
        f"{QUERY} -- the end",
        f"WITH good AS ({QUERY}) SELECT * FROM good",
        f"{QUERY} WHERE text <> ' :name' AND label <> '100%' AND seen <> '12:30:00'",
        f"{QUERY} ORDER BY text",
    ],
)
def test_a_query_may_be_any_select(reviews: Reviews, query: str) -> None:
    (partition,) = reviews.pull(query=query)
    assert len(reviews.read(partition, query=query)) in (2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"watermark": "ids"}, r"collect.watermark is 'ids'.*Did you mean 'id'\? It has: id, text, label, seen"),
        ({"query": "SELECT absent FROM reviews"}, "the database says: no such column: absent"),
        ({"query": "DELETE FROM reviews"}, "the database says: .*syntax error"),
        ({"query": "SELECT * FROM reviews WHERE id > 9"}, "collect.query gives no rows"),
        ({"query": "SELECT * FROM reviews WHERE id > 9", "watermark": None}, "collect.query gives no rows"),
        ({"query": "SELECT id, CASE id WHEN 1 THEN 'a' ELSE 2 END AS v FROM reviews"}, "'v' holds .*Int64 where.*CAST"),
        ({"query": "SELECT x'00' AS id"}, "collect.watermark 'id' is of type bytes"),
        ({"url": "sqlite:////nowhere/at/all.db"}, "there is no such SQLite file"),
        ({"url": "oracel://host/db"}, "collect.url 'oracel://host/db': .*oracel"),
        ({"url": "no url"}, "collect.url 'no url'"),
        ({"url": "mysql+pymysql://host/db"}, r"Please install the driver pymysql to read mysql\+pymysql://"),
    ],
)
def test_what_cannot_be_asked_is_explained(reviews: Reviews, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        SOURCE.partitions(reviews.options(**changes), [])
    assert len(reviews.read(reviews.pull()[0])) == 3


def test_a_file_that_is_no_database_is_explained(tmp_path: Path) -> None:
    (tmp_path / "not.db").write_text("text " * 1000)
    options = CollectSql(
        columns={"text": "text"},
        where=None,
        rows_per_shard=9,
        url=f"sqlite:///{tmp_path}/not.db",
        query=QUERY,
        watermark=None,
    )
    with pytest.raises(SourceError, match="file is not a database"):
        SOURCE.partitions(options, [])
