"""The commands of stages: each stage's in a process group of its own, all of them stopped at once."""

import collections
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flows.child import PATIENCE_SECONDS, group

_TAIL_LINES = 20
_MAX_LINE = 64 * 1024  # bytes; a longer one is given on in parts

# How long what a finished command has left behind may hold its output open.
_LAST_WORDS_SECONDS = 2


@dataclass(frozen=True)
class Shell:
    """A stage's command lines, one after the other, each as DVC would start it."""

    lines: tuple[str, ...]
    arguments: tuple[str | list[str], ...]
    folder: Path
    env: dict[str, str]


@dataclass(frozen=True)
class Ended:
    """How a stage's commands ended: the first exit code that is not 0, else 0, and the end of what they printed."""

    code: int
    tail: str

    @property
    def how(self) -> str:
        """In words: exit code 3, or the signal that ended it."""
        if self.code >= 0:
            return f"exit code {self.code}"
        try:
            return f"ended by {signal.Signals(-self.code).name}"
        except ValueError:
            return f"ended by signal {-self.code}"


class Commands:
    """Those that run now. `stop` ends them with all that they have started, and lets no other one begin."""

    def __init__(self) -> None:
        self.is_stopped = False
        self._groups: set[int] = set()
        self._lock = threading.Lock()

    def run(self, shell: Shell, say: Callable[[str], None]) -> Ended:
        """Run a stage's command lines up to the first that fails; `say` hears each line of output as it comes."""
        tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)

        def hear(line: str) -> None:
            tail.append(line)
            say(line)

        code = 0
        with self._group() as number:
            for line, arguments in zip(shell.lines, shell.arguments, strict=True):
                if self.is_stopped:
                    code = code or -signal.SIGINT
                if code:
                    break
                say(f"$ {line}")
                code = self._run(arguments, shell, number, hear)
        return Ended(code, "\n".join(tail))

    def stop(self) -> None:
        """Interrupt what runs, as Ctrl-C would, and kill what has not ended after a while."""
        self.is_stopped = True
        self._signal(signal.SIGINT)
        patience = threading.Timer(PATIENCE_SECONDS, self.kill)
        patience.daemon = True
        patience.start()

    def kill(self) -> None:
        """End what runs, at once."""
        self.is_stopped = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:
            for running in self._groups:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(running, number)

    @contextlib.contextmanager
    def _group(self) -> Iterator[int]:
        with group() as number:
            with self._lock:
                self._groups.add(number)
            try:
                yield number
            finally:
                with self._lock:
                    self._groups.discard(number)
                if self.is_stopped:  # what a shell has put into the background does not hear an interruption
                    os.killpg(number, signal.SIGKILL)

    def _run(self, arguments: str | list[str], shell: Shell, number: int, say: Callable[[str], None]) -> int:
        process = subprocess.Popen(
            arguments,
            cwd=shell.folder,
            env=shell.env,
            # Its own group may not read the terminal, so it gets no input.
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=number,
        )
        assert process.stdout is not None  # noqa: S101
        reader = threading.Thread(target=_read, args=(process.stdout, say), daemon=True)
        reader.start()
        if self.is_stopped:  # between the look above and the start
            with contextlib.suppress(ProcessLookupError):
                os.killpg(number, signal.SIGINT)
        code = process.wait()
        reader.join(_LAST_WORDS_SECONDS)
        return code


def _read(output: IO[bytes], say: Callable[[str], None]) -> None:
    """Give on each line; of one that overwrites itself, as progress bars do, what stands there in the end."""
    with output:
        while part := output.readline(_MAX_LINE):
            say(part.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2])
