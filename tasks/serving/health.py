"""Whether the server is well: for people, probes and Prometheus."""

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from tasks.serving.replies import Json, errors, gives
from tasks.serving.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """/healthz, /readyz, /metrics."""
    live = service.live

    @app.get("/healthz", summary="Whether the process answers", response_class=Json, responses=gives("status"))
    async def healthz() -> Response:
        return Json({"status": "ok"})

    @app.get(
        "/readyz",
        summary="Whether every model answers, and the journal keeps it",
        response_class=Json,
        responses=gives("status", "models", "failures") | errors(503),
    )
    async def readyz() -> Response:
        """Well where every model has a version that answers, and the journal takes what they answer.

        One that failed to take over leaves the one before. `failures` says which could not, and why; `journal` among
        them why nothing can be written down.
        """
        failures, models = live.failures, live.models
        if trouble := service.journal.trouble:
            failures["journal"] = trouble
        if live.missing or not models or trouble:
            sentence = " ".join(failures.values()) or "No model is in use yet. Run `mill run`."
            return Json({"error": sentence, "models": models, "failures": failures}, status_code=503)
        return Json({"status": "ok", "models": models, "failures": failures})

    @app.get("/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse)
    async def prometheus(request: Request) -> Response:
        service.admit(request, "admin")
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
