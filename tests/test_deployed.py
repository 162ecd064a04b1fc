"""How runs that start by themselves end where another one is at work: flows/deployed.py."""

import json
import os
from pathlib import Path

import pytest

from flows import deployed
from flows.locks import only_one
from flows.monitored import Watched
from flows.worktree import Busy
from tests.scheduled import make_repository


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = make_repository(tmp_path)
    monkeypatch.chdir(root)
    return root


def test_a_retrain_that_finds_another_one_at_work_is_not_needed(repository: Path) -> None:
    with only_one(repository, "films", "by hand"):
        ended = deployed.retrain.fn("films")
    assert (ended.type.value, ended.name) == ("COMPLETED", "Busy")
    assert ended.message is not None
    assert "films is being retrained already" in ended.message


def test_where_the_other_one_seems_to_hang_it_is_a_failure_so_that_it_is_told(repository: Path) -> None:
    with only_one(repository, "films", "by hand"):
        file = repository / ".mill/retrain/films.lock"
        file.write_text(json.dumps({**json.loads(file.read_text()), "since": "2020-02-02T02:02:02+00:00"}))
        ended = deployed.retrain.fn("films")
    assert ended.type.value == "FAILED"
    assert ended.message is not None
    assert "already, since 2020-02-02T02:02:02+00:00, by process" in ended.message
    assert "more than 9000 hours (silence_hours), so it seems to hang" in ended.message


def test_a_monitor_says_since_when_it_has_been_looking(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "films")
    with watched.alone():
        os.utime(watched.folder / "lock", (1580608922, 1580608922))
        with (
            pytest.raises(Busy, match=r"already by another `mill monitor`, since 2020-02-02T02:02:02\+00:00") as busy,
            watched.alone(),
        ):
            pass
    assert busy.value.since is not None
    with watched.alone(), pytest.raises(Busy) as busy, watched.alone():
        pass
    assert busy.value.since is not None
    assert busy.value.since.year > 2020
