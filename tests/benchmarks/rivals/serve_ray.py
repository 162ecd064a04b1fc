"""The same model behind Ray Serve with its batching, as its documentation has it. python serve_ray.py RELEASE PORT"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 1})
class Classifier:
    """Takes a text or a list of them; a batch is of requests."""

    def __init__(self, folder: str, release: str) -> None:
        sys.path.insert(0, folder)
        from model import Model

        self.model = Model(Path(release))

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def answer(self, batch: list[list[str]]) -> list[list[dict[str, Any]]]:
        answers = iter(self.model.answer([text for texts in batch for text in texts]))
        return [[next(answers) for _ in texts] for texts in batch]

    async def __call__(self, request: Request) -> Response:
        rows = await request.json()
        return JSONResponse(await self.answer([row["text"] for row in (rows if isinstance(rows, list) else [rows])]))


if __name__ == "__main__":
    release, port = sys.argv[1:]
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run(Classifier.bind(str(Path(__file__).parent), release), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()  # with all that it started
