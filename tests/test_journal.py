"""Predictions and the labels that come later, in SQLite and in a real PostgreSQL: tasks/journal.py."""

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa

from tasks import database
from tasks import journal as journals
from tasks.database import JournalError, LogNotEmptied, open_engine, reading, writing
from tasks.journal import Journal, Prediction, UnknownPrediction, open_journal
from tasks.labels import Label
from tests.conftest import REPOSITORY
from tests.postgres_server import PASSWORD, Server, started
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    yield from started()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/journal.sqlite"
    server: Server = request.getfixturevalue("postgres")
    server.run("DROP SCHEMA public CASCADE")
    server.run("CREATE SCHEMA public")
    return f"postgresql+psycopg://mill:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/postgres"


@pytest.fixture
def journal(url: str) -> Iterator[Journal]:
    journal = open_journal(url)
    yield journal
    journal.close()


def prediction(number: int, model: str = "reviews", version: str = "sha-1", **more: object) -> Prediction:
    return Prediction(
        id=f"{number:032d}",
        at_us=1_000_000 * number,
        model=model,
        version=version,
        client="shop",
        inputs={"text": f"film {number} ⟨EMAIL_1⟩ 🎬"},
        answer={"label": "positive", "probability": 0.75, "probabilities": [0.25, 0.75]},
        latency_ms=2.5,
        embedding=np.array([0.5, -0.25, number], dtype=np.float32),
        **more,  # type: ignore[arg-type]
    )


def write(journal: Journal, *predictions: Prediction) -> None:
    journal.record(predictions).result(10)


def label(number: int, value: str = "negative") -> Label:
    return Label(f"{number:032d}", {"label": value})


def test_a_prediction_comes_back_as_it_was_answered(journal: Journal) -> None:
    write(journal, prediction(7))
    found = journal.find(f"{7:032d}")
    assert found is not None
    assert (found["model"], found["version"], found["client"], found["label"]) == ("reviews", "sha-1", "shop", None)
    assert found["inputs"] == {"text": "film 7 ⟨EMAIL_1⟩ 🎬"}
    assert found["answer"]["probabilities"] == [0.25, 0.75]
    assert journal.find("unknown") is None


def test_a_window_holds_the_last_predictions_of_one_model_in_order(journal: Journal) -> None:
    write(journal, *(prediction(number) for number in range(5)), prediction(9, model="tweets"))
    write(journal, prediction(5, version="sha-2"), prediction(6, shadow_of=f"{3:032d}"))
    window = journal.window("reviews", last=3)
    assert [int(number) for number in window["id"]] == [3, 4, 5]
    assert window["embedding"].to_list()[0] == [0.5, -0.25, 3.0]
    after = journal.window("reviews", after=window["seq"][1])
    assert after["version"].to_list() == ["sha-2"]
    assert len(journal.window("reviews", version="sha-1")) == 5
    assert [int(number) for number in journal.window("reviews", is_shadow=True)["id"]] == [6]
    assert journal.count("reviews") == 6


def test_an_empty_window_has_its_columns(journal: Journal) -> None:
    assert journal.window("reviews").schema["embedding"] == pl.List(pl.Float32())


def test_labels_come_later_and_the_latest_counts(journal: Journal) -> None:
    write(journal, *(prediction(number) for number in range(3)))
    assert journal.add_labels([label(0), label(2)], model="reviews", client=None) == 2
    assert journal.add_labels([label(0), label(2, "positive")], model="reviews", client="shop") == 1
    labels = journal.window("reviews")["label"].to_list()
    assert labels == ['{"label": "negative"}', None, '{"label": "positive"}']
    found = journal.find(f"{2:032d}")
    assert found is not None
    assert found["label"] == {"label": "positive"}


def test_the_same_label_twice_in_one_go_is_kept_once(journal: Journal) -> None:
    write(journal, prediction(0))
    assert journal.add_labels([label(0), label(0)], model="reviews", client=None) == 1


