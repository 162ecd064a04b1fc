"""`mill up`: Prefect's server and dashboard, the schedules and the model server, for as long as it runs.

Who runs holds `.mill/up/lock`, and says in `.mill/up/running.json` where it is found. What it has started holds the
lock too, so that after a kill the next one waits for all of it to be gone.
"""

import fcntl
import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from flows.git import GitError
from flows.worktree import home_of

_HEALTH_SECONDS = 2


@dataclass(frozen=True)
class Running:
    """A `mill up`: its process, where it is found, and since when it has been there."""

    process: int
    api: str  # of Prefect: http://127.0.0.1:4200/api
    since: str
    log: str
    serves: str | None = None  # the model server's address
    ready: bool = False


def running(root: Path) -> Running | None:
    """The `mill up` of this repository, also one that is still starting; None where there is none."""
    folder = _folder(root)
    try:
        with (folder / "lock").open() as lock:
            # A shared lock, so that two who only ask are not in each other's way.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        pass
    try:
        return Running(**json.loads((folder / "running.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # it is just being started or stopped
        return None


def running_api(root: Path) -> str | None:
    """The URL of the Prefect API that the `mill up` of this repository runs; None where none does, or none answers."""
    try:
        found = running(root)
    except GitError:
        return None
    return found.api if found is not None and answers(found.api) else None


def answers(api: str) -> bool:
    """Whether a Prefect API is there."""
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=_HEALTH_SECONDS) as answer:  # noqa: S310
            return bool(answer.status == 200 and json.load(answer) is True)
    except (OSError, ValueError):
        return False


def _folder(root: Path) -> Path:
    return home_of(root) / ".mill" / "up"
