"""What `mill serve` and `mill rollback` do together, each as its own process; and how soon an answer is on its way."""

import http.client
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import uvicorn

from flows.registry import promote
from flows.serve import _listen
from flows.store import live_file
from tasks.release import read_release
from tasks.serving.limits import protocol
from tasks.shards import read_json, write_json
from tests.conftest import REPOSITORY
from tests.model_server import SERVING
from tests.registered import History
from tests.test_serve_command import START, mill_serve, root
from tests.waiting import wait_until

__all__ = ["root"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


def mill(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", START, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_mill_rollback_is_live_in_a_running_server_within_two_seconds(history: History) -> None:
    for number in (1, 2):
        promote(history.root, history.version(number), why="better")
    params = read_json(history.root / "params.yaml")
    params["flows"]["serve"]["port"] = 0
    write_json(history.root / "params.yaml", params)
    one, two = (read_release(history.packed / str(number)).version for number in (1, 2))
    live: list[float] = []
    with mill_serve(history.root) as (_, url), httpx.Client(base_url=url, timeout=30) as client:

        def version() -> str:
            return str(client.post("/models/films/predict", json={"text": "a film"}).json()["version"])

        def watch() -> None:
            deadline = time.time() + 60
            while version() != one and time.time() < deadline:
                time.sleep(0.01)
            live.append(time.time())

        assert version() == two
        watching = threading.Thread(target=watch)
        watching.start()
        said = mill(history.root, "rollback", "films", "--why", "complaints")
        over = time.time()
        watching.join(90)
        assert version() == one
    assert "films@v1.0.0 is the champion of films now" in said
    # The command begins with what every command does. It is held to what comes after: from its telling the server, and
    # it may not be over before the server could have heard.
    told = live_file(history.root).stat().st_mtime
    assert live[0] - told < 2
    assert live[0] - over < 2


def usual_seconds(address: str) -> float:
    """Of a request on a connection that is kept: three of four take longer, so that a busy machine does not count."""
    connection = http.client.HTTPConnection(address, timeout=30)
    taken = []
    for _ in range(60):
        started = time.perf_counter()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        taken.append(time.perf_counter() - started)
    connection.close()
    return statistics.quantiles(taken, n=4)[0]


# With Nagle's algorithm an answer's body waits for the caller's delayed acknowledgement of its head: 40 ms.


def test_no_answer_of_the_command_waits_for_the_acknowledgement_of_its_head(root: Path) -> None:
    with mill_serve(root) as (_, url):
        assert usual_seconds(url.removeprefix("http://")) < 0.03


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_no_answer_from_its_listener_does_on_whichever_loop(loop: Literal["uvloop", "asyncio"]) -> None:
    async def healthy(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    listener = _listen(SERVING)
    config = uvicorn.Config(healthy, loop=loop, http=protocol(10), ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_until(lambda: server.started)
        assert usual_seconds(f"127.0.0.1:{listener.getsockname()[1]}") < 0.03
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
