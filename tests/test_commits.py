"""Rows that are committed together, and what is known of it: tasks/commits.py."""

import threading
import time
from collections.abc import Iterator

import pytest

from tasks import commits
from tasks.commits import GroupCommit
from tests.waiting import wait_until


class Disk:
    """Keeps what is written; waits or fails where it is told to."""

    def __init__(self) -> None:
        self.written: list[list[int]] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.is_asked = threading.Event()
        self.is_broken = False

    def write(self, rows: list[int]) -> None:
        self.is_asked.set()
        assert self.may_go.wait(10)
        self.probe()
        self.written.append(rows)

    def probe(self) -> None:
        if self.is_broken:
            raise OSError("the disk is full")


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def group(disk: Disk) -> Iterator[GroupCommit[int]]:
    group = GroupCommit(disk.write, disk.probe)
    yield group
    disk.may_go.set()
    group.close()


def hold(disk: Disk, group: GroupCommit[int]) -> None:
    """Let the disk hang on a first row, so that what comes then has to wait."""
    disk.may_go.clear()
    disk.is_asked.clear()
    group.submit([0])
    assert disk.is_asked.wait(10)


def test_what_comes_during_a_commit_is_in_the_next(disk: Disk, group: GroupCommit[int]) -> None:
    hold(disk, group)
    futures = [group.submit([number, number]) for number in range(1, 4)]
    assert group.num_waiting == 7
    disk.may_go.set()
    for future in futures:
        future.result(10)
    assert disk.written == [[0], [1, 1, 2, 2, 3, 3]]
    wait_until(lambda: group.num_waiting == 0)


def test_a_commit_takes_no_more_than_so_many_rows_beyond_the_last_request(
    disk: Disk, group: GroupCommit[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "_ROWS_PER_COMMIT", 4)
    hold(disk, group)
    futures = [group.submit([number] * 3) for number in range(1, 5)]
    disk.may_go.set()
    for future in futures:
        future.result(10)
    assert [len(rows) for rows in disk.written] == [1, 6, 6]


def test_whoever_has_gone_while_waiting_is_not_written(disk: Disk, group: GroupCommit[int]) -> None:
    hold(disk, group)
    gone, stays = group.submit([1]), group.submit([2])
    assert gone.cancel()
    disk.may_go.set()
    stays.result(10)
    assert disk.written == [[0], [2]]
    wait_until(lambda: group.num_waiting == 0)


def test_a_commit_that_hangs_is_known_while_it_does(
    disk: Disk, group: GroupCommit[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "_STALLED_SECONDS", 0.05)
    assert group.stalled_seconds is None
    hold(disk, group)
    wait_until(lambda: group.stalled_seconds)
    disk.may_go.set()
    wait_until(lambda: group.stalled_seconds is None)


def test_after_a_failure_it_is_well_as_soon_as_the_disk_is_though_nobody_writes(
    disk: Disk, group: GroupCommit[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "_PROBE_SECONDS", 0.02)
    disk.is_broken = True
    with pytest.raises(OSError, match="full"):
        group.submit([1]).result(10)
    time.sleep(0.1)
    assert group.failure == "the disk is full"
    disk.is_broken = False
    wait_until(lambda: group.failure is None)
    assert disk.written == []
    group.submit([2]).result(10)
    assert disk.written == [[2]]


def test_an_end_writes_what_waits(disk: Disk) -> None:
    group = GroupCommit(disk.write, disk.probe)
    hold(disk, group)
    waiting = group.submit([1])
    disk.may_go.set()
    group.close()
    assert waiting.done()
    assert disk.written == [[0], [1]]


def test_an_end_does_not_wait_for_ever(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "_END_SECONDS", 0.05)
    group = GroupCommit(disk.write, disk.probe)
    hold(disk, group)
    group.close()
    assert disk.written == []
    disk.may_go.set()
