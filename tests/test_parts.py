import random

import numpy as np
import polars as pl
import pytest

from tasks.parts import Parts


@pytest.fixture
def parts(tmp_path):
    """2,500 rows in files of 1,300, none, 1 and 1,199."""
    parts = Parts(tmp_path)
    rows = pl.DataFrame({"id": [f"row-{number}" for number in range(2500)], "number": range(2500)})
    for start, length in ((0, 1300), (1300, 0), (1300, 1), (1301, 1199)):
        parts.add(rows.slice(start, length))
    return parts


@pytest.mark.parametrize("numbers", [[0], [2499, 0], [1300], [1299, 1300, 1301], [7, 7]])
def test_rows_come_back_in_the_order_that_is_asked_for(parts, numbers):
    assert parts.read(np.array(numbers))["id"].to_list() == [f"row-{number}" for number in numbers]


def test_all_rows_come_back_in_any_order(parts):
    numbers = list(range(2500))
    random.Random(1).shuffle(numbers)
    assert parts.read(np.array(numbers))["number"].to_list() == numbers
