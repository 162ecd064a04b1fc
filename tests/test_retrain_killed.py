"""A retrain that is stopped or killed at any point, and started again: one promotion, whole, and nothing left over."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flows
import flows.retrain as flow
from flows import landing
from flows.git import LIVE, git, tip
from flows.retrain import retrain
from flows.store import read_live
from flows.worktree import Busy
from tasks.shards import write_text
from tests.conftest import REPOSITORY
from tests.test_retrain import Killed, branches, champion, gate, repository, toy  # noqa: F401
from tests.waiting import lives, wait_until

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("served", "gate")]

# Where Ctrl-C may come as well; the steps that are left out are killed at, below.
BOUNDARIES = [
    pytest.param(flow, "_commit", "before", id="before commit", marks=pytest.mark.slow),
    pytest.param(flow, "_commit", "after", id="after commit"),
    pytest.param(landing, "register", "after", id="after register", marks=pytest.mark.slow),
    pytest.param(landing, "promote", "after", id="after promote"),
    pytest.param(flow, "publish", "before", id="before publish", marks=pytest.mark.slow),
]

# Retrains the films of a repository in a process that kills itself at a step, as nobody can prepare for.
KILLED = """
import importlib, os, signal, sys, threading, time
from pathlib import Path
import psutil
import flows.gating, flows.retrain
from tests.test_retrain import Gate

root, module, step, when = sys.argv[1:]
flows.gating.gate_release = Gate()
owner = importlib.import_module(module)
real = getattr(owner, step)

def end():
    os.kill(os.getpid(), signal.SIGKILL)

def end_once_it_runs():
    while not any("pull" in child.cmdline() for child in psutil.Process().children()):
        time.sleep(0.01)
    end()

def ends(*arguments, **named):
    if when == "during":
        threading.Thread(target=end_once_it_runs).start()
    if when != "before":
        real(*arguments, **named)
    end()

