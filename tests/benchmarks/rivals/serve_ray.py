"""The same model behind Ray Serve, with its dynamic batching. python serve_ray.py RELEASE PORT"""

import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

sys.path.insert(0, str(Path(__file__).parent))
HERE = str(Path(__file__).parent)


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 1})
class Classifier:
    """Takes a text or a list of them; a batch is of requests."""

    def __init__(self, release: str) -> None:
        sys.path.insert(0, HERE)
        from model import Model

        self.model = Model(Path(release))

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def answer(self, requests: list[list[str]]) -> list[list[dict[str, Any]]]:
        answers = iter(self.model.answer([text for texts in requests for text in texts]))
        return [[next(answers) for _ in texts] for texts in requests]

    async def __call__(self, request: Request) -> Any:
        if request.method != "POST":
            return {}
        content = await request.json()
        return await self.answer([row["text"] for row in (content if isinstance(content, list) else [content])])


if __name__ == "__main__":
    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, _system_config={"enable_metrics_collection": False}
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(Classifier.bind(sys.argv[1]), route_prefix="/predict")
    while True:
        time.sleep(1)
