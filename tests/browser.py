"""A real browser for tests: Debian's chromium without a window, spoken to in its own protocol."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1400",
    "--remote-debugging-port=0",
)


class Page:
    """One page of the browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)

    def goto(self, url: str) -> None:
        self._ask("Page.navigate", url=url)

    def text(self) -> str:
        """What a person reads on the page."""
        return str(self.run("document.body ? document.body.innerText : ''"))

    def wait_for(self, words: Sequence[str], seconds: float = 120) -> None:
        """Wait until all the words stand on the page."""
        until = time.monotonic() + seconds
        while missing := [word for word in words if word not in self.text()]:
            assert time.monotonic() < until, f"{missing} is not on the page:\n{self.text()}"
            time.sleep(0.3)

    def click(self, label: str) -> None:
        """Click on the element whose whole text is this."""
        found = f"[...document.querySelectorAll('a,button,li,span')].find(e => e.innerText.trim() === {label!r})"
        assert self.run(f"(e => e ? (e.click(), true) : false)({found})"), f"there is nothing called {label}"

    def run(self, script: str) -> Any:
        """The value of a script."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def look_as(self, *, width: int, dark: bool) -> None:
        """See the page as a screen of that width shows it, and as somebody does who reads light on dark."""
        self._ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=1400, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))

    def _ask(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(60))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page of a new browser, whose profile is a new folder. Skips the test where there is no chromium, but in CI."""
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("CI"):
            raise AssertionError("chromium is missing, and CI has to look at the pages: apt-get install chromium")
        pytest.skip("chromium is not installed: apt-get install chromium")
    process = subprocess.Popen(
        [chromium, *_FLAGS, f"--user-data-dir={profile}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with connect(_page_of(profile), max_size=None, open_timeout=60) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(30)


def _page_of(profile: Path) -> str:
    """Where the browser's page is spoken to; the browser writes down its port when it is up."""
    file, until = profile / "DevToolsActivePort", time.monotonic() + 120
    while not (file.exists() and file.read_text().strip()):
        assert time.monotonic() < until, "chromium did not start"
        time.sleep(0.1)
    port = file.read_text().split()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=60) as answer:
        pages = json.load(answer)
    return str(next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"))
