"""The Open Inference Protocol, version 2, over REST, with its extension for binary tensors.

https://github.com/kserve/open-inference-protocol and Triton's extension_binary_data: a body may be JSON followed by
the tensors' bytes, with the JSON's length in the header `Inference-Header-Content-Length`.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray

from tasks.errors import quoted
from tasks.problems import Problem
from tasks.serving.requests import BadRequest, check_lengths, frame_of, parse_json

HEADER_LENGTH = "inference-header-content-length"

_NUMPY: dict[str, str] = {
    "BOOL": "?", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class Inference:
    """A request that was understood: its rows, and how the caller wants the answer."""

    request_id: str | None
    rows: Sequence[Mapping[str, Any]]
    wanted: Mapping[str, bool]  # outputs by name: whether in binary; empty means all
    binary: bool  # the outputs that are not named


def datatype_of(dtype: pl.DataType) -> str:
    """The protocol's name for a column's type; of a list or array, that of its elements."""
    if isinstance(dtype, pl.Array | pl.List):
        return datatype_of(dtype.inner)  # type: ignore[arg-type]  # always an instance here
    names: dict[pl.DataType, str] = {
        pl.String(): "BYTES", pl.Float64(): "FP64", pl.Float32(): "FP32", pl.Int64(): "INT64", pl.Int32(): "INT32",
        pl.Boolean(): "BOOL", pl.UInt32(): "UINT32",
    }  # fmt: skip
    return names[dtype]


def tensors_of(schema: Mapping[str, pl.DataType]) -> list[dict[str, Any]]:
    """A model's inputs or outputs as its metadata names them; -1 is the number of rows, and any length of a list."""
    return [{"name": name, "datatype": datatype_of(dtype), "shape": _shape(dtype)} for name, dtype in schema.items()]


def read_inference(
    body: bytes, header_length: str | None, problem: Problem, outputs: Sequence[str], max_rows: int
) -> Inference:
    """Take a request apart; `outputs` are those that can be asked for. Raises BadRequest with what is wrong."""
    length = _header_length(header_length, len(body))
    content = parse_json(body[:length])
    if not isinstance(content, dict) or not isinstance(content.get("inputs"), list):
        raise BadRequest("Expected an object with `inputs`, a list of tensors.")
    columns: dict[str, list[Any]] = {}
    rest = memoryview(body)[length:]
    for tensor in content["inputs"]:
        name, values, rest = _read_tensor(tensor, rest, problem)
        columns[name] = values
    if len(rest):
        raise BadRequest(f"{len(rest)} bytes stand behind the last tensor.")
    missing = [name for name in problem.inputs if name not in columns]
    if missing:
        raise BadRequest(f"The input {missing[0]} is missing. This model reads {', '.join(problem.inputs)}.")
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1 or not 1 <= min(lengths) <= max_rows:
        raise BadRequest(f"Every input takes the same number of rows, from 1 to {max_rows}.")
    check_lengths(columns)
    frame = frame_of(problem, {name: columns[name] for name in problem.inputs})
    return Inference(
        _string(content.get("id"), "id"),
        frame.to_dicts(),
        _wanted(content.get("outputs"), outputs),
        _parameters(content).get("binary_data_output") is True,
    )


def write_inference(
    answers: pl.DataFrame, inference: Inference, *, model: str, version: str, latency_ms: float
) -> tuple[bytes, int | None]:
    """The answer's body, and the JSON's length in it where tensors follow in binary."""
    outputs, blobs = [], []
    for name in list(inference.wanted) or answers.columns:
        column = answers[name]
        array = _array(column)
        tensor: dict[str, Any] = {"name": name, "datatype": datatype_of(column.dtype), "shape": list(array.shape)}
        if inference.wanted.get(name, inference.binary):
            blobs.append(_bytes(array, tensor["datatype"]))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = array.ravel().tolist()
        outputs.append(tensor)
    content: dict[str, Any] = {
        "model_name": model,
        "model_version": version,
        "parameters": {"latency_ms": latency_ms},
        "outputs": outputs,
    }
    if inference.request_id is not None:
        content["id"] = inference.request_id
    head = orjson.dumps(content)
    return (head + b"".join(blobs), len(head)) if blobs else (head, None)


# Of a length that any body has.
_MOST_DIGITS = 12


def _header_length(given: str | None, size: int) -> int:
    if given is None:
        return size
    # Python refuses to read a number of thousands of digits.
    if not given.isascii() or not given.isdigit() or len(given) > _MOST_DIGITS or int(given) > size:
        raise BadRequest(f"{HEADER_LENGTH} has to be the length of the JSON, at most the body's {size} bytes.", 400)
    return int(given)


