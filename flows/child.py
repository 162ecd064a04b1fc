"""A command in a worktree, by the code that is there, in a process group that ends with this process."""

import collections
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# The folder it starts in comes first on sys.path. What was started from a shell's background ignores SIGINT, and would
# hand that down.
_START = (
    "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler); from flows.cli import main; main()"
)
_PATIENCE_SECONDS = 60
_TAIL_LINES = 40


def mill(
    folder: Path,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    keep: Sequence[int] = (),
    say: Callable[[str], None],
) -> tuple[int, str]:
    """Run a mill command of the code in `folder`. Its exit code, and the end of what it printed.

    Each line is given to `say` as it comes. `keep` are descriptors that it inherits, so that what they lock is locked
    until it has ended as well. Whatever stops this function stops the command and all that it has started.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    # The group's leader waits for the end of a pipe that this process alone holds open, and then interrupts the group:
    # so it does where this process is killed. It holds no lock.
    guard = subprocess.Popen(["sh", "-c", "trap '' INT; read _; kill -INT 0"], stdin=subprocess.PIPE, process_group=0)
    tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
    process = subprocess.Popen(
        [sys.executable, "-c", _START, *arguments],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        pass_fds=keep,
        process_group=guard.pid,
    )
    try:
        assert process.stdout is not None  # noqa: S101
        for line in process.stdout:
            tail.append(line)
            say(line.rstrip("\n"))
        return process.wait(), "".join(tail)
    except BaseException:
        os.killpg(guard.pid, signal.SIGINT)
        try:
            process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(guard.pid, signal.SIGKILL)
            process.wait()
        raise
    finally:
        guard.kill()
        guard.communicate()
        if process.stdout is not None:
            process.stdout.close()
