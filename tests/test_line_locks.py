"""The line beside somebody's own dvc: it waits for DVC's locks, says for whom, and holds what its stages work with."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.git import git
from flows.line import run_line
from flows.scheduling import Scheduler
from flows.stages import LineError
from tasks.shards import write_text
from tests import line_toy as toy
from tests.waiting import wait_until

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("served")]


@pytest.fixture
def branches(tmp_path) -> Path:
    return toy.make_branches(tmp_path / "toy")


HOLD = """
import sys, time
from pathlib import Path
from dvc.repo import Repo
with Repo().lock:
    Path("held").touch()
    time.sleep(float(sys.argv[1]))
"""


@pytest.fixture
def holder(branches) -> Iterator[Callable[[float], subprocess.Popen[bytes]]]:
    """Start a process that holds DVC's lock for so many seconds."""
    started = []

    def hold(seconds: float) -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen([sys.executable, "-c", HOLD, str(seconds)], cwd=branches))
        wait_until((branches / "held").exists)
        return started[-1]

    yield hold
    for process in started:
        process.kill()
        process.wait()


def test_where_somebodys_own_dvc_holds_the_lock_it_waits_and_says_for_whom(branches, holder, capfd):
    process = holder(6)
    ended = toy.line(branches, ["one"])
    assert not ended.failed
    said = capfd.readouterr().err
    assert f"waiting: process {process.pid} (`python" in said
    assert ", since " in said
    assert said.count("waiting:") == 1


def test_it_does_not_wait_for_ever(branches, holder):
    process = holder(60)
    with pytest.raises(LineError, match=rf"process {process.pid} .* longer than 0.01 minutes .*lock_wait_minutes"):
        toy.line(branches, params=toy.PARAMS.model_copy(update={"lock_wait_minutes": 0.01}))
    assert not (branches / "c-one.txt").exists()


def test_stopped_while_it_waits_nothing_has_failed(branches, holder, monkeypatch):
    class StoppedSoon(Scheduler):
        def run(self, watched):
            holder(60)
            threading.Timer(2, lambda: self.stop("somebody said so")).start()
            return super().run(watched)

    monkeypatch.setattr("flows.line.Scheduler", StoppedSoon)
    ended = toy.line(branches)
    assert set(toy.outcomes(ended)) == {"not run"}


def test_a_stage_that_somebodys_own_dvc_is_running_is_waited_for_and_taken_as_that_made_it(branches, capfd):
    assert toy.dvc(branches, "repro", "-q", "-s", "collect@one") == 0
    write_text(branches / "clean.sh", "touch started; sleep 5; " + toy.CLEAN)
    somebody = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "-q", "-s", "clean@one"], cwd=branches)
    wait_until((branches / "started").exists)
    ended = toy.line(branches)
    assert somebody.wait() == 0
    assert toy.outcomes(ended)["cached"] == ["clean@one", "collect@one"]
    assert not ended.failed
    assert f"process {somebody.pid} (" in capfd.readouterr().err
    assert toy.dvc(branches, "status", "-q") == 0


def test_while_a_stage_runs_nobodys_dvc_can_write_to_its_files(branches):
    write_text(branches / "slow", "")
    line = toy.in_a_process(branches)
    try:
        wait_until((branches / "pid").exists)
        assert toy.dvc(branches, "repro", "-q", "-s", "clean@one") != 0
        assert toy.dvc(branches, "repro", "-q", "-s", "collect@two") == 0
    finally:
        line.terminate()
        line.communicate(timeout=60)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"dvc.yaml": "stages: {a: {cmd: [}"}, "dvc.yaml"),
        (
            {"dvc.yaml": "stages:\n  a:\n    cmd: x\n    deps: [a.txt]\n    outs: [a.txt]\n"},
            "both a dependency and an output",
        ),
        ({"dvc.yaml": "stages:\n  a:\n    cmd: echo ${nothing}\n"}, "nothing"),
        ({"params.yaml": "a: 1"}, "no dvc.yaml has a stage"),
    ],
)
def test_what_dvc_cannot_read_is_said_before_anything_runs(tmp_path, files, said):
    root = toy.make(tmp_path / "toy", files)
    with pytest.raises(LineError, match=said):
        toy.line(root)


def test_outside_of_a_dvc_repository_the_message_says_what_to_do(tmp_path):
    with pytest.raises(LineError, match="dvc init"), toy.standing_in(tmp_path):
        run_line(Path(), [], known=[], params=toy.PARAMS)


def test_locks_by_hard_links_and_staging_by_dvc_work_as_with_dvc_repro(branches, tmp_path):
    config = "[core]\n    analytics = false\n    autostage = true\n    hardlink_lock = true\n"
    write_text(branches / ".dvc/config", config)
    other = toy.twin(branches, tmp_path / "other")
    assert not toy.line(branches).failed
    assert toy.dvc(other, "repro", "-q") == 0
    assert toy.written(branches) == toy.written(other)
    staged = [git(root, "diff", "--cached", "--name-only") for root in (branches, other)]
    assert staged[0] == staged[1]
    assert "dvc.lock" in staged[0]
