"""A real server in a thread of the test, over versions that the test puts in use."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from tasks.journal import Journal, open_journal
from tasks.release import Release, read_release, seal
from tasks.serving.app import create_app
from tasks.serving.keys import Keys
from tasks.serving.limits import protocol
from tasks.serving.live import Live
from tasks.serving.settings import Serving
from tasks.shards import MANIFEST, read_json, sha256_of, write_json

SERVING = Serving(
    host="127.0.0.1",
    port=0,
    threads=1,
    batch_rows=8,
    batch_wait_ms=1,
    queue_rows=64,
    queue_seconds=30,
    max_rows=32,
    max_request_mb=0.1,
    body_seconds=1,
    journal_seconds=10,
    swap_seconds=20,
    shadow=0,
)


@dataclass(frozen=True)
class Running:
    """A server that answers at `url`."""

    url: str
    live: Live
    journal: Journal
    client: httpx.Client

    def predict(self, content: Any, model: str = "tiny") -> httpx.Response:
        return self.client.post(f"/models/{model}/predict", json=content)


@contextmanager
def running(
    root: Path,
    journal: str | None = None,
    also: Callable[[FastAPI], None] = lambda _: None,
    is_open: bool = True,
    keep_days: int | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """Serve what `.mill/live.json` below root says; `also` adds further pages."""
    serving = SERVING.model_copy(update=settings)
    live = Live(root, serving)
    kept = open_journal(journal or f"sqlite:///{root}/.mill/journal.sqlite")
    app = create_app(live, serving, kept, Keys(root, is_open=is_open), keep_days=keep_days)
    also(app)
    http = protocol(serving.body_seconds)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, http=http, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < deadline, "the server takes too long to start"
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=30) as client:
            yield Running(url, live, kept, client)
    finally:
        server.should_exit = True
        thread.join(30)


def use(root: Path, release: Release, model: str = "tiny") -> None:
    """Put a version in use, as a promotion does."""
    file = root / ".mill" / "live.json"
    entries = read_json(file) if file.exists() else {}
    entry = {
        "version": release.version,
        "folder": release.folder.relative_to(root).as_posix(),
        "manifest_sha256": sha256_of(release.folder / MANIFEST),
    }
    write_json(file, {**entries, model: entry})


def colder(release: Release, folder: Path, temperature: float) -> Release:
    """The same model as another version that is surer or less sure of the same answers."""
    copytree(release.folder, folder)
    runtime = read_json(folder / "runtime.json")
    write_json(folder / "runtime.json", {**runtime, "calibration": {"temperature": temperature}})
    manifest = json.loads((folder / MANIFEST).read_text())
    seal(folder, {key: value for key, value in manifest.items() if key not in ("files", "version")})
    return read_release(folder)
