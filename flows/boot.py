"""Start a release in the real model server, alone, and ask it what it was made to answer: over HTTP, as callers do."""

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

import flows
from flows.store import set_live
from tasks.answers import open_answerer
from tasks.params import read_yaml
from tasks.release import GOLDEN, Release, read_release
from tasks.shards import read_json, write_json

_START = "import sys; from pathlib import Path; from flows.serve import serve; serve(Path(sys.argv[1]), port=0)"
_SERVING = re.compile(r"Serving on http://([^\s:]+):(\d+)")

# Beside what the version may take: for the process to import what it needs, on a machine that does other things too.
_START_SECONDS = 120.0
_ANSWER_SECONDS = 30.0
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Booted:
    """What came of it: why it failed, in a sentence, or how long it took to be ready and to answer how many rows."""

    failure: str | None
    ready_seconds: float | None
    num_answered: int
    slowest_ms: float | None


def boot(release: Release, model: str, params: Path, folder: Path) -> Booted:
    """Serve the release from `folder`, by the settings of the file `params`, and compare its answers with its own here.

    Its journal is one of its own, and nobody else can reach it. It has ended when this gives back.
    """
    began = time.monotonic()
    try:
        with _server(release, model, params, folder) as server:
            ready = time.monotonic() - began
            taken = [_ask(server, model, row, expected) for row, expected in _expected(release)]
    except _Failed as failure:
        return Booted(str(failure), None, 0, None)
    return Booted(None, round(ready, 2), len(taken), round(max(taken), 2))


class _Failed(Exception):
    """Why the release does not serve."""


@dataclass(frozen=True)
class _Server:
    host: str
    port: int

    def ask(self, path: str, content: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """The status and the JSON that comes back. Raises OSError or HTTPException where none does."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_ANSWER_SECONDS)
        try:
            if content is None:
                connection.request("GET", path)
            else:
                connection.request("POST", path, json.dumps(content), {"Content-Type": "application/json"})
            reply = connection.getresponse()
            told = json.loads(reply.read())
        except ValueError:
            raise http.client.HTTPException(f"HTTP {reply.status}, and no JSON") from None
        finally:
            connection.close()
        return reply.status, told if isinstance(told, dict) else {}


@contextmanager
def _server(release: Release, model: str, params: Path, folder: Path) -> Iterator[_Server]:
    """A server that has brought the release up."""
    seconds = _prepare(release, model, params, folder)
    # The code that decides is the code that serves, wherever this process has it from.
    code = str(Path(flows.__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))}
    log = folder / "server.log"
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, str(folder)], env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
    try:
        yield _ready(process, log, time.monotonic() + _START_SECONDS + seconds)
    finally:
        process.terminate()
        try:
            process.wait(_ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _prepare(release: Release, model: str, params: Path, folder: Path) -> float:
    """Put the release in use below `folder`; the seconds that the settings allow it to come up."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = read_yaml(params)
    serve = settings["flows"]["serve"]
    # As many threads as it was made with: then it computes there what it computes here.
    serve |= {"host": "127.0.0.1", "threads": release.manifest["parameters"]["threads"], "shadow": 0}
    settings["flows"]["journal"]["url"] = None
    write_json(folder / "params.yaml", settings)
    (folder / "release").symlink_to(release.folder.resolve())
    (folder / ".mill").mkdir(exist_ok=True)
    set_live(model, read_release(folder / "release"), folder)
    return float(serve["swap_seconds"])


def _ready(process: "subprocess.Popen[bytes]", log: Path, until: float) -> _Server:
    """Wait until the server says that the release answers. Raises _Failed with what it says instead."""
    told: Mapping[str, Any] = {}
    while time.monotonic() < until:
        text = log.read_text(encoding="utf-8", errors="replace")
        if process.poll() is not None:
            last = text.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            raise _Failed(f"The server ended with it: {last[0]}")
        if found := _SERVING.search(text):
            server = _Server(found[1], int(found[2]))
            try:
                status, told = server.ask("/readyz")
            except (OSError, http.client.HTTPException):
                status = 0
            if status == http.client.OK:
                return server
            if told.get("failures"):
                raise _Failed(f"The server does not bring it up: {told.get('error')}")
        time.sleep(_LOOK_SECONDS)
    raise _Failed(f"The server is not ready with it in time: {told.get('error', 'it did not start')}")


def _expected(release: Release) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The golden rows' inputs, each with what the release answers to it in this process."""
    answerer = open_answerer(release)
    inputs = {name: answerer.runtime.problem.columns[name] for name in answerer.runtime.problem.inputs}
    for row in read_json(release.folder / GOLDEN)["rows"]:
        answered = answerer.answer(pl.DataFrame([row["inputs"]], schema=inputs), batch_size=1)
        yield row["inputs"], answered.to_dicts()[0]


def _ask(server: _Server, model: str, row: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """Ask for one row; the milliseconds that it took. Raises _Failed where the answer is another than expected."""
    started = time.perf_counter()
    try:
        status, answer = server.ask(f"/models/{model}/predict", row)
    except (OSError, http.client.HTTPException) as error:
        raise _Failed(f"The server does not answer a golden row: {error}") from None
    taken = 1000 * (time.perf_counter() - started)
    if status != http.client.OK and expected["reason"] is None:
        raise _Failed(f"The server does not answer a golden row: {answer.get('error', f'HTTP {status}')}")
    for name, value in expected.items() if status == http.client.OK else ():
        if not _same(answer.get(name), value):
            raise _Failed(f"The server answers a golden row with another {name} than the release gives here.")
    return taken


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, float):
        return isinstance(found, int | float) and abs(found - expected) <= 1e-3 * max(1.0, abs(expected))
    if isinstance(expected, list):
        is_list = isinstance(found, list) and len(found) == len(expected)
        return is_list and all(_same(one, other) for one, other in zip(found, expected, strict=True))
    return bool(found == expected)
