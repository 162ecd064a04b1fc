"""The plain routes: ask a model, and say later what would have been right."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response

from tasks.errors import did_you_mean, quoted
from tasks.journal import UnknownPrediction
from tasks.labels import NOTHING_TO_LABEL, BadLabel, Label, label_of, targets_of
from tasks.problems import Problem
from tasks.release import CARD
from tasks.serving.replies import Json, body, errors, gives
from tasks.serving.requests import BadRequest, check_lengths, parse_json, rows_of
from tasks.serving.served import Served
from tasks.serving.service import Service

_ONE_OR_MORE = {"oneOf": [{"type": "object"}, {"type": "array", "items": {"type": "object"}, "minItems": 1}]}
_ANSWER = {
    "type": "object",
    "required": ["id", "model", "version", "reason", "latency_ms"],
    "properties": {
        "id": {"type": ["string", "null"], "description": "for feedback; null where there is no answer"},
        "model": {"type": "string"},
        "version": {"type": "string"},
        "reason": {"type": ["string", "null"], "description": "why there is no answer"},
        "latency_ms": {"type": "number"},
    },
}
_ANSWERS = {"application/json": {"schema": {"oneOf": [_ANSWER, {"type": "array", "items": _ANSWER}]}}}


def add_routes(app: FastAPI, service: Service) -> None:
    """/models and what is below it."""
    live, serving = service.live, service.serving

    @app.get(
        "/models",
        summary="The models in use",
        response_class=Json,
        responses=gives("model", "version", "problem", "signature", is_list=True),
    )
    async def models(request: Request) -> Response:
        service.admit(request, "predict")
        return Json([_summary(served) for served in live.served])

    @app.get(
        "/models/{name}",
        summary="A model's version, metrics and card",
        response_class=Json,
        responses=gives("model", "version", "problem", "signature", "metrics", "card"),
    )
    async def model(name: str, request: Request) -> Response:
        service.admit(request, "predict")
        served = live.get(name)
        card = (served.release.folder / CARD).read_text(encoding="utf-8")
        return Json({**_summary(served), "metrics": served.release.manifest["metrics"], "card": card})

    @app.post(
        "/models/{name}/predict",
        summary="Answer one input, or a list of them",
        response_class=Json,
        responses={
            200: {"description": "An answer, or a list of them in the order asked.", "content": _ANSWERS},
            **errors(400, 408, 413, 503),
        },
        openapi_extra=body(_ONE_OR_MORE),
    )
    async def predict(name: str, request: Request) -> Response:
        client = service.admit(request, "predict")
        problem = live.get(name).problem
        rows, is_alone = rows_of(parse_json(await request.body()), problem, serving.max_rows)
        answered = await service.answer(name, rows, request, client)
        every = {"model": name, "version": answered.served.version, "latency_ms": answered.latency_ms}
        listed = [
            {"id": found, **row.answer, "reason": row.reason, **every}
            for found, row in zip(answered.ids, answered.rows, strict=True)
        ]
        if not is_alone:
            return Json(listed)
        if answered.rows[0].reason:
            raise BadRequest(f"There is no answer: {answered.rows[0].reason}.")
        return Json(listed[0])

    @app.post(
        "/models/{name}/feedback",
        summary="Say what the right answer to a prediction is, by its id",
        response_class=Json,
        responses=gives("received", "new") | errors(400, 408, 413, 503),
        openapi_extra=body(_ONE_OR_MORE),
    )
    async def feedback(name: str, request: Request) -> Response:
        client = service.admit(request, "feedback")
        content = parse_json(await request.body())
        served = live.get(name)
        labels = labels_of(content, served.problem, serving.max_rows)
        try:
            new = await service.label(served, labels, client)
        except UnknownPrediction as error:
            raise BadRequest(str(error), 404) from None
        return Json({"received": len(labels), "new": new})


def labels_of(content: Any, problem: Problem, max_rows: int) -> list[Label]:
    """Labels from JSON: an object of `id` and the problem's target columns, or a list of them. Raises BadRequest."""
    targets = targets_of(problem.columns, problem.inputs)
    if not targets:
        raise BadRequest(f"This model {NOTHING_TO_LABEL}")
    listed = [content] if isinstance(content, Mapping) else content
    if not isinstance(listed, list) or not listed:
        raise BadRequest(f"Expected an object with id, {', '.join(targets)}, or a list of such objects.")
    if len(listed) > max_rows:
        raise BadRequest(
            f"{len(listed)} labels in one request; at most {max_rows} are taken. Send several, or all of them with "
            "`mill feedback MODEL FILE` where the server is.",
            413,
        )
    labels = [_label(row, f"Row {number}", targets) for number, row in enumerate(listed)]
    check_lengths({name: [label.label[name] for label in labels] for name in targets})
    return labels


def _label(row: Any, where: str, targets: Mapping[str, Any]) -> Label:
    known = ["id", *targets]
    if not isinstance(row, Mapping):
        raise BadRequest(f"{where}: expected an object with {', '.join(known)}.")
    for name in row:
        if name not in known:
            raise BadRequest(f"{where}: {quoted(str(name))} is not asked for.{did_you_mean(str(name), known)}")
    try:
        return label_of(row, targets)
    except BadLabel as error:
        raise BadRequest(f"{where}: {error}") from None


def _summary(served: Served) -> dict[str, Any]:
    known = {name: served.entry[name] for name in ("number", "tag") if name in served.entry}
    return {
        "model": served.model,
        "version": served.version,
        "problem": served.problem.name,
        "signature": served.answerer.runtime.signature,
        **known,
    }
