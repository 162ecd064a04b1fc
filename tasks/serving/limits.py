"""What a caller may cost before anything is computed: bytes, and the time to send them."""

import asyncio

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class _Gone(Exception):
    """The caller hung up before the body was whole."""


class BodyLimits:
    """Reads the whole body first; what is too large (413) or too slow (408) never reaches a route."""

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._seconds):
                messages = await self._read(scope, receive)
        except TimeoutError:
            await _refuse(send, 408, f"The body did not arrive within {self._seconds:g} s.")
            return
        except _Gone:
            return
        if messages is None:
            await _refuse(send, 413, f"The body is larger than {self._max_bytes:,} bytes. Send fewer rows at a time.")
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> list[Message] | None:
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > self._max_bytes:
            return None
        messages: list[Message] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                return None
            if not message.get("more_body", False):
                return messages


async def _refuse(send: Send, status: int, sentence: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps({"error": sentence})})
