"""The same model behind LitServe, as its documentation has it. python serve_litserve.py RELEASE PORT"""

import sys
from pathlib import Path
from typing import Any

import litserve
from model import Model


class Classifier(litserve.LitAPI):
    """Takes a text or a list of them; a batch is of requests."""

    def setup(self, device: str) -> None:
        self.model = Model(Path(sys.argv[1]))

    # LitServe takes an annotation for how to parse a request.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return [row["text"] for row in (request if isinstance(request, list) else [request])]

    def predict(self, batch: list[list[str]]) -> list[list[dict[str, Any]]]:
        answers = iter(self.model.answer([text for texts in batch for text in texts]))
        return [[next(answers) for _ in texts] for texts in batch]

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    api = Classifier(max_batch_size=32, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
