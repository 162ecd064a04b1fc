"""What the server writes down, and when: an answered request is in the journal."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tasks.journal import Prediction, open_journal
from tasks.release import read_release
from tests.conftest import Line
from tests.model_server import Running, running, use
from tests.waiting import wait_until

SERVER = """
import asyncio, socket, sys
from pathlib import Path
import uvicorn
from tasks.journal import Prediction, open_journal
from tasks.serving.app import create_app
from tasks.serving.keys import Keys
from tasks.serving.live import Live
from tests.model_server import SERVING
root = Path(sys.argv[1])
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
journal = open_journal(f"sqlite:///{root}/journal.sqlite")
app = create_app(Live(root, SERVING), SERVING, journal, Keys(root, is_open=True))
print(listener.getsockname()[1], flush=True)
asyncio.run(uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none")).serve([listener]))
"""


@pytest.fixture
def root(released: Line, tmp_path: Path) -> Path:
    (tmp_path / "one").symlink_to(released.paths.release)
    use(tmp_path, read_release(tmp_path / "one"))
    return tmp_path


def journalled(root: Path) -> list[dict[str, object]]:
    journal = open_journal(f"sqlite:///{root}/.mill/journal.sqlite")
    try:
        return journal.window("tiny").to_dicts()
    finally:
        journal.close()


def ask(server: Running, text: str = "a warm and moving film") -> dict[str, object]:
    answer: dict[str, object] = server.predict({"text": text}).json()
    return answer


def test_an_answer_stands_in_the_journal_under_its_id(root: Path) -> None:
    with running(root) as server:
        answer = ask(server)
    (line,) = journalled(root)
    assert (line["id"], line["version"]) == (answer["id"], answer["version"])
    assert json.loads(str(line["answer"]))["probabilities"] == answer["probabilities"]
    assert isinstance(line["embedding"], list)
    assert len(line["embedding"]) == 32


def test_personal_data_never_reaches_the_journal(root: Path) -> None:
    with running(root) as server:
        ask(server, "write to ann@example.org about this film")
    (line,) = journalled(root)
    assert "ann@example.org" not in (root / ".mill/journal.sqlite").read_bytes().decode(errors="replace")
    assert json.loads(str(line["inputs"])) == {"text": "write to ⟨EMAIL_1⟩ about this film"}


def test_personal_data_in_a_label_never_reaches_it_either(root: Path) -> None:
    with running(root, max_request_mb=1) as server:
        answer = ask(server)
        label = {"id": answer["id"], "label": "as ann@example.org says"}
        assert server.client.post("/models/tiny/feedback", json=label).json() == {"received": 1, "new": 1}
        endless = {"id": answer["id"], "label": "1 " * 50_001}
        refused = server.client.post("/models/tiny/feedback", json=endless)
        assert (refused.status_code, "100,002 characters" in refused.json()["error"]) == (413, True)
    kept = (root / ".mill/journal.sqlite").read_bytes().decode(errors="replace")
    assert "ann@example.org" not in kept
    assert "as ⟨EMAIL_1⟩ says" in kept


def test_what_has_no_answer_is_not_in_the_journal(root: Path) -> None:
    with running(root) as server:
        empty, whole = server.predict([{"text": " "}, {"text": "a film"}]).json()
    assert empty["id"] is None
    assert [line["id"] for line in journalled(root)] == [whole["id"]]


def test_labels_come_back_by_id(root: Path) -> None:
    with running(root) as server:
        answers = [ask(server), ask(server)]
        content = [{"id": answer["id"], "label": "negative"} for answer in answers]
        assert server.client.post("/models/tiny/feedback", json=content).json() == {"received": 2, "new": 2}
        assert server.client.post("/models/tiny/feedback", json=content[0]).json() == {"received": 1, "new": 0}
    assert [line["label"] for line in journalled(root)] == ['{"label": "negative"}'] * 2


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        ({"id": "0" * 32, "label": "negative"}, 404, "tiny has no prediction"),
        ({"label": "negative"}, 422, "id is missing"),
        ({"id": "a", "lable": "negative"}, 422, "Did you mean 'label'?"),
        ({"id": 7, "label": "negative"}, 422, "id has to be a string"),
        ({"id": "a\0b", "label": "negative"}, 422, "Row 0: 'a\\x00b' is no id: none has a NUL in it."),
        ({"id": "a" * 50_000, "label": "negative"}, 404, "(50,000 characters) in the journal."),
        ({"id": "a", "label": "negative", "n" * 50_000: 1}, 422, "(50,000 characters) is not asked for."),
        ([{"id": "a", "label": "negative"}] * 33, 413, "33 labels in one request; at most 32 are taken."),
        ([], 422, "Expected an object with id, label"),
        ("text", 422, "Expected an object with id, label"),
    ],
)
def test_what_is_wrong_with_a_label_is_said(root: Path, content: object, status: int, sentence: str) -> None:
    with running(root) as server:
        answer = server.client.post("/models/tiny/feedback", json=content)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]
    assert len(answer.content) < 500


@pytest.mark.parametrize("value", [["p"], {"is": "p"}, 7, True, None])
def test_a_label_of_another_type_is_refused_and_none_beside_it_is_kept(root: Path, value: object) -> None:
    with running(root) as server:
        answers = [ask(server), ask(server)]
        content = [{"id": answers[0]["id"], "label": "negative"}, {"id": answers[1]["id"], "label": value}]
        refused = server.client.post("/models/tiny/feedback", json=content)
    assert refused.status_code == 422
    assert refused.json()["error"].startswith("Row 1: label")
    assert [line["label"] for line in journalled(root)] == [None, None]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"data": ["a film", " "], "shape": [2]}, "Row 1: there is no answer: text is empty."),
        ({"data": ["a film"], "shape": [1], "outputs": [{"name": "lable"}]}, "There is no output 'lable'."),
    ],
)
def test_tensors_that_get_no_answer_are_not_in_the_journal(
    root: Path, content: dict[str, object], sentence: str
) -> None:
    outputs = {"outputs": content.pop("outputs")} if "outputs" in content else {}
    asked = {"inputs": [{"name": "text", "datatype": "BYTES", **content}], **outputs}
    with running(root) as server:
        answer = server.client.post("/v2/models/tiny/infer", json=asked)
        figures = server.client.get("/metrics").text
    assert answer.status_code == 422
    assert sentence in answer.json()["error"]
    assert journalled(root) == []
    assert 'outcome="failed"' not in figures  # which the monitor would take for a server that is not well


def test_no_answer_goes_out_that_cannot_be_written_down(root: Path, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("400k")
    with running(root, journal=f"sqlite:///{disk}/journal.sqlite") as server:
        ask(server)
        with contextlib.suppress(OSError), (disk / "other").open("wb") as other:
            other.write(b"x" * 1_000_000)
        statuses = [server.predict({"text": "a film " * 2000}).status_code for _ in range(30)]
        refused = server.predict({"text": "a film " * 2000})
        (disk / "other").unlink()
        assert ask(server)["label"] is not None
    assert statuses[-1] == 503
    assert "disk is full. No answer goes out that is not in the journal." in refused.json()["error"]


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_server_killed_under_load_has_written_down_whatever_it_answered(root: Path, times: int) -> None:
    answered: list[str] = []
    for _ in range(times):
        answered += _answered_until_killed(root)
    journal = open_journal(f"sqlite:///{root}/journal.sqlite")
    written = set(journal.window("tiny")["id"])
    journal.close()
    assert len(answered) > 10 * times
    assert set(answered) <= written


def test_the_server_forgets_what_is_older_than_it_should_keep(root: Path) -> None:
    days, now = 86_400_000_000, time.time_ns() // 1000
    journal = open_journal(f"sqlite:///{root}/.mill/journal.sqlite")
    old, young = (
        Prediction(letter * 32, now - age * days, "tiny", "sha-1", None, {"text": f"said by {letter}"}, {}, 1.0)
        for letter, age in (("a", 31), ("b", 29))
    )
    journal.record([old, young]).result(10)
    journal.close()
    with running(root, keep_days=30) as server:
        wait_until(lambda: server.journal.find("a" * 32) is None)
        assert server.journal.find("b" * 32) is not None
    assert b"said by a" not in (root / ".mill/journal.sqlite").read_bytes()
    assert b"said by b" in (root / ".mill/journal.sqlite").read_bytes()


def wait_until_it_listens(url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(url)
            return
        time.sleep(0.02)
    pytest.fail("the server did not start")


def _answered_until_killed(root: Path) -> list[str]:
    """Start a server, ask it from four sides, kill it in the middle; the ids of the answers that arrived."""
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(root)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    answered: list[str] = []
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/models/tiny/predict"
        wait_until_it_listens(url)

        def ask() -> None:
            with httpx.Client(timeout=10) as client:
                for number in range(10_000):
                    try:
                        answer = client.post(url, json={"text": f"film number {number}"})
                    except httpx.HTTPError:
                        return
                    answered.append(answer.json()["id"])

        callers = [threading.Thread(target=ask) for _ in range(4)]
        for caller in callers:
            caller.start()
        deadline = time.monotonic() + 30
        while len(answered) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(server.pid, signal.SIGKILL)
        for caller in callers:
            caller.join(30)
    finally:
        server.kill()
        server.wait(10)
        server.stdout.close()
    return answered
