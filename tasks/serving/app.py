"""The server's routes.

`/models/{name}/predict` is for people, `/v2/…` is the Open Inference Protocol for clients that exist. An answer names
the version that gave it.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import orjson
import polars as pl
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from tasks.serving import open_inference
from tasks.serving.batcher import Busy, Retired
from tasks.serving.limits import BodyLimits
from tasks.serving.live import Live, Served, UnknownModel
from tasks.serving.metrics import Metrics
from tasks.serving.requests import BadRequest, parse_json, rows_of
from tasks.serving.settings import Serving

log = logging.getLogger(__name__)

_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_ANY_INPUT = {"oneOf": [{"type": "object"}, {"type": "array", "items": {"type": "object"}, "minItems": 1}]}


class Json(Response):
    """orjson writes numpy-free answers many times faster than json does, and refuses NaN."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def create_app(live: Live, serving: Serving) -> FastAPI:
    """The application over the models of `live`, which it starts and closes."""
    metrics = Metrics(live)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(live.start)
        yield
        await asyncio.to_thread(live.close)

    app = FastAPI(title="modelmill", lifespan=lifespan, responses=_errors(404, 422), default_response_class=Json)
    app.add_middleware(BodyLimits, max_bytes=int(serving.max_request_mb * 1e6), seconds=serving.body_seconds)
    _explain_errors(app)
    _add_health(app, live, metrics)
    _add_models(app, live, serving, metrics)
    _add_open_inference(app, live, serving, metrics)
    return app


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": _ERROR}}
    return {status: {"description": "What is wrong, in a sentence.", "content": content} for status in statuses}


def _explain_errors(app: FastAPI) -> None:
    async def bad_request(_: Request, error: Exception) -> Response:
        return Json({"error": str(error)}, status_code=getattr(error, "status", 422))

    async def unknown(_: Request, error: Exception) -> Response:
        return Json({"error": str(error)}, status_code=404)

    async def busy(_: Request, error: Exception) -> Response:
        seconds = error.retry_after if isinstance(error, Busy) else 1
        sentence = f"More is asked than can be answered now. Ask again in {seconds} s."
        return Json({"error": sentence}, status_code=429, headers={"Retry-After": str(seconds)})

    app.add_exception_handler(BadRequest, bad_request)
    app.add_exception_handler(UnknownModel, unknown)
    app.add_exception_handler(Busy, busy)


def _add_health(app: FastAPI, live: Live, metrics: Metrics) -> None:
    @app.get("/healthz", summary="Whether the process answers", responses={})
    async def healthz() -> Response:
        return Json({"status": "ok"})

    @app.get("/readyz", summary="Whether every model of live.json is in use", responses=_errors(503))
    async def readyz() -> Response:
        failures = live.failures
        if failures or not live.models:
            sentence = " ".join(failures.values()) or "No model is in use yet. Run `mill run`."
            return Json({"error": sentence, "models": live.models}, status_code=503)
        return Json({"status": "ok", "models": live.models})

    @app.get("/metrics", summary="Figures for Prometheus", responses={})
    async def prometheus() -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


def _add_models(app: FastAPI, live: Live, serving: Serving, metrics: Metrics) -> None:
    @app.get("/models", summary="The models in use")
    async def models() -> Response:
        return Json([_summary(served) for served in live.served])

    @app.get("/models/{name}", summary="A model's version, card and metrics")
    async def model(name: str) -> Response:
        served = live.get(name)
        manifest = served.release.manifest
        card = (served.release.folder / "README.md").read_text()
        return Json({**_summary(served), "metrics": manifest["metrics"], "card": card})

    @app.post(
        "/models/{name}/predict",
        summary="Answer one input, or a list of them",
        responses=_errors(400, 408, 413, 429),
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _ANY_INPUT}}}},
    )
    async def predict(name: str, request: Request) -> Response:
        started = time.perf_counter()
        served = live.get(name)
        rows, alone = rows_of(parse_json(await request.body()), served.problem, serving.max_rows)
        with metrics.request(name, len(rows)):
            served, answers = await _answer(live, name, rows)
        latency_ms = round(1000 * (time.perf_counter() - started), 3)
        listed = [
            {"id": uuid.uuid4().hex, "model": name, **answer, "latency_ms": latency_ms} for answer in answers.to_dicts()
        ]
        if alone and listed[0]["reason"]:
            raise BadRequest(f"There is no answer: {listed[0]['reason']}.")
        return Json(listed[0] if alone else listed)


