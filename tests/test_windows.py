"""How predictions are cut into windows."""

from itertools import pairwise

import pytest

from tasks.windows import cut


@pytest.mark.parametrize(("num", "rows"), [(0, []), (99, []), (100, [100]), (399, [100, 100, 100]), (1099, [100] * 10)])
def test_windows_are_whole_and_a_rest_waits(num: int, rows: list[int]) -> None:
    assert [window.num_rows for window in cut("v", range(1, num + 1), 100, most=10)] == rows


def test_a_backlog_becomes_fewer_windows_and_larger_ones_without_a_rest() -> None:
    windows = cut("v", range(1, 1_000_008), 100, most=10)
    assert len(windows) == 10
    assert sum(window.num_rows for window in windows) == 1_000_007
    assert {window.num_rows for window in windows} <= {100_000, 100_001}
    assert all(after.first == before.last + 1 for before, after in pairwise(windows))


def test_a_window_spans_the_numbers_of_its_own_version_alone() -> None:
    [window] = cut("v", [3, 9, 10, 40], 4, most=10)
    assert (window.first, window.last, window.num_rows) == (3, 40, 4)
