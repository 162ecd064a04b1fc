"""How many lanes and threads a model gets from the cores there are: tasks/serving/lanes.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.serving import lanes
from tasks.serving.lanes import cores, spread
from tests.conftest import REPOSITORY


@pytest.fixture
def quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the kernel says what a container may spend; it is not there yet."""
    monkeypatch.setattr(lanes, "_QUOTA", tmp_path / "cpu.max")
    return tmp_path / "cpu.max"


def bound() -> int:
    return len(os.sched_getaffinity(0))


def test_without_control_groups_it_is_the_cores_that_the_process_is_bound_to(quota: Path) -> None:
    assert cores() == bound()


@pytest.mark.parametrize("said", ["max 100000\n", "", "none\n", "100000\n", "100000 0\n"])
def test_where_the_kernel_sets_no_limit_none_is_taken(quota: Path, said: str) -> None:
    quota.write_text(said)
    assert cores() == bound()


@pytest.mark.parametrize(
    ("said", "most"), [("50000 100000\n", 1), ("100000 100000\n", 1), ("150000 100000\n", 2), ("6400000 100000\n", 64)]
)
def test_a_container_may_use_what_it_may_spend_in_whole_cores(quota: Path, said: str, most: int) -> None:
    quota.write_text(said)
    assert cores() == min(bound(), most)


def test_a_process_that_is_bound_to_one_core_counts_one() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{one}]); from tasks.serving.lanes import cores; print(cores())"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("threads", "expected"), [(1, (1, 1)), (2, (2, 1)), (3, (2, 2)), (4, (2, 3)), (8, (2, 7)), (16, (4, 13))]
)
def test_lanes_and_the_sessions_threads_are_as_many_as_there_are_cores(threads: int, expected: tuple[int, int]) -> None:
    num_lanes, num_threads = spread(threads)
    assert (num_lanes, num_threads) == expected
    # A lane's own thread computes as well: one is counted twice.
    assert num_lanes + num_threads == threads + 1


def test_there_is_always_a_lane_and_a_thread_and_never_more_than_cores() -> None:
    for threads in range(1, 257):
        num_lanes, num_threads = spread(threads)
        assert 1 <= num_lanes <= threads
        assert 1 <= num_threads <= threads
