"""An exported model with weights of 8 bits, in one of two ways. What either costs in quality, export measures."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

# Neighbouring weights of a column that share a scale in `by_blocks`, and as many of the activations that they meet.
BLOCK = 32

_INT8_ACTIVATIONS = 4  # ONNX Runtime's `accuracy_level` of MatMulNBits
_TABLE = "Gather"  # an embedding is looked up by this operator


def whole(source: Path, target: Path) -> None:
    """A scale for each column of weights, and one for all activations of a product, drawn at run time.

    The fastest, and a quarter of the size. The weights take seven of their eight bits: without VNNI a processor adds
    two products of eight bits in sixteen, which do not hold them, so that the same file would answer worse there. An
    embedding's table has one scale.
    """
    with _quietly():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            _loaded(source),
            target,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm", _TABLE],
        )


def by_blocks(source: Path, target: Path) -> None:
    """A scale for each BLOCK of weights, and of activations: one large activation costs its neighbours alone.

    Decoders have such activations (Dettmers et al. 2022). A row's activations are scaled without those of the rows
    beside it. Many rows at once take longer than as `whole`, and only ONNX Runtime knows the operator, MatMulNBits. An
    embedding's table has one scale.
    """
    with _quietly():
        from onnxruntime.quantization import quantize_dynamic
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(_loaded(source), bits=8, block_size=BLOCK, accuracy_level=_INT8_ACTIVATIONS)
        quantizer.model.replace_gemm_with_matmul()
        quantizer.process()
        quantizer.model.topological_sort()
        quantize_dynamic(quantizer.model.model, target, op_types_to_quantize=[_TABLE])


COMPRESSIONS: Mapping[str, Callable[[Path, Path], None]] = {"int8": whole, "int8_blocks": by_blocks}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without ONNX Runtime's advice on convolutions, its line for each node, and its setting up of all logging."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)  # what has a handler is not set up
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(disabled)
        root.removeHandler(handler)


def _loaded(source: Path) -> "ModelProto":
    """The model, with what it would transpose at each run transposed.

    Only a product with a stored weight is compressed, and what writes has its embedding's weights a second time in its
    last layer, transposed.
    """
    import onnx

    model = onnx.load(source)
    _turn_weights(model.graph)
    return model


def _turn_weights(graph: "GraphProto") -> None:
    from onnx import numpy_helper

    stored = {weight.name: weight for weight in graph.initializer}
    turned_from = set()
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in stored]:
        axes = next((list(given.ints) for given in node.attribute if given.name == "perm"), None)
        turned = numpy_helper.to_array(stored[node.input[0]]).transpose(axes)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(turned), node.output[0]))
        graph.node.remove(node)
        turned_from.add(node.input[0])
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for name in turned_from - read:
        graph.initializer.remove(stored[name])