def _read_tensor(tensor: Any, rest: memoryview, problem: Problem) -> tuple[str, list[Any], memoryview]:
    """A tensor's name, its rows, and the bytes that belong to the tensors behind it."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise BadRequest("Each input is an object with name, shape, datatype and data.")
    name, shape, datatype = tensor["name"], tensor.get("shape"), tensor.get("datatype")
    if name not in problem.inputs:
        raise BadRequest(f"There is no input {quoted(name)}. This model reads {', '.join(problem.inputs)}.")
    if not isinstance(shape, list) or not _is_shape(shape):
        raise BadRequest(f"{name}: shape has to be a list of whole numbers, rows first.")
    expected = datatype_of(problem.columns[name])
    if datatype != expected:
        raise BadRequest(f"{name}: datatype has to be {expected}.")
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        values = _flat(tensor.get("data"))
    elif isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= len(rest):
        values, rest = _from_bytes(rest[:size], expected, name), rest[size:]
    else:
        raise BadRequest(f"{name}: binary_data_size has to be a number of bytes that stand behind the JSON.")
    num_elements = math.prod(shape)
    if len(values) != num_elements:
        raise BadRequest(f"{name}: shape {shape} asks for {num_elements} elements; {len(values)} came.")
    return name, _rows(values, shape, name, isinstance(problem.columns[name], pl.List | pl.Array)), rest


def _rows(values: list[Any], shape: list[int], name: str, is_list: bool) -> list[Any]:
    if is_list:
        width = len(values) // shape[0] if shape[0] else 0
        return [values[start : start + width] for start in range(0, len(values), max(width, 1))]
    if any(value is None for value in values):
        raise BadRequest(f"{name}: null is no value.")
    return values  # [N] and [N, 1] say the same


def _is_shape(shape: list[Any]) -> bool:
    return 1 <= len(shape) <= 4 and all(
        isinstance(extent, int) and not isinstance(extent, bool) and 0 <= extent < 2**31 for extent in shape
    )


def _flat(data: Any) -> list[Any]:
    """The protocol allows nested lists in row-major order as well as flat ones."""
    if not isinstance(data, list):
        raise BadRequest("Each input needs data, a list, or binary_data_size.")
    values: list[Any] = data
    while values and isinstance(values[0], list):
        if not all(isinstance(part, list) for part in values):
            raise BadRequest("data mixes lists and values.")
        values = [value for part in values for value in part]
    return values


def _from_bytes(blob: memoryview, datatype: str, name: str) -> list[Any]:
    if datatype != "BYTES":
        dtype = np.dtype(_NUMPY[datatype])
        if len(blob) % dtype.itemsize:
            raise BadRequest(f"{name}: {len(blob)} bytes are no whole number of {datatype}.")
        return list(np.frombuffer(blob, dtype).tolist())
    values, at = [], 0
    while at < len(blob):
        if at + 4 > len(blob) or at + 4 + (size := struct.unpack_from("<I", blob, at)[0]) > len(blob):
            raise BadRequest(f"{name}: an element of BYTES ends beyond the tensor.")
        try:
            values.append(str(blob[at + 4 : at + 4 + size], "utf-8"))
        except UnicodeDecodeError:
            raise BadRequest(f"{name}: element {len(values)} is not UTF-8.") from None
        at += 4 + size
    return values


def _array(column: pl.Series) -> NDArray[Any]:
    if column.dtype == pl.String():
        return np.array(["" if value is None else value for value in column.to_list()], dtype=object)
    return column.to_numpy()


def _bytes(array: NDArray[Any], datatype: str) -> bytes:
    if datatype != "BYTES":
        return array.astype(_NUMPY[datatype]).tobytes()
    encoded = [value.encode() for value in array.ravel()]
    return b"".join(struct.pack("<I", len(value)) + value for value in encoded)


def _wanted(outputs: Any, known: Sequence[str]) -> dict[str, bool]:
    if outputs is None:
        return {}
    if not isinstance(outputs, list) or not all(
        isinstance(output, dict) and isinstance(output.get("name"), str) for output in outputs
    ):
        raise BadRequest("outputs is a list of objects with a name.")
    unknown = [output["name"] for output in outputs if output["name"] not in known]
    if unknown:
        raise BadRequest(f"There is no output {quoted(unknown[0])}. Known: {', '.join(known)}.")
    return {output["name"]: _parameters(output).get("binary_data") is True for output in outputs}


def _parameters(content: Mapping[str, Any]) -> Mapping[str, Any]:
    found = content.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadRequest("parameters is an object.")
    return found


def _string(value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise BadRequest(f"{name} is a string.")
    return value


def _shape(dtype: pl.DataType) -> list[int]:
    if isinstance(dtype, pl.Array):
        return [-1, *dtype.shape]
    return [-1, -1] if isinstance(dtype, pl.List) else [-1]
