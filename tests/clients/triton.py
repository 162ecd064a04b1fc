"""Asks a server by Triton's own client, in that client's environment, and prints what came as JSON.

python tests/clients/triton.py HOST:PORT MODEL VERSION TEXT…
"""

import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException


def main(address: str, model: str, version: str, *texts: str) -> None:
    client = InferenceServerClient(address)
    ready = [
        client.is_server_live(),
        client.is_server_ready(),
        client.is_model_ready(model),
        client.is_model_ready(model, version),
    ]
    not_ready = [client.is_model_ready("other"), client.is_model_ready(model, "sha-00000000")]
    answers = []
    for binary_in, binary_out in itertools.product((True, False), repeat=2):
        wanted = [InferRequestedOutput(name, binary_data=binary_out) for name in ("label", "probabilities")]
        result = client.infer(model, [given(texts, binary=binary_in)], outputs=wanted, request_id="r1")
        answers.append(
            {
                "id": result.get_response()["id"],
                "names": [output["name"] for output in result.get_response()["outputs"]],
                "labels": [one.decode() if isinstance(one, bytes) else one for one in result.as_numpy("label")],
                "probabilities": result.as_numpy("probabilities").tolist(),
            }
        )
    every = client.infer(model, [given(texts)], model_version=version).get_response()["outputs"]
    report = {
        "ready": ready,
        "not_ready": not_ready,
        "server": client.get_server_metadata(),
        "model": client.get_model_metadata(model),
        "answers": answers,
        "every_output": [output["name"] for output in every],
        "errors": [
            said(lambda: client.infer(model, [given(texts, name="txt")])),
            said(lambda: client.infer("other", [given(texts)])),
            said(lambda: client.infer(model, [given(texts)], outputs=[InferRequestedOutput("lable")])),
            said(lambda: client.infer(model, [given(("a film", " "))])),
        ],
    }
    client.close()
    print(json.dumps(report))


def given(texts: tuple[str, ...], *, name: str = "text", binary: bool = True) -> InferInput:
    tensor = InferInput(name, [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array(texts, dtype=object), binary_data=binary)
    return tensor


def said(ask: Callable[[], Any]) -> str | None:
    try:
        ask()
    except InferenceServerException as error:
        return str(error.message())
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
