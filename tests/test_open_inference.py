"""The Open Inference Protocol, asked by Triton's own client and by hand: tasks/serving/open_inference.py."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.release import read_release
from tests.conftest import REPOSITORY, Line
from tests.model_server import Running, running, use

TEXTS = ["a warm and moving film", "dull", "🎬 très bien"]


@pytest.fixture(scope="module")
def root(released: Line, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inference")
    shutil.copytree(released.paths.release, root / "one")
    use(root, read_release(root / "one"))
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Running]:
    with running(root) as server:
        yield server


@pytest.fixture(scope="module")
def triton(server: Running, root: Path) -> dict[str, Any]:
    """What Triton's client saw, in an environment of its own."""
    python = REPOSITORY / ".venv-clients/triton/bin/python"
    if not python.exists():
        pytest.skip("Triton's client is not installed: make .venv-clients/triton/.installed")
    address, version = server.url.removeprefix("http://"), read_release(root / "one").version
    command = [str(python), str(REPOSITORY / "tests/clients/triton.py"), address, "tiny", version, *TEXTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_triton_finds_the_server_and_the_model_ready(triton: dict[str, Any], root: Path) -> None:
    assert all(triton["ready"])
    assert not any(triton["not_ready"])
    assert triton["server"]["extensions"] == ["binary_tensor_data"]
    assert triton["model"]["versions"] == [read_release(root / "one").version]
    assert triton["model"]["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert {"name": "probabilities", "datatype": "FP64", "shape": [-1, 2]} in triton["model"]["outputs"]


def test_triton_gets_the_answers_that_people_get(triton: dict[str, Any], server: Running) -> None:
    plain = server.predict([{"text": text} for text in TEXTS]).json()
    assert len(triton["answers"]) == 4  # binary or not, in and out
    for answer in triton["answers"]:
        assert (answer["id"], answer["names"]) == ("r1", ["label", "probabilities"])
        assert answer["labels"] == [one["label"] for one in plain]
        for got, expected in zip(answer["probabilities"], plain, strict=True):
            assert got == pytest.approx(expected["probabilities"])


def test_triton_gets_every_output_where_it_names_none(triton: dict[str, Any]) -> None:
    assert triton["every_output"] == ["id", "label", "probability", "probabilities"]


def test_triton_hears_what_is_wrong(triton: dict[str, Any]) -> None:
    no_input, no_model, no_output, no_answer = triton["errors"]
    assert "There is no input 'txt'" in no_input
    assert "No model 'other' is in use" in no_model
    assert "There is no output 'lable'" in no_output
    assert "Row 1: there is no answer: text is empty" in no_answer


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"], **changes}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "Expected an object with `inputs`"),
        ({"inputs": [7]}, "Each input is an object"),
        ({"inputs": [tensor(shape=[2])]}, "asks for 2 elements; 1 came"),
        ({"inputs": [tensor(shape=["1"])]}, "shape has to be a list of whole numbers"),
        ({"inputs": [tensor(shape=[2**40])]}, "shape has to be a list of whole numbers"),
        ({"inputs": [tensor(shape=[True])]}, "shape has to be a list of whole numbers"),
        ({"inputs": [tensor(datatype="FP32", data=[1.0])]}, "datatype has to be BYTES"),
        ({"inputs": [tensor(data=[1])]}, "text has to be a string"),
        ({"inputs": [tensor(data=[None])]}, "null is no value"),
        ({"inputs": [tensor(data=None)]}, "needs data"),
        ({"inputs": [tensor(data=[["a"], "b"], shape=[2])]}, "mixes lists and values"),
        ({"inputs": [tensor(data=[], shape=[0])]}, "from 1 to 32"),
        ({"inputs": [tensor(parameters={"binary_data_size": 10})]}, "binary_data_size"),
        ({"inputs": [tensor(parameters={"binary_data_size": True})]}, "binary_data_size"),
        ({"inputs": [tensor(parameters=7)]}, "parameters is an object"),
        ({"inputs": []}, "The input text is missing"),
        ({"inputs": [tensor()], "id": 7}, "id is a string"),
        ({"inputs": [tensor()], "outputs": [7]}, "outputs is a list of objects"),
    ],
)
def test_what_is_wrong_with_tensors_is_said(server: Running, content: Any, sentence: str) -> None:
    answer = server.client.post("/v2/models/tiny/infer", json=content)
    assert answer.status_code == 422
    assert sentence in answer.json()["error"]


@pytest.mark.parametrize(
    ("blob", "size", "sentence"),
    [
        (b"\x01\x00\x00\x00a" + b"more", 5, "bytes stand behind the last tensor"),
        (b"\xff\x00\x00\x00a", 5, "ends beyond the tensor"),
        (b"\x01\x00", 2, "ends beyond the tensor"),
        (b"\x01\x00\x00\x00\xff", 5, "element 0 is not UTF-8"),
    ],
)
def test_what_is_wrong_with_binary_tensors_is_said(server: Running, blob: bytes, size: int, sentence: str) -> None:
    head = (
        b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": %d}}]}'
        % size
    )
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = server.client.post("/v2/models/tiny/infer", content=head + blob, headers=headers)
    assert answer.status_code == 422
    assert sentence in answer.json()["error"]


@pytest.mark.parametrize("length", ["-1", "a", "1000000", "9" * 40, "0" * 5000, "0" * 12 + "9" * 5000, "²"])
def test_a_header_that_is_no_length_is_refused(server: Running, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length.encode()}
    answer = server.client.post("/v2/models/tiny/infer", content=b"{}", headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 400


def test_nested_data_and_a_column_of_one_say_the_same_as_flat_data(server: Running) -> None:
    given = [tensor(), tensor(shape=[1, 1], data=[["a"]]), tensor(shape=[1, 1])]
    answers = [server.client.post("/v2/models/tiny/infer", json={"inputs": [one]}).json() for one in given]
    assert len({str(answer["outputs"][3]["data"]) for answer in answers}) == 1
