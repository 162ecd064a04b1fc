"""`mill serve` as a process: flows/serve.py."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from ruamel.yaml import YAML

from flows.serve import PortTaken, _listen, serve
from tasks.journal import open_journal
from tasks.release import read_release
from tasks.serving.keys import BadKey, add_key
from tasks.shards import read_json, write_json
from tests.conftest import REPOSITORY, Line
from tests.model_server import SERVING, use

START = "from flows.cli import main; main()"


@pytest.fixture
def root(released: Line, tmp_path: Path) -> Path:
    """A root with the tiny model in use, and the shipped settings of the server."""
    flows = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())["flows"]
    flows["serve"]["port"] = 0
    models = read_json(released.paths.root / "params.yaml")["models"]
    write_json(tmp_path / "params.yaml", {"models": models, "flows": {**flows, "models": {}}})
    (tmp_path / "one").symlink_to(released.paths.release)
    use(tmp_path, read_release(tmp_path / "one"))
    return tmp_path


def settings(root: Path, **changes: Any) -> None:
    params = read_json(root / "params.yaml")
    params["flows"]["serve"] |= changes
    write_json(root / "params.yaml", params)


@contextmanager
def mill_serve(root: Path, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The command, and where it answers."""
    process = subprocess.Popen(
        [sys.executable, "-c", START, "serve", *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        assert line.startswith("Serving on http://"), line + process.stderr.read()
        url = line.split()[2].rstrip(":.,")
        for line in process.stderr:
            if json.loads(line)["message"] == "Application startup complete.":
                break
        yield process, url
    finally:
        process.kill()
        process.wait(30)
        process.stderr.close()


def test_it_answers_by_the_settings_of_params_and_ends_well(root: Path) -> None:
    with mill_serve(root) as (process, url):
        answer = httpx.post(f"{url}/models/tiny/predict", json={"text": "a film"}, timeout=30)
        assert answer.status_code == 200
        assert httpx.get(f"{url}/readyz").json()["models"] == ["tiny"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
        lines = [json.loads(line) for line in process.stderr or ()]
    assert lines[-1]["message"].startswith("Finished server process")
    assert [line["status"] for line in lines if line["message"] == "request"] == [200, 200]
    journal = open_journal(f"sqlite:///{root}/.mill/journal.sqlite")
    assert journal.find(answer.json()["id"]) is not None
    journal.close()


def test_what_was_taken_is_answered_before_it_ends(root: Path) -> None:
    answers: list[int] = []
    with mill_serve(root) as (process, url):
        content = [{"text": f"film {number} " * 60} for number in range(200)]

        def ask() -> None:
            answers.append(httpx.post(f"{url}/models/tiny/predict", json=content, timeout=60).status_code)

        asking = [threading.Thread(target=ask) for _ in range(2)]
        for one in asking:
            one.start()
        figures = ""
        while "modelmill_requests_waiting 2.0" not in figures and len(answers) < 2:
            figures = httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGINT)
        for one in asking:
            one.join(60)
        assert process.wait(30) in (0, 130)
    assert answers == [200, 200]


def test_a_port_that_is_taken_is_said(root: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"Port {port} of 127.0.0.1 is taken by another process"):
            serve(root, port=port)


def test_who_connects_while_the_models_are_loading_waits_and_is_not_refused() -> None:
    with _listen(SERVING) as listener, socket.create_connection(listener.getsockname(), timeout=5) as caller:
        caller.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        taken, _ = listener.accept()
        with taken:
            assert taken.recv(100).startswith(b"GET /healthz")


def test_without_keys_it_serves_this_machine_alone(root: Path) -> None:
    settings(root, host="0.0.0.0")
    with pytest.raises(BadKey, match="which others can reach, and nobody has a key"):
        serve(root)
    key = add_key(root, "shop", ["predict"], None)
    with mill_serve(root) as (_, url):
        address = url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{address}/models").status_code == 401
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(f"{address}/models", headers=headers).status_code == 200


def test_a_journal_elsewhere_is_named_by_a_variable_that_has_to_be_there(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = read_json(root / "params.yaml")
    params["flows"]["journal"]["url"] = "$JOURNAL_URL"
    write_json(root / "params.yaml", params)
    monkeypatch.setenv("JOURNAL_URL", f"sqlite:///{tmp_path}/elsewhere.sqlite")
    with mill_serve(root) as (_, url):
        httpx.post(f"{url}/models/tiny/predict", json={"text": "a film"}, timeout=30)
    journal = open_journal(f"sqlite:///{tmp_path}/elsewhere.sqlite")
    assert journal.count("tiny") == 1
    journal.close()
