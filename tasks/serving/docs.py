"""What the server takes and gives: OpenAPI for programs, with the models that are in use, and a page for people."""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse

from tasks.problems import Problem
from tasks.serving.live import Live

_METHODS = ("get", "post", "put", "delete")


def add_routes(app: FastAPI, live: Live) -> None:
    """/docs, and /openapi.json with the names and the inputs of what is in use."""
    made: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not made:
            made.update(get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes))
            _correct(made)
        return _with_models(made, {served.model: served.problem for served in live.served})

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to another schema

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        from tasks.pages import render

        return HTMLResponse(render("serving.html", schema=openapi(), routes=_routes(openapi())))


def _correct(schema: Mapping[str, Any]) -> None:
    """Take back that an answer is a string, which FastAPI says of every class of answers but its own for JSON."""
    for methods in schema["paths"].values():
        for operation in methods.values():
            for content in operation["responses"]["200"].get("content", {}).values():
                if set(content["schema"]) & {"oneOf", "anyOf"}:
                    content["schema"].pop("type", None)


def _with_models(schema: Mapping[str, Any], problems: Mapping[str, Problem]) -> dict[str, Any]:
    """The schema with `{name}` as one of the models, and with what they read in the place of any object."""
    filled = copy.deepcopy(dict(schema))
    if not problems:
        return filled
    inputs = _any_of([_object(problem, problem.inputs) for problem in problems.values()])
    labels = _any_of([_label(problem) for problem in problems.values()])
    for path, methods in filled["paths"].items():
        for operation in methods.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "name":
                    parameter["schema"] = {"type": "string", "enum": sorted(problems)}
            if path.endswith("/predict"):
                operation["requestBody"]["content"]["application/json"]["schema"] = _one_or_more(inputs)
            if path.endswith("/feedback"):
                operation["requestBody"]["content"]["application/json"]["schema"] = _one_or_more(labels)
    return filled


def _one_or_more(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"oneOf": [schema, {"type": "array", "items": schema, "minItems": 1}]}


def _any_of(schemas: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    different = {json.dumps(schema, sort_keys=True): schema for schema in schemas}
    return next(iter(different.values())) if len(different) == 1 else {"anyOf": list(different.values())}


def _label(problem: Problem) -> dict[str, Any]:
    schema = _object(problem, [name for name in problem.columns if name not in problem.inputs])
    identifier = {"type": "string", "description": "of the prediction, as its answer had it"}
    return {**schema, "properties": {"id": identifier, **schema["properties"]}, "required": ["id", *schema["required"]]}


def _object(problem: Problem, columns: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: _json_type(problem.columns[name]) for name in columns},
        "required": list(columns),
        "additionalProperties": False,
    }


def _json_type(dtype: pl.DataType) -> dict[str, Any]:
    if isinstance(dtype, pl.List | pl.Array):
        return {"type": "array", "items": _json_type(dtype.inner)}  # type: ignore[arg-type]  # an instance here
    if dtype.is_integer():
        return {"type": "integer"}
    if dtype.is_float():
        return {"type": "number"}
    return {"type": "boolean"} if dtype == pl.Boolean() else {"type": "string"}


def _routes(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each route for the page: its method, path, what it is for, an example of its body, and what it answers."""
    return [
        {
            "method": method.upper(),
            "path": path,
            "summary": operation["summary"],
            "description": operation.get("description", ""),
            "example": _example_body(operation),
            "answers": {code: answer["description"] for code, answer in sorted(operation["responses"].items())},
        }
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
        if method in _METHODS
    ]


def _example_body(operation: Mapping[str, Any]) -> str | None:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return None
    return json.dumps(content.get("example") or _example(content["schema"]), ensure_ascii=False)


def _example(schema: Mapping[str, Any]) -> Any:
    """A value that fits the schema, as short as can be read."""
    for choice in ("oneOf", "anyOf"):
        if choice in schema:
            return _example(schema[choice][0])
    match schema.get("type"):
        case "object":
            return {name: _example(value) for name, value in schema.get("properties", {}).items()}
        case "array":
            return [_example(schema["items"])] if schema.get("items") else []
        case "integer" | "number":
            return 1
        case "boolean":
            return True
    return "…"
