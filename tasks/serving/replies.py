"""How answers are written: JSON by orjson, and errors of one shape."""

from typing import Any

import orjson
from fastapi import Response


class Json(Response):
    """orjson writes lists of numbers many times faster than json does, and refuses NaN."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


# How OpenAI's clients look for the sentence.
_OPENAI_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}}},
}
OPENAI = "/v1/"


def fault(path: str, sentence: str) -> dict[str, Any]:
    """What the route at `path` answers when something is wrong."""
    if not path.startswith(OPENAI):
        return {"error": sentence}
    return {"error": {"message": sentence, "type": "invalid_request_error", "param": None, "code": None}}


def errors(*statuses: int, openai: bool = False) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of what a route answers when something is wrong."""
    content = {"application/json": {"schema": _OPENAI_ERROR if openai else _ERROR}}
    return {status: {"description": "What is wrong, in a sentence.", "content": content} for status in statuses}


def gives(*fields: str, is_list: bool = False, description: str = "As asked.") -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of an answer: an object that has these fields at least, or a list of such objects."""
    schema: dict[str, Any] = {"type": "object", "required": list(fields)}
    schema = {"type": "array", "items": schema} if is_list else schema
    return {200: {"description": description, "content": {"application/json": {"schema": schema}}}}


def body(schema: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI's description of a JSON body that the route takes apart itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
