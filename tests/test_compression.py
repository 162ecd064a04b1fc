"""Weights of 8 bits on a product made by hand; tests/test_export.py has them in whole models."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tasks.compression import BLOCK, COMPRESSIONS
from tasks.runtime import open_session

RANDOM = np.random.default_rng(1)
WEIGHTS_KN = RANDOM.normal(size=(3 * BLOCK // 2, 5)).astype(np.float32)  # half a block is left over
ROWS_MK = RANDOM.normal(size=(4, len(WEIGHTS_KN))).astype(np.float32)


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A file with rows times WEIGHTS_KN."""
    given, found = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", None]) for name in ("rows", "found"))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["rows", "weights"], ["found"], name="product")],
        "product",
        [given],
        [found],
        [numpy_helper.from_array(WEIGHTS_KN, "weights")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "fp32.onnx")
    return tmp_path / "fp32.onnx"


def error(product: Path, compression: str, rows_MK: np.ndarray) -> np.ndarray:
    """How far each number is from what it should be, beside the root mean square of the product of ROWS_MK."""
    small = product.with_name(f"{compression}.onnx")
    COMPRESSIONS[compression](product, small)
    (found_MN,) = open_session(small, 1).run(None, {"rows": rows_MK})
    expected_MN = rows_MK.astype(np.float64) @ WEIGHTS_KN
    return np.asarray(np.abs(found_MN - expected_MN) / np.sqrt(((ROWS_MK @ WEIGHTS_KN) ** 2).mean()))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_product_is_nearly_what_it_was_also_where_blocks_do_not_come_out_even(
    product: Path, compression: str
) -> None:
    errors_MN = error(product, compression, ROWS_MK)
    assert 0 < errors_MN.max() < 0.03


def test_by_blocks_one_large_activation_costs_its_neighbours_alone(product: Path) -> None:
    rows_MK = ROWS_MK.copy()
    rows_MK[0, 0] = 1000.0
    whole_MN, blocks_MN = error(product, "int8", rows_MK), error(product, "int8_blocks", rows_MK)
    assert whole_MN[1:].max() > 0.3, "the rows beside it have lost nearly everything"
    assert blocks_MN[1:].max() < 0.03
