"""DVC's locks, waited for with patience, and the name of whoever holds them."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from flows.stages import LineError

T = TypeVar("T")

_POLL_SECONDS = 0.3


class Stopped(LineError):
    """The run was told to stop while it waited."""


@dataclass(frozen=True)
class Patience:
    """How long, and how audibly, somebody's own dvc is waited for."""

    seconds: float
    say: Callable[[str], None]
    is_stopped: Callable[[], bool]

    def until_free(self, work: Callable[[], T], tmp: Path) -> T:
        """What `work` gives, called again as long as DVC's locks, in the folder `tmp`, are in its way.

        Raises LineError where that takes too long, Stopped where the run is to end.
        """
        from dvc.lock import LockError

        started, told = time.monotonic(), ""
        while True:
            try:
                return work()
            except LockError as error:
                holder = _holder(error, tmp)
            if self.is_stopped():
                raise Stopped(f"stopped while {holder}.")
            if time.monotonic() - started > self.seconds:
                raise LineError(
                    f"{holder}, for longer than {self.seconds / 60:g} minutes (flows.line.lock_wait_minutes of "
                    "params.yaml). Wait for it, or end it, and run again."
                )
            if holder != told:
                self.say(f"waiting: {holder}")
                told = holder
            time.sleep(_POLL_SECONDS)


def _holder(error: Exception, tmp: Path) -> str:
    """Who is in the way, in words."""
    blockers = re.findall(r"\(PID (\d+)\): (.*)", str(error))
    if blockers:
        files = str(error).partition(" is busy")[0].strip("'")
        who = " and ".join(_process(int(number), command) for number, command in dict(blockers).items())
        return f"{who} works with {files}"
    return f"{_process(_number_in(tmp / 'lock'))} holds DVC's lock"


def _number_in(lock: Path) -> int | None:
    """The process that a lock file names. One by hard links names none."""
    try:
        found = re.fullmatch(r"\s*(\d+)\s*", lock.read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(found[1]) if found else None


def _process(number: int | None, command: str = "") -> str:
    import psutil

    if number is None:
        return "another dvc command"
    try:
        process = psutil.Process(number)
        since = datetime.fromtimestamp(process.create_time())
        command = command or " ".join(process.cmdline())
    except (psutil.Error, OSError):
        return f"process {number}" + (f" ({command})" if command else "")
    words = command.split()
    short = " ".join([Path(words[0]).name, *words[1:]]) if words else "a command"
    return f"process {number} (`{short[:100]}`, since {since:%H:%M:%S})"
