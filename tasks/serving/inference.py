"""The Open Inference Protocol's routes."""

from collections.abc import Sequence
from typing import Any

import polars as pl
from fastapi import FastAPI, Request, Response

from tasks.answers import Traced
from tasks.serving import open_inference
from tasks.serving.live import UnknownModel
from tasks.serving.replies import Json, body, errors, gives
from tasks.serving.requests import BadRequest
from tasks.serving.served import Served
from tasks.serving.service import Answered, Service

_BINARY = "Tensors. Where the request asks for binary ones: JSON, and the tensors' bytes behind it."
_TENSORS = {"type": "object", "required": ["inputs"], "properties": {"inputs": {"type": "array"}}}


def add_routes(app: FastAPI, service: Service) -> None:
    """/v2 and what is below it."""
    live, serving = service.live, service.serving

    def versioned(name: str, version: str | None) -> Served:
        served = live.get(name)
        if version is not None and version != served.version:
            raise UnknownModel(f"{name} {version} is not in use; {served.version} is.")
        return served

    @app.get("/v2", summary="The server", response_class=Json, responses=gives("name", "version", "extensions"))
    async def server() -> Response:
        return Json({"name": "modelmill", "version": app.version, "extensions": ["binary_tensor_data"]})

    @app.get("/v2/health/live", summary="Whether the process answers", response_class=Json, responses=gives("live"))
    async def health_live() -> Response:
        return Json({"live": True})

    @app.get(
        "/v2/health/ready",
        summary="Whether every model answers",
        response_class=Json,
        responses=gives("ready") | errors(503),
    )
    async def health_ready() -> Response:
        ready = bool(live.models) and not live.missing and service.journal.trouble is None
        return Json({"ready": ready} if ready else {"error": "/readyz says which and why."}, 200 if ready else 503)

    is_ready: dict[str, Any] = {"response_class": Json, "responses": gives("name", "ready", "version")}
    tensors: dict[str, Any] = {
        "response_class": Json,
        "responses": gives("name", "versions", "platform", "inputs", "outputs"),
    }

    @app.get("/v2/models/{name}/ready", summary="Whether a model is in use", **is_ready)
    @app.get("/v2/models/{name}/versions/{version}/ready", summary="Whether a version is in use", **is_ready)
    async def ready(name: str, request: Request, version: str | None = None) -> Response:
        service.admit(request, "predict")
        return Json({"name": name, "ready": True, "version": versioned(name, version).version})

    @app.get("/v2/models/{name}", summary="A model's inputs and outputs", **tensors)
    @app.get("/v2/models/{name}/versions/{version}", summary="A version's inputs and outputs", **tensors)
    async def metadata(name: str, request: Request, version: str | None = None) -> Response:
        service.admit(request, "predict")
        served = versioned(name, version)
        inputs = {column: served.problem.columns[column] for column in served.problem.inputs}
        return Json(
            {
                "name": name,
                "versions": [served.version],
                "platform": "onnxruntime",
                "inputs": open_inference.tensors_of(inputs),
                "outputs": open_inference.tensors_of(_outputs(served)),
            }
        )

    answers: dict[str, Any] = {
        "response_class": Json,
        "responses": gives("model_name", "model_version", "outputs", description=_BINARY) | errors(400, 408, 413, 503),
        "openapi_extra": body(_TENSORS),
    }

    @app.post("/v2/models/{name}/infer", summary="Answer tensors", **answers)
    @app.post("/v2/models/{name}/versions/{version}/infer", summary="Answer tensors by this version", **answers)
    async def infer(name: str, request: Request, version: str | None = None) -> Response:
        client = service.admit(request, "predict")
        served = versioned(name, version)
        header = request.headers.get(open_inference.HEADER_LENGTH)
        asked = open_inference.read_inference(
            await request.body(), header, served.problem, list(_outputs(served)), serving.max_rows
        )

        def is_whole(answering: Served, rows: Sequence[Traced]) -> None:
            """Raise what the caller has to be told instead of an answer, before one is written down."""
            if version is not None and version != answering.version:  # replaced since it was asked for
                raise UnknownModel(f"{name} {version} is not in use; {answering.version} is.")
            for number, row in enumerate(rows):
                if row.reason:
                    raise BadRequest(f"Row {number}: there is no answer: {row.reason}.")

        answered = await service.answer(name, asked.rows, request, client, accept=is_whole)
        content, length = open_inference.write_inference(
            _columns(answered),
            asked,
            model=name,
            version=answered.served.version,
            latency_ms=answered.latency_ms,
        )
        if length is None:
            return Response(content, media_type="application/json")
        headers = {"Inference-Header-Content-Length": str(length)}
        return Response(content, media_type="application/octet-stream", headers=headers)


def _outputs(served: Served) -> dict[str, pl.DataType]:
    return {"id": pl.String(), **served.answerer.columns}


def _columns(answered: Answered) -> pl.DataFrame:
    rows = [{"id": found, **row.answer} for found, row in zip(answered.ids, answered.rows, strict=True)]
    return pl.DataFrame(rows, schema=_outputs(answered.served))
