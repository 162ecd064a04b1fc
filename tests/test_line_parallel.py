"""Stages at once: as many as there are jobs, and never a lock in the way."""

from pathlib import Path

import pytest

from tests import line_toy as toy

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("served")]

STAGE = """
  s{0}:
    cmd:
      - touch $RUNS/{0}; ls $RUNS | wc -l >> $RUNS.counts
      - sleep {1}; echo {0} > s{0}.txt
      - rm $RUNS/{0}
    outs: [s{0}.txt]
"""


def side_by_side(root: Path, count: int, seconds: float, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of stages that only wait; each counts how many there are when it begins."""
    monkeypatch.setenv("RUNS", str(root.parent / "runs"))
    (root.parent / "runs").mkdir()
    return toy.make(root, {"dvc.yaml": "stages:" + "".join(STAGE.format(n, seconds) for n in range(count))})


def rounds(root: Path, count: int) -> None:
    names = sorted(f"s{number}" for number in range(12))
    for _ in range(count):
        assert toy.outcomes(toy.line(root, jobs=12, force=names)) == {"ran": names}
    assert toy.dvc(root, "status", "-q") == 0


def test_twelve_stages_at_once_meet_no_lock(tmp_path, monkeypatch):
    rounds(side_by_side(tmp_path / "toy", 12, 0.3, monkeypatch), 3)


@pytest.mark.slow
def test_twelve_stages_at_once_meet_no_lock_in_fifty_rounds(tmp_path, monkeypatch):
    rounds(side_by_side(tmp_path / "toy", 12, 0.3, monkeypatch), 50)


@pytest.mark.parametrize("jobs", [1, 3])
def test_as_many_stages_run_at_once_as_there_are_jobs_and_no_more(tmp_path, monkeypatch, jobs):
    root = side_by_side(tmp_path / "toy", 6, 1, monkeypatch)
    toy.line(root, jobs=jobs)
    counts = (tmp_path / "runs.counts").read_text().split()
    assert len(counts) == 6
    assert max(map(int, counts)) == jobs