setattr(owner, step, ends)
flows.retrain.retrain(Path(root), "films", why="schedule")
"""

KILLS = [
    pytest.param("flows.retrain", "mill", "during", id="during pull", marks=pytest.mark.slow),
    pytest.param("flows.gating", "gate_release", "before", id="before the gate", marks=pytest.mark.slow),
    pytest.param("flows.retrain", "_commit", "after", id="after the commit", marks=pytest.mark.slow),
    pytest.param("flows.retrain", "record_decision", "after", id="after the decision's tag", marks=pytest.mark.long),
    pytest.param("flows.landing", "put_on_live", "after", id="after live"),
    pytest.param("flows.landing", "promote", "before", id="after the version's tag", marks=pytest.mark.slow),
    pytest.param("flows.registry", "_follow", "before", id="after the promotion's tag", marks=pytest.mark.slow),
    pytest.param("flows.landing", "promote", "after", id="after the promotion", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("module", "step", "when"), BOUNDARIES)
def test_stopped_at_any_step_and_started_again_it_promotes_once(repository, monkeypatch, module, step, when):  # noqa: F811
    real = getattr(module, step)

    def ends(*arguments: Any, **named: Any) -> None:
        if step == "publish" and len(arguments) == 1:
            return real(*arguments)  # the one at the start
        if when == "after":
            real(*arguments, **named)
        raise Killed

    monkeypatch.setattr(module, step, ends)
    with pytest.raises(Killed):
        retrain(repository, "films", why="schedule")
    monkeypatch.setattr(module, step, real)
    check_that_the_next_one_promotes_once(repository)


@pytest.mark.parametrize(("module", "step", "when"), KILLS)
def test_killed_at_any_point_and_started_again_it_promotes_once(repository, module, step, when):  # noqa: F811
    command = [sys.executable, "-c", KILLED, str(repository), module, step, when]
    assert subprocess.run(command, cwd=REPOSITORY, timeout=300, check=False).returncode == -signal.SIGKILL
    decided = branches_of_films(repository) if git(repository, "tag", "--list", "decision/*") else []
    check_that_the_next_one_promotes_once(repository)
    if decided:
        assert branches_of_films(repository) == decided
        assert tip(repository, decided[0]) == tip(repository, "decision/films/1")


def check_that_the_next_one_promotes_once(root: Path) -> None:
    """Whatever the last one left: this one promotes, or the last one has, and there is nothing over."""
    assert retrain(root, "films", why="schedule").verdict in ("promoted", "nothing")
    assert champion(root) == read_live(root)["films"]["tag"] == "films@v1.0.0"
    tags = git(root, "tag", "--list").splitlines()
    assert sorted(tags) == ["decision/films/1", "films#champion#1", "films@v1.0.0"]
    assert git(root, "rev-list", "--count", f"main..{LIVE}") == "1"
    assert len(branches_of_films(root)) == 1
    assert len(git(root, "worktree", "list").splitlines()) == 1
    assert [found.name for found in (root / ".mill/worktrees").iterdir() if found.is_dir()] == []
    assert retrain(root, "films").verdict == "nothing"


def branches_of_films(root: Path) -> list[str]:
    return [name for name in branches(root) if name.startswith("retrain/films/")]


@pytest.mark.long
def test_a_run_killed_in_its_line_is_cleared_away_and_repeated(repository):  # noqa: F811
    make = (repository / "make.py").read_text()
    running = repository / ".mill/running"
    slow = f"import time, os\nopen({str(running)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    write_text(repository / "make.py", slow + make)
    git(repository, "commit", "-qam", "slow")
    code = f"from pathlib import Path; from flows.retrain import retrain; retrain(Path({str(repository)!r}), 'films')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)
    try:
        wait_for_a_number(running, process)
        with pytest.raises(Busy, match=f"since .* by process {process.pid}"):
            retrain(repository, "films")
    finally:
        process.kill()
        process.wait()
    write_text(repository / "make.py", make)
    git(repository, "commit", "-qam", "quick again")
    assert retrain(repository, "films").verdict == "promoted"
    with pytest.raises(ProcessLookupError):
        os.kill(int(running.read_text()), 0)  # the stage of the killed run has ended too
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert len(branches(repository)) == 3


# The worktree's own `mill`, whose gate is hard of hearing.
OWN_PACKAGE = f"__path__.append({str(Path(flows.__file__).parent)!r})\n"
OWN_COMMAND = f"""
import importlib.util, os, signal, sys, time
from pathlib import Path

def judge():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Path("HOME/.mill/judging").write_text(str(os.getpid()))
    while not Path("HOME/.mill/enough").exists():
        time.sleep(0.05)

def others():
    found = importlib.util.spec_from_file_location("flows.real", {str(Path(flows.__file__).parent / "cli.py")!r})
    real = importlib.util.module_from_spec(found)
    found.loader.exec_module(real)
    real.main()

main = judge if "gate" in sys.argv else others
"""


@pytest.mark.long
def test_a_gate_that_outlives_a_killed_run_keeps_the_model_and_the_worktree_to_itself(repository):  # noqa: F811
    write_text(repository / "flows/__init__.py", OWN_PACKAGE)
    write_text(repository / "flows/cli.py", OWN_COMMAND.replace("HOME", str(repository)))
    git(repository, "add", "flows")
    git(repository, "commit", "-qm", "a gate that does not listen")
    code = f"from pathlib import Path; from flows.retrain import retrain; retrain(Path({str(repository)!r}), 'films')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)
    judging, locks = repository / ".mill/judging", ("retrain/films.lock", "worktrees/films-1.lock")
    try:
        wait_for_a_number(judging, process)
    finally:
        process.kill()
        process.wait()
    assert lives(judging.read_text())
    assert [name for name in locks if is_free(repository / ".mill" / name)] == []
    write_text(repository / ".mill/enough", "")
    wait_until(lambda: not lives(judging.read_text()))
    check_that_the_next_one_promotes_once(repository)


def is_free(lock: Path) -> bool:
    with lock.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def wait_for_a_number(file: Path, process: "subprocess.Popen[bytes]") -> None:
    wait_until(lambda: process.poll() is not None or (file.exists() and file.read_text() != ""), seconds=180)
    assert process.poll() is None