def test_a_label_for_what_was_never_predicted_keeps_none_of_those_beside_it(journal: Journal) -> None:
    write(journal, prediction(0), prediction(1, model="tweets"))
    for stranger in (label(5), label(1)):
        with pytest.raises(JournalError, match="reviews has no prediction"):
            journal.add_labels([label(0), stranger], model="reviews", client=None)
    assert journal.window("reviews")["label"].to_list() == [None]


def test_many_labels_are_written_in_parts_and_all_of_them_come_back(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "_ROWS_PER_BATCH", 10)
    write(journal, *(prediction(number) for number in range(35)))
    labels = [label(number) for number in range(35)] + [label(3, "positive"), label(3, "positive")]
    assert journal.add_labels(labels, model="reviews", client=None) == 36
    assert journal.add_labels(labels[:35], model="reviews", client=None) == 1
    assert journal.window("reviews")["label"].to_list() == ['{"label": "negative"}'] * 35
    with pytest.raises(UnknownPrediction, match=f"{99:032d}"):
        journal.add_labels([*(label(number, "neither") for number in range(34)), label(99)], model="reviews", client="")
    assert set(journal.window("reviews")["label"]) == {'{"label": "negative"}'}


def test_what_others_write_between_the_look_and_the_writing_is_minded(journal: Journal) -> None:
    write(journal, *(prediction(number) for number in range(3)))
    new, seen = journal._news([label(0), label(1), label(2)], "reviews")
    journal.add_labels([label(0), label(1, "positive")], model="reviews", client="shop")
    assert journal._keep(new, seen, "reviews", None)[0] == 2  # the first stands by now
    assert [row["label"] for row in journal.window("reviews").to_dicts()] == ['{"label": "negative"}'] * 3
    new, seen = journal._news([label(0, "positive"), label(1, "positive")], "reviews")
    journal.forget([f"{1:032d}"])
    with pytest.raises(UnknownPrediction, match=r"has forgotten the prediction 0+1 meanwhile"):
        journal._keep(new, seen, "reviews", None)
    assert journal.find(f"{0:032d}")["label"] == {"label": "negative"}  # type: ignore[index]


def test_predictions_do_not_wait_for_a_file_of_labels(tmp_path: Path) -> None:
    """A server beside `mill feedback`: two processes' journals, of which SQLite lets one write at a time."""
    server, command = (open_journal(f"sqlite:///{tmp_path}/journal.sqlite") for _ in range(2))
    write(server, *(prediction(number) for number in range(20_000)))
    waited, is_over = [], threading.Event()

    def go_on() -> None:
        number = 20_000
        while not is_over.is_set():
            started = time.monotonic()
            write(server, prediction(number))
            waited.append(time.monotonic() - started)
            number += 1

    asking = threading.Thread(target=go_on)
    asking.start()
    started = time.monotonic()
    assert command.add_labels([label(number) for number in range(20_000)], model="reviews", client=None) == 20_000
    took = time.monotonic() - started
    is_over.set()
    asking.join(30)
    server.close()
    command.close()
    assert max(waited) < took / 3, f"{max(waited):.2f} s of {took:.2f} s"


def test_what_is_too_old_goes_with_its_labels(journal: Journal) -> None:
    write(journal, *(prediction(number) for number in range(4)))
    journal.add_labels([label(0), label(3)], model="reviews", client=None)
    assert journal.purge(before_us=2_000_000) == 2
    assert [int(number) for number in journal.window("reviews")["id"]] == [2, 3]
    assert journal.find(f"{0:032d}") is None
    write(journal, prediction(0))
    assert journal.window("reviews", last=1)["label"].to_list() == [None]


def test_a_backup_is_a_journal_as_it_stood_at_one_moment(journal: Journal, tmp_path: Path) -> None:
    write(journal, *(prediction(number) for number in range(2500)))
    journal.add_labels([label(0)], model="reviews", client=None)
    stop = threading.Event()

    def go_on() -> None:
        number = 2500
        while not stop.is_set():
            write(journal, prediction(number))
            journal.add_labels([label(number)], model="reviews", client=None)
            number += 1

    writer = threading.Thread(target=go_on)
    writer.start()
    held = journal.backup(tmp_path / "backup.sqlite")
    stop.set()
    writer.join(30)
    copy = open_journal(f"sqlite:///{tmp_path}/backup.sqlite")
    window = copy.window("reviews")
    copy.close()
    assert len(window) == held >= 2500
    # A label is written after its prediction, so none stands alone in a copy of one moment.
    assert window["label"].drop_nulls().len() in (held - 2499, held - 2500)
    assert window["inputs"][0] == '{"text":"film 0 ⟨EMAIL_1⟩ 🎬"}'