def _add_open_inference(app: FastAPI, live: Live, serving: Serving, metrics: Metrics) -> None:
    def versioned(name: str, version: str | None) -> Served:
        served = live.get(name)
        if version is not None and version != served.version:
            raise UnknownModel(f"{name} {version} is not in use; {served.version} is.")
        return served

    @app.get("/v2", summary="The server", responses={})
    async def server() -> Response:
        return Json({"name": "modelmill", "version": "2", "extensions": ["binary_tensor_data"]})

    @app.get("/v2/health/live", summary="Whether the process answers", responses={})
    async def health_live() -> Response:
        return Json({"live": True})

    @app.get("/v2/health/ready", summary="Whether every model is in use", responses=_errors(503))
    async def health_ready() -> Response:
        ready = bool(live.models) and not live.failures
        return Json({"ready": ready}, status_code=200 if ready else 503)

    @app.get("/v2/models/{name}/ready", summary="Whether a model is in use")
    @app.get("/v2/models/{name}/versions/{version}/ready", summary="Whether a version is in use")
    async def ready(name: str, version: str | None = None) -> Response:
        served = versioned(name, version)
        return Json({"name": name, "ready": True, "version": served.version})

    @app.get("/v2/models/{name}", summary="A model's inputs and outputs")
    @app.get("/v2/models/{name}/versions/{version}", summary="A version's inputs and outputs")
    async def metadata(name: str, version: str | None = None) -> Response:
        served = versioned(name, version)
        inputs = {column: served.problem.columns[column] for column in served.problem.inputs}
        outputs = {"id": pl.String(), **served.answerer.columns}
        return Json(
            {
                "name": name,
                "versions": [served.version],
                "platform": "onnxruntime",
                "inputs": open_inference.tensors_of(inputs),
                "outputs": open_inference.tensors_of(outputs),
            }
        )

    @app.post("/v2/models/{name}/infer", summary="Answer tensors", responses=_errors(400, 408, 413, 429))
    @app.post("/v2/models/{name}/versions/{version}/infer", summary="Answer tensors", responses=_errors(400, 413, 429))
    async def infer(name: str, request: Request, version: str | None = None) -> Response:
        served = versioned(name, version)
        header = request.headers.get(open_inference.HEADER_LENGTH)
        inference = open_inference.read_inference(await request.body(), header, served.problem, serving.max_rows)
        with metrics.request(name, len(inference.rows)):
            served, answers = await _answer(live, name, inference.rows)
        for number, reason in enumerate(answers["reason"]):
            if reason:
                raise BadRequest(f"Row {number}: there is no answer: {reason}.")
        ids = pl.Series("id", [uuid.uuid4().hex for _ in range(len(answers))])
        columns = answers.select(ids, *served.answerer.columns)
        body, length = open_inference.write_inference(columns, inference, model=name, version=served.version)
        if length is None:
            return Response(body, media_type="application/json")
        headers = {"Inference-Header-Content-Length": str(length)}
        return Response(body, media_type="application/octet-stream", headers=headers)


def _summary(served: Served) -> dict[str, Any]:
    manifest = served.release.manifest
    return {
        "model": served.model,
        "version": served.version,
        "problem": manifest["parameters"]["problem"],
        **_tag(served),
    }


def _tag(served: Served) -> dict[str, Any]:
    return {name: served.entry[name] for name in ("number", "tag") if name in served.entry}


async def _answer(live: Live, name: str, rows: pl.DataFrame) -> tuple[Served, pl.DataFrame]:
    """The answers, and the version that gave them all."""
    while True:
        served = live.get(name)
        try:
            future: Future[pl.DataFrame] = served.batcher.submit(rows)
        except Retired:  # replaced between the two lines above
            continue
        return served, await asyncio.wrap_future(future)
