"""OpenAI's API for models that write: `/v1/completions` and `/v1/chat/completions`, whole or token by token.

One that translates completes a prompt with its translation, and does not chat.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from tasks.database import JournalError
from tasks.serving import asked
from tasks.serving.keys import Client
from tasks.serving.live import UnknownModel
from tasks.serving.replies import OPENAI, Json, body, errors, fault, gives
from tasks.serving.requests import BadRequest, parse_json
from tasks.serving.served import Served
from tasks.serving.service import Service
from tasks.serving.writers import Piece, Wanted, Writing, Written

_EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}


def add_routes(app: FastAPI, service: Service) -> None:
    """/v1 and what is below it."""
    live = service.live

    def entry(served: Served) -> dict[str, Any]:
        return {"id": served.model, "object": "model", "created": 0, "owned_by": "modelmill"}

    def writing(name: str, *, is_chat: bool = False) -> Served:
        served = live.get(name)
        if not served.problem.writes:
            raise UnknownModel(f"{name} is of {served.problem.name}, which writes no text. Ask /models/{name}/predict.")
        if is_chat and served.answerer.runtime.writer.translates:
            raise UnknownModel(f"{name} is of {served.problem.name}, which does not chat. Ask /v1/completions.")
        return served

    refusals = errors(401, 403, 404, 422, 429, openai=True)

    @app.get(
        "/v1/models",
        summary="The models that write",
        response_class=Json,
        responses=gives("object", "data") | refusals,
    )
    async def models(request: Request) -> Response:
        service.admit(request, "predict")
        return Json({"object": "list", "data": [entry(served) for served in live.served if served.problem.writes]})

    @app.get(
        "/v1/models/{name}",
        summary="Whether a model writes",
        response_class=Json,
        responses=gives("id", "object") | refusals,
    )
    async def model(name: str, request: Request) -> Response:
        service.admit(request, "predict")
        return Json(entry(writing(name)))

    async def answer(request: Request, *, is_chat: bool) -> Response:
        client = service.admit(request, "predict")
        content = parse_json(await request.body())
        name, wanted = (asked.chat if is_chat else asked.completion)(content)
        served = writing(name, is_chat=is_chat)
        if served.answerer.runtime.writer.translates and content.get("max_tokens") is None:
            wanted = replace(wanted, fills=True)  # a translation has an end of its own
        request.state.told = {"version": served.version, "rows": len(wanted.prompts)}
        shape = _Chat(served) if is_chat else _Text(served)
        with contextlib.ExitStack() as counted:
            counted.enter_context(service.metrics.request(name, len(wanted.prompts)))
            if content.get("stream") is not True:
                return Json(await _whole(service, shape, wanted, client))
            begun = await _begun(service, served, wanted, client)
            head = _head(shape.piece_kind, service.new_id(), served)
            events = _events(shape, head, *begun, asked.wants_usage(content), counted.pop_all())
        return StreamingResponse(events, media_type="text/event-stream")

    described: dict[str, Any] = {
        "response_class": Json,
        "responses": {
            200: {
                "description": "The text; with `stream`, pieces of it as server-sent events.",
                "content": {
                    "application/json": {"schema": {"type": "object", "required": ["id", "object", "choices"]}},
                    **_EVENTS,
                },
            },
            **errors(400, 401, 403, 404, 408, 413, 422, 429, 503, openai=True),
        },
    }

    @app.post(
        "/v1/completions",
        summary="Go on with a text, or translate it (OpenAI's API)",
        openapi_extra=body(asked.COMPLETION),
        **described,
    )
    async def completions(request: Request) -> Response:
        return await answer(request, is_chat=False)

    @app.post(
        "/v1/chat/completions",
        summary="Go on with what was said (OpenAI's API)",
        openapi_extra=body(asked.CHAT),
        **described,
    )
    async def chat_completions(request: Request) -> Response:
        return await answer(request, is_chat=True)


class _Text:
    """How /v1/completions answers."""

    kind = piece_kind = "text_completion"

    def __init__(self, served: Served) -> None:
        self.served = served

    def choice(self, number: int, text: str, why_ended: str | None) -> dict[str, Any]:
        return {"index": number, "text": text, "logprobs": None, "finish_reason": why_ended}

    piece = choice


class _Chat(_Text):
    """How /v1/chat/completions answers."""

    kind, piece_kind = "chat.completion", "chat.completion.chunk"

    def choice(self, number: int, text: str, why_ended: str | None) -> dict[str, Any]:
        return {"index": number, "message": {"role": "assistant", "content": text}, "finish_reason": why_ended}

    def piece(self, number: int, text: str, why_ended: str | None) -> dict[str, Any]:
        delta = {} if why_ended else {"role": "assistant", "content": text}
        return {"index": number, "delta": delta, "finish_reason": why_ended}


async def _whole(service: Service, shape: _Text, wanted: Wanted, client: Client | None) -> dict[str, Any]:
    writing = service.write(shape.served, wanted, client)
    try:
        written = [item async for item in writing if isinstance(item, Written)]
    finally:
        writing.is_left.set()
    choices = [shape.choice(one.number, one.text, one.why_ended) for one in written]
    return {**_head(shape.kind, written[0].id, shape.served), "choices": choices, "usage": _usage(written)}


Begun = tuple[Writing, AsyncIterator[Piece | Written], Piece | Written]


async def _begun(service: Service, served: Served, wanted: Wanted, client: Client | None) -> Begun:
    """The writing with its first piece: until that is there, an error still is a status."""
    writing = service.write(served, wanted, client)
    items = aiter(writing)
    try:
        return writing, items, await anext(items)
    except BaseException:
        writing.is_left.set()
        raise


async def _events(
    shape: _Text,
    head: Mapping[str, Any],
    writing: Writing,
    items: AsyncIterator[Piece | Written],
    first: Piece | Written,
    with_usage: bool,
    counted: contextlib.ExitStack,
) -> AsyncIterator[bytes]:
    """Server-sent events, the last of a text when it stands in the journal. `counted` is left with the last of them."""
    written: list[Written] = []
    item: Piece | Written | None = first
    try:
        with counted:
            while item is not None:
                if isinstance(item, Written):
                    written.append(item)
                    choice = shape.piece(item.number, "", item.why_ended)
                    # What a caller says of the text later, it says of this id.
                    yield _event({**head, "id": item.id, "choices": [choice]})
                else:
                    yield _event({**head, "choices": [shape.piece(item.number, item.text, None)]})
                item = await anext(items, None)
        if with_usage:
            yield _event({**head, "choices": [], "usage": _usage(written)})
        yield b"data: [DONE]\n\n"
    except (BadRequest, JournalError) as error:
        yield _event(fault(OPENAI, str(error)))
    finally:  # also where the caller has gone
        writing.is_left.set()


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


def _head(kind: str, number: str, served: Served) -> dict[str, Any]:
    return {
        "id": number,
        "object": kind,
        "created": int(time.time()),
        "model": served.model,
        "system_fingerprint": served.version,
    }


def _usage(written: list[Written]) -> dict[str, int]:
    asked_for, given = sum(one.num_prompt_tokens for one in written), sum(one.num_tokens for one in written)
    return {"prompt_tokens": asked_for, "completion_tokens": given, "total_tokens": asked_for + given}
