"""`mill up`: Prefect's server and dashboard, the schedules and the model server, for as long as it runs.

Who runs holds `.mill/up/lock`, and says in `.mill/up/running.json` where it is found. What it has started holds the
lock too, so that after a kill the next one waits for all of it to be gone.
"""

import contextlib
import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from flows.git import GitError, check_repository
from flows.keeping import Kept
from flows.logs import Log
from flows.params import Flows, load_flows
from flows.runner import scheduled_file
from flows.server import Server, answers, check_port, choose, elsewhere, url_of
from flows.worktree import home_of
from tasks.errors import MillError
from tasks.shards import read_json, write_json

_POLL_SECONDS = 0.2
_READY_SECONDS = 180
# The runner has to end a run, and the run its line.
_PATIENCE_SECONDS = 75
_SERVER_PATIENCE_SECONDS = 10
# Between giving up the lock and being gone; where nobody takes leave of it, a process stays as a zombie.
_LAST_BREATH_SECONDS = 5

_DETACHED = "from pathlib import Path; from flows.up import stay; raise SystemExit(stay(Path()))"

_HELD = "Something that an earlier `mill up` has started still holds"


class UpError(MillError):
    """`mill up` cannot start, or what it started does not."""


@dataclass(frozen=True)
class Running:
    """A `mill up`: its process, where it is found, and since when it has been there."""

    process: int
    api: str  # of Prefect: http://127.0.0.1:4200/api
    page: str
    serves: str  # the model server's address
    evidently: str | None  # its pages
    since: str
    log: str
    ready: bool = False


