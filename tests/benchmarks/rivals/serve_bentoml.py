"""The same model behind BentoML with its adaptive batching, as its documentation has it.

python serve_bentoml.py RELEASE PORT. It takes {"texts": [...]}: what is batched has to be a list.
"""

import os
import sys
from pathlib import Path
from typing import Any

import bentoml
from model import Model


@bentoml.service(workers=1, traffic={"timeout": 120, "max_concurrency": 1000}, metrics={"enabled": False})
class Classifier:
    """A batch is of texts, of however many requests."""

    def __init__(self) -> None:
        self.model = Model(Path(os.environ["RELEASE"]))

    # The latency is a deadline after which requests are turned away, and no time to wait for others.
    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=60_000)
    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        return self.model.answer(texts)


if __name__ == "__main__":
    here = Path.cwd()
    settings = {"RELEASE": sys.argv[1], "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(here / "bentoml")}
    command = [sys.executable, "-m", "bentoml", "serve", "serve_bentoml:Classifier", "--host", "127.0.0.1"]
    command += ["--port", sys.argv[2], "--working-dir", str(Path(__file__).parent)]
    os.execve(sys.executable, command, {**os.environ, **settings})
