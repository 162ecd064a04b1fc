"""Processes that are kept alive: each is started again when it dies, after pauses that grow, and ended when asked to.

Each has a process group of its own, which ends with this process, however it ends.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flows.child import group

# A process that has lived so long is not to blame for what happened before.
_WELL_SECONDS = 300
_LONGEST_PAUSE_SECONDS = 60
_TAIL_LINES = 30
_KILL_SECONDS = 5


class Kept:
    """One process, kept. `say` hears each line that it prints; `keep` are descriptors that it inherits."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        keep: Sequence[int],
        say: Callable[[str, str], None],
    ) -> None:
        self.name = name
        self._command, self._folder, self._environment, self._keep = list(command), folder, dict(environment), keep
        self._say = say
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._started = self._again_at = 0.0
        self._num_deaths = 0
        self._last_lines: deque[str] = deque(maxlen=_TAIL_LINES)

    def start(self) -> None:
        """Start it, in a group of its own."""
        self._last_lines.clear()
        self._group = self._stack.enter_context(group())
        self._process = subprocess.Popen(
            self._command,
            cwd=self._folder,
            env={**self._environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            pass_fds=self._keep,
            process_group=self._group,
        )
        self._started = time.monotonic()
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    @property
    def process(self) -> int | None:
        """Its number, while it lives."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def last_words(self) -> str:
        """The end of what it printed, whole where it has died."""
        if self._reader is not None and self.process is None:
            self._reader.join(_KILL_SECONDS)
        return "\n".join(self._last_lines)

    def tend(self) -> None:
        """Start it again where it has died and its pause is over. To be called every now and then."""
        if self._process is None or self.process is not None:
            return
        if not self._again_at:
            self._again_at = time.monotonic() + self._pause()
        elif time.monotonic() >= self._again_at:
            self._again_at = 0.0
            self.start()

    def _pause(self) -> float:
        """Clear away what the dead process had started, and say when it is started again; in how many seconds."""
        assert self._process is not None  # noqa: S101
        code, lived = self._process.returncode, time.monotonic() - self._started
        self._num_deaths = 1 if lived >= _WELL_SECONDS else self._num_deaths + 1
        pause = min(2.0 ** (self._num_deaths - 1), _LONGEST_PAUSE_SECONDS)
        self._end_group()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        self._say(self.name, f"{how} after {lived:.0f} s. It is started again in {pause:.0f} s.")
        return pause

    def ask_to_end(self, number: signal.Signals) -> None:
        """Send it a signal; it is not started again."""
        if self.process is not None:
            assert self._process is not None  # noqa: S101
            self._process.send_signal(number)
        else:
            self._process = None

    def end(self, patience_seconds: float) -> None:
        """Wait for its end, kill what is left of it by then, and all that it has started."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_seconds)
        self._end_group()
        self._process = None

    def _end_group(self) -> None:
        if self._process is None:
            return
        for number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._group, number)
            if self._is_gone(_KILL_SECONDS):
                break
        self._process.wait()
        self._stack.close()

    def _is_gone(self, seconds: float) -> bool:
        """Whether its output has ended, which all that it has started inherits."""
        assert self._reader is not None  # noqa: S101
        self._reader.join(seconds)
        return not self._reader.is_alive()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None  # noqa: S101
        with process.stdout as lines, contextlib.suppress(ValueError, OSError):
            for line in lines:
                self._last_lines.append(line.rstrip("\n"))
                self._say(self.name, line.rstrip("\n"))


@contextlib.contextmanager
def ended(kept: Sequence[Kept], patience_seconds: float) -> Iterator[None]:
    """End all of them on the way out, the last one first."""
    try:
        yield
    finally:
        for one in reversed(kept):
            one.end(patience_seconds)
