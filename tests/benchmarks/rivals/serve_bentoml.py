"""The same model behind BentoML, with its adaptive batching. python serve_bentoml.py RELEASE PORT"""

import os
import subprocess
import sys
from pathlib import Path

SERVICE = """
import sys
from pathlib import Path

import bentoml

sys.path.insert(0, {here!r})
from model import Model


@bentoml.service(workers=1, traffic={{"timeout": 120, "max_concurrency": 10000}})
class Batched:
    def __init__(self):
        self.model = Model(Path({release!r}))

    @bentoml.api(batchable=True, batch_dim=0, max_batch_size=256, max_latency_ms=60000)
    def answer(self, texts: list[str]) -> list[dict]:
        return self.model.answer(texts)


@bentoml.service(workers=1, traffic={{"timeout": 120, "max_concurrency": 10000}})
class Classifier:
    batched = bentoml.depends(Batched)

    @bentoml.api(route="/predict")
    async def predict(self, text: str) -> dict:
        return (await self.batched.to_async.answer([text]))[0]

    @bentoml.api(route="/predict/list")
    async def predict_list(self, texts: list[str]) -> list[dict]:
        return await self.batched.to_async.answer(texts)
"""

if __name__ == "__main__":
    Path("service.py").write_text(SERVICE.format(here=str(Path(__file__).parent), release=sys.argv[1]))
    command = [str(Path(sys.executable).parent / "bentoml"), "serve", "service:Classifier", "--port", sys.argv[2]]
    subprocess.run([*command, "--host", "127.0.0.1"], check=True, env={**os.environ, "BENTOML_DO_NOT_TRACK": "True"})
