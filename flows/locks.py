"""One retrain of a model at a time; who comes second is told who is at it, and since when."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from flows.child import PATIENCE_SECONDS
from flows.worktree import Busy

# How long what a killed run had started may take to end: it is interrupted at once, and killed when patience is over.
_WAIT_SECONDS = 2 * PATIENCE_SECONDS


@contextlib.contextmanager
def only_one(home: Path, model: str, why: str) -> Iterator[int]:
    """Hold a model's retraining alone, and give the lock's descriptor, which the run's commands inherit.

    Raises Busy at once where another process is at it. Where only its last commands are left, they are waited for.
    """
    file = home / ".mill" / "retrain" / f"{model}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="utf-8") as lock:
        _take(lock, model, file)
        lock.truncate(0)
        json.dump({"process": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds"), "why": why}, lock)
        lock.flush()
        yield lock.fileno()


def _take(lock: IO[str], model: str, file: Path) -> None:
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        holder = _holder(file)
        if _lives(holder.get("process")) or time.monotonic() > until:
            reason = f" ({holder['why']})" if holder.get("why") else ""
            raise Busy(
                f"{model} is being retrained already, since {holder.get('since', 'a moment ago')}, by process "
                f"{holder.get('process', 'unknown')}{reason}. Nothing was started; wait for it, or end it.",
                datetime.fromisoformat(holder["since"]) if "since" in holder else None,
            )
        time.sleep(0.2)


def _holder(file: Path) -> dict[str, str]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # it is just being written
        return {}
    return found if isinstance(found, dict) else {}


def _lives(process: object) -> bool:
    if not isinstance(process, int):
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
