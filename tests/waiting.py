"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


# Seconds between two looks: the first come soon, and a server that is asked for minutes has other things to do.
_FIRST, _LAST = 0.02, 0.3


def wait_until(find: Callable[[], T | None], seconds: float = 120) -> T:
    """What `find` returns once that is true; an AssertionError after `seconds`, which a loaded machine may need."""
    until, pause = time.monotonic() + seconds, _FIRST
    while not (found := find()):
        assert time.monotonic() < until, f"it did not come about in {seconds} s"
        time.sleep(pause)
        pause = min(1.2 * pause, _LAST)
    return found


def lives(process: int | str) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