BACK_UP = """
import re, sys
from pathlib import Path
from tasks.journal import open_journal
journal = open_journal(sys.argv[1])
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
journal.find("none")
before = peak()
journal.backup(Path(sys.argv[2]))
print(peak() - before)
journal.close()
"""


def test_a_backup_needs_memory_for_a_part_of_the_journal_alone(url: str, journal: Journal, tmp_path: Path) -> None:
    for start in range(0, 10_000, 500):
        numbers = range(start, start + 500)
        write(journal, *(prediction(number, version="v" * 12_000) for number in numbers))
    done = subprocess.run(
        [sys.executable, "-c", BACK_UP, url, str(tmp_path / "backup.sqlite")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 80, "megabytes, of a journal of 120"


def test_a_statement_that_waits_is_ended_and_one_that_reads_may_take_its_time(url: str) -> None:
    engine, name = open_engine(url)
    if engine.dialect.name == "postgresql":
        said = sa.text("SHOW statement_timeout")
        with writing(engine, name) as connection:
            assert connection.execute(said).scalar_one() == "30s"
        with reading(engine, name) as connection:
            assert connection.execute(said).scalar_one() == "0"
        with writing(engine, name) as connection:
            connection.execute(sa.text("SET LOCAL statement_timeout = 50"))
            with pytest.raises(sa.exc.OperationalError, match="statement timeout"):
                connection.execute(sa.text("SELECT pg_sleep(10)"))
            connection.rollback()
        parameters = engine.raw_connection().driver_connection.info.get_parameters()  # type: ignore[union-attr]
        assert {"connect_timeout": "10", "tcp_user_timeout": "20000"}.items() <= parameters.items()
    engine.dispose()


def test_a_database_that_takes_nothing_is_known_and_so_is_when_it_does_again(
    url: str, journal: Journal, postgres: Server
) -> None:
    """Known without anybody who writes: of a server that says it is not well nobody asks anything."""
    assert journal.trouble is None
    engine, name = open_engine(url)
    with writing(engine, name) as connection:
        connection.execute(sa.text("ALTER TABLE predictions RENAME TO elsewhere"))
    with pytest.raises(JournalError):
        write(journal, prediction(0))
    assert "predictions" in str(journal.trouble)
    with writing(engine, name) as connection:
        connection.execute(sa.text("ALTER TABLE elsewhere RENAME TO predictions"))
    engine.dispose()
    wait_until(lambda: journal.trouble is None)
    write(journal, prediction(1))


def test_a_backup_is_never_written_over(journal: Journal, tmp_path: Path) -> None:
    (tmp_path / "backup.sqlite").write_text("precious")
    with pytest.raises(JournalError, match="exists already"):
        journal.backup(tmp_path / "backup.sqlite")
    assert (tmp_path / "backup.sqlite").read_text() == "precious"


def test_many_threads_write_and_nothing_is_lost(journal: Journal) -> None:
    def ask(caller: int) -> None:
        for number in range(25):
            write(journal, prediction(1000 * caller + number))

    callers = [threading.Thread(target=ask, args=(caller,)) for caller in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert journal.count("reviews") == 200


def test_two_processes_may_open_a_new_journal_at_once(url: str) -> None:
    failed: list[Exception] = []

    def open_it() -> None:
        try:
            open_journal(url).close()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failed == []


def test_a_journal_of_a_newer_schema_is_left_alone(url: str) -> None:
    open_journal(url).close()
    engine, name = open_engine(url)
    with writing(engine, name) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(JournalError, match="written by a newer modelmill"):
        open_journal(url)


def test_an_id_twice_is_refused_and_the_journal_goes_on(journal: Journal) -> None:
    write(journal, prediction(0))
    with pytest.raises(JournalError, match="cannot be used"):
        write(journal, prediction(0))
    write(journal, prediction(1))
    assert journal.count("reviews") == 2


def test_a_file_that_is_no_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("these are my notes " * 100)
    with pytest.raises(JournalError, match=r"notes\.txt.* file is not a database"):
        open_journal(f"sqlite:///{tmp_path}/notes.txt")


def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    with pytest.raises(JournalError) as error:
        open_journal("postgresql+psycopg://mill:hunter2@127.0.0.1:1/films")
    assert "films on 127.0.0.1" in str(error.value)
    assert "hunter2" not in str(error.value)


def test_a_full_disk_is_said_and_what_was_written_stays(small_disk: object) -> None:
    disk: Path = small_disk("600k")  # type: ignore[operator]
    journal = open_journal(f"sqlite:///{disk}/journal.sqlite")
    write(journal, prediction(0))
    with pytest.raises(JournalError, match="full"):
        for number in range(1, 10_000):
            write(journal, prediction(number))
    journal.close()
    journal = open_journal(f"sqlite:///{disk}/journal.sqlite")
    assert journal.find(f"{0:032d}") is not None
    journal.close()


def test_predictions_are_found_by_what_was_asked_and_forgotten_with_their_labels(journal: Journal) -> None:
    write(journal, *(prediction(number, model=("reviews", "tweets")[number % 2]) for number in range(5)))
    journal.add_labels([label(2)], model="reviews", client=None)
    asked = [{"text": f"film {number} ⟨EMAIL_1⟩ 🎬"} for number in (2, 3)]
    found = journal.asked([*asked, {"text": "nobody asked"}])
    assert found == [f"{2:032d}", f"{3:032d}"]
    assert journal.asked([]) == []
    assert journal.forget(found) == 2
    assert journal.asked(asked) == []
    assert journal.find(found[0]) is None
    assert journal.count("reviews") == 2
    assert journal.forget(found) == 0


def test_of_what_is_forgotten_no_byte_is_left_in_sqlites_files(tmp_path: Path) -> None:
    journal = open_journal(f"sqlite:///{tmp_path}/journal.sqlite")
    write(journal, *(prediction(number) for number in range(50)))
    journal.add_labels([label(7, "unheard-of")], model="reviews", client=None)
    journal.forget([f"{7:032d}"])
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        assert "film 7 ⟨".encode() not in content, file
        assert b"unheard-of" not in content, file
    assert "film 8 ⟨".encode() in (tmp_path / "journal.sqlite").read_bytes()
    journal.close()


def in_files(folder: Path, text: str) -> list[str]:
    return [file.name for file in sorted(folder.iterdir()) if text.encode() in file.read_bytes()]


def test_of_what_is_too_old_no_byte_is_left_either(tmp_path: Path) -> None:
    journal = open_journal(f"sqlite:///{tmp_path}/journal.sqlite")
    write(journal, *(prediction(number) for number in range(20)))
    assert journal.purge(before_us=10_000_000) == 10
    assert in_files(tmp_path, "film 7 ⟨") == []
    assert in_files(tmp_path, "film 17 ⟨") == ["journal.sqlite"]
    journal.close()


@pytest.mark.parametrize("forget", [lambda one: one.forget([f"{7:032d}"]), lambda one: one.purge(before_us=8_000_000)])
def test_a_log_that_somebody_reads_is_said_and_emptied_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[Journal], int]
) -> None:
    monkeypatch.setattr(database, "_EMPTYING_SECONDS", 0.5)
    journal = open_journal(f"sqlite:///{tmp_path}/journal.sqlite")
    write(journal, *(prediction(number) for number in range(20)))
    reader = sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM predictions").fetchone() == (20,)
    with pytest.raises(LogNotEmptied, match=r"still stands in .*journal\.sqlite-wal: somebody has been reading"):
        forget(journal)
    assert journal.find(f"{7:032d}") is None
    assert "journal.sqlite-wal" in in_files(tmp_path, "film 7 ⟨")
    write(journal, prediction(21))  # nobody is kept waiting by it
    reader.close()
    assert forget(journal) == 0
    assert in_files(tmp_path, "film 7 ⟨") == []
    journal.close()
