"""What the monitor remembers of a model: how far it has looked, and each window that it has judged.

`.mill/monitor/<model>/state.json` is replaced atomically once a window's folder is whole, and says up to where each
version's predictions are judged. So a monitor that is killed judges the window that it was at once more, into the same
folder, and no other one twice.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.worktree import Busy
from tasks.monitor_report import HTML
from tasks.shards import atomic_folder, read_json, write_json

RECORD = "window.json"

# Of a hundred predictions each these are the last hundred thousand, and a hundred megabytes.
KEPT_WINDOWS = 1000


@dataclass(frozen=True)
class Progress:
    """How far a version's predictions are judged."""

    judged: int = 0  # the number of the last prediction of the last window
    rows: int = 0
    streak: int = 0  # windows that have drifted, without a break up to the last one
    since: int = 0  # the number of the streak's first prediction


@dataclass(frozen=True)
class Memory:
    """All that is kept between two looks."""

    windows: int = 0  # how many were judged, of all versions
    settled: int = 0  # up to here no prediction is left to look at
    versions: Mapping[str, Progress] = field(default_factory=dict)
    server: Mapping[str, float] | None = None  # its counters of requests when they were last read
    told: Mapping[str, Any] | None = None  # the last drift that was made known


class Watched:
    """A model's folder of what was watched."""

    def __init__(self, root: Path, model: str) -> None:
        self.folder = root / ".mill" / "monitor" / model

    @property
    def calibration(self) -> Path:
        return self.folder / "calibration"

    @property
    def wanted(self) -> Path:
        """The rows that are worth labelling, for a person to fill in."""
        return self.folder / "to_label.csv"

    @property
    def summary(self) -> Path:
        """What the page shows, for programs."""
        return self.folder / "monitor.json"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold it. Raises Busy where another monitor of this model is at work."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                since = datetime.fromtimestamp(os.fstat(lock.fileno()).st_mtime, UTC)
                raise Busy(
                    f"{self.folder.name} is being looked at already by another `mill monitor`, since "
                    f"{since.isoformat(timespec='seconds')}.",
                    since,
                ) from None
            os.utime(lock.fileno())  # who comes second reads there since when it is held
            yield

    def read(self) -> Memory:
        file = self.folder / "state.json"
        if not file.exists():
            return Memory()
        kept = read_json(file)
        versions = {version: Progress(**progress) for version, progress in kept.pop("versions").items()}
        return Memory(**kept, versions=versions)

    def write(self, memory: Memory) -> None:
        write_json(self.folder / "state.json", asdict(memory))

    def window(self, number: int) -> Path:
        return self.folder / "windows" / f"{number:06}"

    @contextlib.contextmanager
    def new_window(self, number: int) -> Iterator[Path]:
        """A folder that takes the window's place when it is whole."""
        self.window(number).parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(self.window(number)) as folder:
            yield folder

    def record(self, number: int) -> dict[str, Any]:
        """What was found of a window."""
        return dict(read_json(self.window(number) / RECORD))

    def history(self, memory: Memory, most: int) -> list[dict[str, Any]]:
        """The last windows, the oldest first."""
        numbers = range(max(1, memory.windows - most + 1), memory.windows + 1)
        return [self.record(number) for number in numbers if (self.window(number) / RECORD).exists()]

    def drop_old(self, memory: Memory, keep_pages: int) -> list[int]:
        """Delete Evidently's pages, four megabytes each, of all but the newest windows, and windows that are very old.

        Gives the numbers of these, whose places in Evidently's history go with them.
        """
        gone = []
        for folder in sorted((self.folder / "windows").glob("[0-9]*")):
            age = memory.windows - int(folder.name)
            if age >= keep_pages:
                (folder / HTML).unlink(missing_ok=True)
            if age >= KEPT_WINDOWS:
                gone.append(int(folder.name))
        return gone

    def drop_window(self, number: int) -> None:
        """Delete all that was found of a window."""
        shutil.rmtree(self.window(number))