def running(root: Path) -> Running | None:
    """The `mill up` of this repository, also one that is still starting; None where there is none."""
    if _is_free(root):
        return None
    try:
        found = Running(**json.loads((_folder(root) / "running.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # it is just being started or stopped
        return None
    return found if _lives(found.process) else None


def running_api(root: Path) -> str | None:
    """The URL of the Prefect API that the `mill up` of this repository uses; None where none does, or none answers."""
    try:
        found = running(root)
    except GitError:
        return None
    return found.api if found is not None and answers(found.api) else None


def up(root: Path, *, detach: bool = False) -> int:
    """Run everything until Ctrl-C, SIGTERM or `mill down`; with `detach` come back when it is ready. The exit code.

    Raises MillError where it cannot start: then nothing that it started is left.
    """
    check_repository(root)
    return _detach(home_of(root)) if detach else _up(root, echo=True)


def down(root: Path) -> int:
    """Stop the `mill up` of this repository, and wait for its end. The exit code."""
    found = _named(root)
    if found is None:
        print("`mill up` does not run in this repository.")
        return 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(found.process, signal.SIGTERM)
    until = time.monotonic() + _PATIENCE_SECONDS + _SERVER_PATIENCE_SECONDS
    while not _is_free(root):
        if time.monotonic() > until:
            # What it has started notices, and ends by itself.
            with contextlib.suppress(ProcessLookupError):
                os.kill(found.process, signal.SIGKILL)
            raise UpError(f"Process {found.process} did not stop in time, and was killed. What it started ends now.")
        time.sleep(_POLL_SECONDS)
    until = time.monotonic() + _LAST_BREATH_SECONDS
    while _lives(found.process) and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
    print("Stopped.")
    return 0


def _named(root: Path) -> Running | None:
    """The `mill up` that runs, whose name may be still to come; None where the rest of one that was killed has ended.

    Raises UpError where the lock is held all the while without one.
    """
    until = time.monotonic() + _PATIENCE_SECONDS
    while (found := running(root)) is None and not _is_free(root):
        if time.monotonic() > until:
            raise UpError(f"{_HELD} {_folder(root) / 'lock'}. End it.")
        time.sleep(_POLL_SECONDS)
    return found


def stay(root: Path) -> int:
    """What `--detach` starts: the same without a terminal. The exit code."""
    try:
        return _up(root, echo=False)
    except MillError as error:
        print(error, file=sys.stderr)
        return 1


def _up(root: Path, *, echo: bool) -> int:
    home = home_of(root)
    flows = load_flows(home / "params.yaml")
    try:
        with _interruptible(), _alone(home) as lock, Log(_folder(home) / "log", echo=echo) as log:
            _run(home, flows, lock.fileno(), log)
    except KeyboardInterrupt:
        print("Stopped.", flush=True)
    return 0


def _run(home: Path, flows: Flows, lock: int, log: Log) -> None:
    server = choose(home, flows)
    check_port(flows.serve.port, "flows.serve.port", flows.serve.host, "The model server")
    if flows.evidently:
        check_port(flows.evidently.port, "flows.evidently.port", what="Evidently's server")
    here = Running(
        process=os.getpid(),
        api=server.api,
        page=server.page,
        serves=url_of(flows.serve.host, flows.serve.port),
        evidently=f"http://127.0.0.1:{flows.evidently.port}" if flows.evidently else None,
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        log=str(log.file),
    )
    write_json(_folder(home) / "running.json", asdict(here))

    def kept(name: str, *command: str) -> Kept:
        return Kept(name, command, folder=home, environment=server.environment, keep=(lock,), say=log.say)

    prefect = kept("prefect", *server.command)
    runner = kept("schedules", sys.executable, "-m", "flows.runner")
    working = [runner, kept("models", sys.executable, "-m", "flows.cli", "serve")]
    if flows.evidently:
        working.append(kept("evidently", *_evidently(home, flows.evidently.port)))
    scheduled_file(home).unlink(missing_ok=True)
    with _ended(prefect, working):
        if server.command:
            prefect.start()
            _wait(prefect, lambda: answers(server.api), "Prefect's server")
        runner.start()
        _wait(runner, scheduled_file(home).exists, "What starts the runs")
        for one in working[1:]:
            one.start()
        write_json(_folder(home) / "running.json", asdict(replace(here, ready=True)))
        print(_told(home, here, server), flush=True)
        while True:
            for one in (prefect, *working):
                one.tend()
            time.sleep(_POLL_SECONDS)


def _evidently(home: Path, port: int) -> list[str]:
    workspace = home / ".mill" / "evidently"
    workspace.mkdir(parents=True, exist_ok=True)
    # A secret that nobody knows: the pages are to look at, and only the monitor writes.
    return [
        *(sys.executable, "-m", "evidently.cli", "ui", "--workspace", str(workspace)),
        *("--host", "127.0.0.1", "--port", str(port), "--secret", secrets.token_hex(16)),
    ]


def _wait(kept: Kept, is_ready: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + _READY_SECONDS
    while not is_ready():
        if kept.process is None:
            raise UpError(f"{what} ended before it was ready, and said:\n{kept.last_words}")
        if time.monotonic() > until:
            raise UpError(f"{what} was not ready after {_READY_SECONDS} s. It said:\n{kept.last_words}")
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _ended(prefect: Kept, others: Sequence[Kept]) -> Iterator[None]:
    """End everything on the way out: what works first, and then the server that it tells about it."""
    try:
        yield
    finally:
        patience = _PATIENCE_SECONDS, _SERVER_PATIENCE_SECONDS
        try:
            for one in others:
                one.ask_to_end(signal.SIGTERM)
            for one in others:
                one.end(patience[0])
            prefect.ask_to_end(signal.SIGTERM)
            prefect.end(patience[1])
        except KeyboardInterrupt:  # somebody has no patience
            for one in (*others, prefect):
                one.end(0)


def _told(home: Path, here: Running, server: Server) -> str:
    times = read_json(scheduled_file(home))
    lines = [
        f"Dashboard     {here.page}" + ("" if server.command else "  (by PREFECT_API_URL)"),
        f"Models        {here.serves}/  (for programs: /docs)",
        *([f"Evidently     {here.evidently}"] if here.evidently else []),
        *(f"{name:13} next at {at}" for name, at in times.items()),
        f"Log           {here.log}",
        "`mill down` stops it.",
    ]
    if not times:
        lines.insert(-2, "No model has a schedule: flows.models.<model>.retrain of params.yaml gives it one.")
    note = elsewhere() if server.command else None
    return "\n".join(["", *lines, *([note] if note else []), ""])


def _detach(home: Path) -> int:
    load_flows(home / "params.yaml")
    _folder(home).mkdir(parents=True, exist_ok=True)
    said = _folder(home) / "start"
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", _DETACHED],
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        while not ((found := running(home)) and found.ready and found.process == process.pid):
            if process.poll() is not None:
                raise UpError(said.read_text(encoding="utf-8").strip())
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    print(said.read_text(encoding="utf-8").strip())
    return 0


def _folder(root: Path) -> Path:
    return home_of(root) / ".mill" / "up"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_free(root: Path) -> bool:
    try:
        with (_folder(root) / "lock").open() as lock:
            # A shared lock, so that two who only ask are not in each other's way.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[IO[str]]:
    """Hold the repository's lock. Raises UpError where another `mill up` does; what a killed one left is waited for."""
    file = _folder(home) / "lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    until, told = time.monotonic() + _PATIENCE_SECONDS, False
    with file.open("a+") as lock:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            found = running(home)
            if found is not None:
                raise UpError(
                    f"`mill up` runs here already, since {found.since}, as process {found.process}: {found.page}\n"
                    "`mill down` stops it."
                )
            if time.monotonic() > until:
                raise UpError(f"{_HELD} {file}. End it.")
            if not told and time.monotonic() > until - _PATIENCE_SECONDS + 1:
                print("Waiting for the end of what a `mill up` that was killed had started.", flush=True)
                told = True
            time.sleep(_POLL_SECONDS)
        yield lock


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM, and the end of the terminal, do what Ctrl-C does."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
