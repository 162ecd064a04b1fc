"""One log for several processes, that does not grow without end."""

import contextlib
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

_LARGEST_BYTES = 10 * 1024 * 1024


class Log:
    """Lines with their time and who said them, in a file and, with `echo`, on standard output.

    A file that is full becomes <name>.1, in the place of the one before it.
    """

    def __init__(self, file: Path, *, echo: bool, largest_bytes: int = _LARGEST_BYTES) -> None:
        self.file, self._echo, self._largest_bytes = file, echo, largest_bytes
        self._alone = threading.Lock()

    def __enter__(self) -> Self:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._open = self.file.open("a", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._alone:
            self._open.close()

    def say(self, who: str, line: str) -> None:
        """Write a line. Once closed, it says nothing; and a full disk or a closed terminal stops nobody who speaks."""
        with self._alone:
            if self._open.closed:
                return
            with contextlib.suppress(OSError):
                self._write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {who:9} {line}\n")
            try:
                if self._echo:
                    print(f"{who:9} {line}", flush=True)
            except OSError:
                self._echo = False

    def _write(self, line: str) -> None:
        self._open.write(line)
        self._open.flush()
        if self._open.tell() > self._largest_bytes:
            self._open.close()
            self.file.replace(self.file.with_name(f"{self.file.name}.1"))
            self._open = self.file.open("a", encoding="utf-8")
