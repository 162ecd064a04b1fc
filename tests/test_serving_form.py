"""The form on the server's page, and those who ask beside it: flows/portal.py."""

import base64
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from flows import portal
from flows.git import git
from flows.portal import add_portal
from tasks.serving.keys import add_key
from tests.conftest import Line
from tests.model_server import Running, running
from tests.waiting import wait_until
from tests.watched import MODEL, make_world

pytestmark = [
    pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]

SKIPPED = "Others are waiting, so which words drove it was not computed."


@pytest.fixture(scope="module")
def root(released: Line, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one version in use."""
    world = make_world(tmp_path_factory.mktemp("form") / "root", released)
    git(world.root, "init", "-q", "-b", "main")
    git(world.root, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "--allow-empty", "-m", "all")
    return world.root


@pytest.fixture
def server(root: Path) -> Iterator[Running]:
    with running(root, also=lambda app: add_portal(app, root, app.state.service)) as found:
        yield found


def ask(server: Running, **how: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/reports/", data={"model": MODEL, "text": "a warm film"}, timeout=30, **how)


def is_explained(page: str) -> bool:
    return re.search(r'class="(for|against)" style="--weight: 100%">', page) is not None


def test_words_are_weighed_for_one_person_at_a_time(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most, guard = 0, 0, threading.Lock()
    real = portal.word_effects

    def watched(*arguments: Any) -> Any:
        nonlocal at_once, most
        with guard:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.1)
        try:
            return real(*arguments)
        finally:
            with guard:
                at_once -= 1

    monkeypatch.setattr(portal, "word_effects", watched)
    pages: list[str] = []
    asking = [threading.Thread(target=lambda: pages.append(ask(server).text)) for _ in range(6)]
    for one in asking:
        one.start()
    for one in asking:
        one.join(30)
    assert most == 1
    assert len(pages) == 6
    assert all(is_explained(page) or SKIPPED in page for page in pages)
    assert any(map(is_explained, pages))


def test_whoever_waits_long_for_another_is_answered_without(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow(*_: Any) -> list[Any]:
        asked.set()
        assert go_on.wait(30)
        return []

    monkeypatch.setattr(portal, "word_effects", slow)
    monkeypatch.setattr(portal, "_EXPLANATION_SECONDS", 0.1)
    first = threading.Thread(target=ask, args=(server,))
    first.start()
    assert asked.wait(10)
    page = ask(server).text
    go_on.set()
    first.join(30)
    assert SKIPPED in page
    assert "mill trace" in page


def test_no_words_are_weighed_while_rows_wait(root: Path) -> None:
    is_over = threading.Event()

    def keep_it_full(server: Running) -> None:
        batcher = server.live.get(MODEL).batcher
        while not is_over.is_set():
            if batcher.queued_rows < 400:  # a lane takes 128 at once
                batcher.submit([{"text": "word " * 50}] * 16)
            else:
                time.sleep(0.001)

    def also(app: FastAPI) -> None:
        add_portal(app, root, app.state.service)

    with running(root, also=also, queue_rows=100_000, queue_seconds=600) as server:
        assert is_explained(ask(server).text)
        filling = threading.Thread(target=keep_it_full, args=(server,))
        filling.start()
        wait_until(lambda: server.live.get(MODEL).batcher.queued_rows > 300)
        try:
            page = ask(server).text
        finally:
            is_over.set()
            filling.join(30)
    assert SKIPPED in page
    assert "mill trace" in page
    assert not is_explained(page)


def test_a_form_costs_one_request_of_the_clients_rate(root: Path, tmp_path: Path) -> None:
    keyed = Path(shutil.copytree(root, tmp_path / "keyed", symlinks=True))
    key = add_key(keyed, "ann", ["predict"], 2)
    headers = {"authorization": f"Basic {base64.b64encode(f'x:{key}'.encode()).decode()}"}
    with running(keyed, also=lambda app: add_portal(app, keyed, app.state.service)) as server:
        answers = [ask(server, headers=headers) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert "mill trace" in answers[1].text
        assert server.journal.window(MODEL, last=3)["client"].to_list()[1:] == ["ann", "ann"]
