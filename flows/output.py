"""What stages print while they run: to the terminal and into their logs in Prefect."""

import collections
import contextlib
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, Protocol

_MAX_KEPT = 10_000  # lines of a stage


class Log(Protocol):
    """Where lines go besides the terminal. In `extra`, said_at is when a line was said, if not now."""

    def info(self, msg: Any, *args: Any, extra: Any) -> None: ...


class Output:
    """Lines behind their stage's address, as they come; from any thread."""

    def __init__(self) -> None:
        self._width = 0
        self._logs: dict[str, Log] = {}
        # What was said before there was a log, which takes seconds to come.
        self._kept: dict[str, collections.deque[tuple[float, str]]] | None = {}
        self._lock = threading.Lock()

    def align(self, addresses: Iterable[str]) -> None:
        """Make room for these addresses, so that what they print stands in one column."""
        self._width = max(map(len, addresses), default=0)

    def attach(self, address: str, log: Log) -> None:
        """Give a stage's lines to its log as well, first those that there were; "" is the whole run."""
        with self._lock:
            for moment, text in (self._kept or {}).pop(address, ()):
                log.info("%s", text, extra={"said_at": moment})
            self._logs[address] = log

    def detach(self) -> None:
        """Give lines to no log any more."""
        with self._lock:
            self._logs, self._kept = {}, None

    def __call__(self, address: str, text: str) -> None:
        lines = text.splitlines() or [""]
        with self._lock:
            with contextlib.suppress(OSError, ValueError):  # nobody reads any more, as behind `| head`
                sys.stderr.write("".join(f"{address:<{self._width}}  {line}\n" for line in lines))
                sys.stderr.flush()
            if (log := self._logs.get(address)) is not None:
                log.info("%s", text, extra={})
            elif self._kept is not None:
                self._kept.setdefault(address, collections.deque(maxlen=_MAX_KEPT)).append((time.time(), text))

    def about_all(self, text: str) -> None:
        """A line of the whole run."""
        self("", text)
