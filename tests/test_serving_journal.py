"""A server whose journal is a PostgreSQL, or hangs, or is busy: tasks/serving/service.py."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import psycopg
import pytest

from tasks import commits
from tasks.journal import open_journal
from tasks.release import read_release
from tests.conftest import Line
from tests.model_server import Running, running, use
from tests.postgres_server import PASSWORD, Server, started
from tests.waiting import wait_until

TEXT = {"text": "a warm and moving film"}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    yield from started()


@pytest.fixture
def root(released: Line, tmp_path: Path) -> Path:
    (tmp_path / "one").symlink_to(released.paths.release)
    use(tmp_path, read_release(tmp_path / "one"))
    return tmp_path


def new_database(postgres: Server) -> str:
    postgres.run("DROP SCHEMA public CASCADE")
    postgres.run("CREATE SCHEMA public")
    return f"postgresql+psycopg://mill:{quote(PASSWORD, safe='')}@127.0.0.1:{postgres.port}/postgres"


@contextlib.contextmanager
def sqlite_held(root: Path) -> Iterator[None]:
    """Nobody else can write."""
    with contextlib.closing(sqlite3.connect(root / ".mill/journal.sqlite", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield


@contextlib.contextmanager
def postgres_held(postgres: Server) -> Iterator[None]:
    address = {"host": "127.0.0.1", "port": postgres.port, "user": "mill", "password": PASSWORD, "dbname": "postgres"}
    with psycopg.connect(**address) as holder:  # type: ignore[arg-type]
        holder.execute("LOCK TABLE predictions IN ACCESS EXCLUSIVE MODE")
        yield


Held = Callable[[], contextlib.AbstractContextManager[None]]


@pytest.fixture(params=["sqlite", "postgresql"])
def journal(request: pytest.FixtureRequest, root: Path) -> tuple[str, Held]:
    """A journal's URL, and how to keep everybody from writing to it."""
    if request.param == "sqlite":
        return f"sqlite:///{root}/.mill/journal.sqlite", lambda: sqlite_held(root)
    server: Server = request.getfixturevalue("postgres")
    return new_database(server), lambda: postgres_held(server)


def test_a_server_over_postgresql_answers_writes_down_and_takes_labels(root: Path, postgres: Server) -> None:
    url = new_database(postgres)
    with running(root, journal=url) as server:
        answers = server.predict([TEXT, {"text": "dull"}]).json()
        labels = [{"id": answer["id"], "label": "negative"} for answer in answers]
        assert server.client.post("/models/tiny/feedback", json=labels).json() == {"received": 2, "new": 2}
        assert server.client.get("/readyz").status_code == 200
        for prediction_id, status in (("a\0b", 422), ("0" * 32, 404), ("ä" * 5000, 404)):
            content = {"id": prediction_id, "label": "negative"}
            assert server.client.post("/models/tiny/feedback", json=content).status_code == status
    kept = open_journal(url)
    assert kept.window("tiny")["id"].to_list() == [answer["id"] for answer in answers]
    assert set(kept.window("tiny")["label"]) == {'{"label": "negative"}'}
    kept.close()


def test_whoever_waits_for_a_journal_that_hangs_is_told_in_time_and_it_shows(
    root: Path, journal: tuple[str, Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "_STALLED_SECONDS", 1.0)
    url, held = journal
    with running(root, journal=url, journal_seconds=0.5) as server:
        first = server.predict(TEXT).json()
        with held():
            started = time.monotonic()
            refused = server.predict(TEXT)
            assert refused.status_code == 503
            assert "has not written the answer down within 0.5 s" in refused.json()["error"]
            assert int(refused.headers["Retry-After"]) >= 1
            wait_until(lambda: server.client.get("/readyz").status_code == 503)
            ready = server.client.get("/readyz").json()
            assert "has not finished a commit for" in ready["failures"]["journal"]
            assert ready["error"] == ready["failures"]["journal"]
            assert server.client.get("/v2/health/ready").status_code == 503
            assert server.client.get("/healthz").status_code == 200
            assert "modelmill_journal_failed 1.0" in server.client.get("/metrics").text
            # Now nothing is computed that could not be written down.
            asked = time.monotonic()
            assert "has not finished a commit" in server.predict(TEXT).json()["error"]
            label = {"id": first["id"], "label": "negative"}
            assert server.client.post("/models/tiny/feedback", json=label).status_code in (200, 503)
            assert time.monotonic() - asked < 2
            assert time.monotonic() - started < 8
        wait_until(lambda: server.client.get("/readyz").status_code == 200)
        last = server.predict(TEXT).json()
        assert server.journal.num_waiting == 0
        kept = server.journal.window("tiny")["id"].to_list()
    assert kept[0] == first["id"]
    assert kept[-1] == last["id"]
    assert len(kept) <= 3  # the answer that a commit had in hand may be there, though nobody was given it


def test_what_waits_for_the_journal_is_bounded_and_the_rest_is_sent_away(root: Path) -> None:
    statuses: list[int] = []

    def ask(server: Running) -> None:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            for _ in range(10):
                answer = client.post("/models/tiny/predict", json=[TEXT] * 4)
                statuses.append(answer.status_code)
                if answer.status_code == 429:
                    assert int(answer.headers["Retry-After"]) >= 1

    with running(root, queue_rows=16, journal_seconds=2) as server:
        server.predict(TEXT)
        most = 0
        with sqlite_held(root):
            callers = [threading.Thread(target=ask, args=(server,)) for _ in range(20)]
            for caller in callers:
                caller.start()
            while any(caller.is_alive() for caller in callers):
                most = max(most, server.journal.num_waiting)
                time.sleep(0.01)
        assert set(statuses) == {429, 503}
        # What was let in while nothing waited yet, and a queue's worth behind it.
        assert most <= 16 + 16 + 20 * 4
        wait_until(lambda: server.predict(TEXT).status_code == 200)


def test_a_commit_that_failed_takes_the_server_out_until_the_disk_is_well(
    root: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("400k")
    with running(root, journal=f"sqlite:///{disk}/journal.sqlite") as server:
        server.predict(TEXT)
        with contextlib.suppress(OSError), (disk / "other").open("wb") as other:
            other.write(b"x" * 1_000_000)
        wait_until(lambda: server.predict({"text": "a film " * 2000}).status_code == 503)
        assert "disk is full" in server.client.get("/readyz").json()["error"]
        (disk / "other").unlink()
        wait_until(lambda: server.client.get("/readyz").status_code == 200)  # though nobody asks anything
        assert server.predict(TEXT).status_code == 200


def test_labels_are_taken_from_so_many_at_once_and_hold_up_nobody_else(root: Path) -> None:
    statuses: list[int] = []
    with running(root, journal_seconds=2) as server:
        answer = server.predict(TEXT).json()

        def label() -> None:
            content = {"id": answer["id"], "label": "negative"}
            statuses.append(httpx.post(f"{server.url}/models/tiny/feedback", json=content, timeout=30).status_code)

        with sqlite_held(root):
            callers = [threading.Thread(target=label) for _ in range(40)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join(30)
        assert set(statuses) == {429, 503}
        wait_until(lambda: not server.journal.num_waiting and server.predict(TEXT).status_code == 200)
        wait_until(lambda: server.journal.find(str(answer["id"]))["label"] == {"label": "negative"})  # type: ignore[index]
    kept = open_journal(f"sqlite:///{root}/.mill/journal.sqlite")
    assert len(kept.window("tiny")["label"].drop_nulls()) == 1
    kept.close()
