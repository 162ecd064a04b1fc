"""Commands in process groups of their own, which end with this process, however it ends."""

import collections
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

# The folder it starts in comes first on sys.path. What was started from a shell's background ignores SIGINT, and would
# hand that down.
_START = (
    "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler); from flows.cli import main; main()"
)
PATIENCE_SECONDS = 60
_TAIL_LINES = 40

# It waits for the end of a pipe that this process alone holds open, and then interrupts its group, itself not; what
# does not listen is killed, and the group's leader with it.
_GUARD = f"trap '' INT; read _; kill -INT 0; sleep {PATIENCE_SECONDS}; kill -KILL 0"

_WATCHERS: list["subprocess.Popen[bytes]"] = []


@contextlib.contextmanager
def group() -> Iterator[int]:
    """A process group for commands; its number. Where this process is killed, all that is in it is interrupted."""
    guard = subprocess.Popen(["sh", "-c", _GUARD], stdin=subprocess.PIPE, process_group=0)
    try:
        yield guard.pid
    finally:
        guard.kill()
        guard.communicate()


def end_with_this_process(process: int) -> None:
    """Have a process terminated where this one ends without having done so."""
    script = "trap '' INT TERM; read _; kill -TERM $0 2>/dev/null"
    # Its own group, so that Ctrl-C leaves it at its post. It is kept, since the pipe closes with the last reference.
    _WATCHERS.append(subprocess.Popen(["sh", "-c", script, str(process)], stdin=subprocess.PIPE, process_group=0))


def path_of_commands() -> str:
    """PATH with this interpreter's folder first, so that `python` is the one that has the packages."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def mill(
    folder: Path,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    keep: Sequence[int] = (),
    say: Callable[[str], None],
) -> tuple[int, str]:
    """Run a mill command of the code in `folder`; all else as `run` does."""
    around = {**os.environ, "PATH": path_of_commands(), **env}
    return run(folder, [sys.executable, "-c", _START, *arguments], env=around, keep=keep, say=say)


def run(
    folder: Path,
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    keep: Sequence[int] = (),
    say: Callable[[str], None],
) -> tuple[int, str]:
    """Run a command in `folder` with this environment alone. Its exit code, and the end of what it printed.

    Each line is given to `say` as it comes. `keep` are descriptors that it inherits, so that what they lock is locked
    until it has ended as well. Whatever stops this function stops the command and all that it has started.
    """
    tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
    with group() as number:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={"PYTHONUNBUFFERED": "1", **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            pass_fds=keep,
            process_group=number,
        )
        try:
            assert process.stdout is not None  # noqa: S101
            for line in process.stdout:
                tail.append(line)
                say(line.rstrip("\n"))
            return process.wait(), "".join(tail)
        except BaseException:
            try:
                os.killpg(number, signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE_SECONDS)
            finally:  # a second interruption ends the waiting, and not what is waited for
                # What a shell has put into the background does not hear an interruption.
                os.killpg(number, signal.SIGKILL)
                process.wait()
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()
