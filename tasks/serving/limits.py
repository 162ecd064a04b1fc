"""What a caller may cost before anything is computed: bytes, and the time to send them."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tasks.serving.batcher import Busy
from tasks.serving.replies import fault

# All bodies together may hold so many times what one may: the server's memory has a bound, whoever connects.
_BODIES = 32

_MAX_HEADER_BYTES = 65_536


class _Gone(Exception):
    """The caller hung up before the body was whole."""


class _TooLarge(Exception):
    """The body is larger than one may be."""


class _TooMuch(Exception):
    """All bodies together are."""


class _Held:
    """One body's part of what all together may hold."""

    def __init__(self, limits: "BodyLimits") -> None:
        self._limits = limits
        self._num_bytes = 0

    def grow_to(self, num_bytes: int) -> None:
        """Hold so many bytes at least. Raises _TooMuch."""
        more = max(0, num_bytes - self._num_bytes)
        if more and self._limits.num_held + more > self._limits.most_held:
            raise _TooMuch
        self._limits.num_held += more
        self._num_bytes += more

    def let_go(self) -> None:
        self._limits.num_held -= self._num_bytes
        self._num_bytes = 0


class BodyLimits:
    """Reads the whole body first; what is too large (413) or too slow (408) never reaches a route.

    Where all callers together send more than the server should hold, those who come are sent away (429).
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds
        self.num_held = 0
        self.most_held = _BODIES * max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"")
        num_bytes = int(told) if told.isdigit() else 0
        if num_bytes > self._max_bytes:
            await self._refuse_size(scope, send)
            return
        held = _Held(self)
        try:
            held.grow_to(num_bytes)
            messages = await self._read(receive, held)
        except _TooMuch:
            await _refuse(
                scope, send, 429, "More is sent than can be held now. Ask again in 1 s.", (b"retry-after", b"1")
            )
        except _TooLarge:
            await self._refuse_size(scope, send)
        except TimeoutError:
            await _refuse(scope, send, 408, _too_slow("body", self._seconds))
        except _Gone:
            pass
        else:
            await self._app(scope, _replayed(messages, receive), send)
        finally:
            held.let_go()

    async def _read(self, receive: Receive, held: "_Held") -> list[Message]:
        messages: list[Message] = []
        size = 0
        async with asyncio.timeout(self._seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                messages.append(message)
                size += len(message.get("body", b""))
                if size > self._max_bytes:
                    raise _TooLarge
                held.grow_to(size)  # of whoever did not say how much will come
                if not message.get("more_body", False):
                    return messages

    async def _refuse_size(self, scope: Scope, send: Send) -> None:
        await _refuse(
            scope, send, 413, f"The body is larger than {self._max_bytes:,} bytes. Send fewer rows at a time."
        )


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    arrived = iter(messages)

    async def replay() -> Message:
        return next(arrived, None) or await receive()

    return replay


class Doorkeeper:
    """Sends away (429) whoever comes when there is no room, before what was sent is parsed and looked through.

    `room_for` raises Busy where a path's model has none for a single row. Where several times what can be answered is
    asked, looking at each request would leave no time for answers, and those who are sent away would wait for it.
    """

    def __init__(self, app: ASGIApp, room_for: Callable[[str], None]) -> None:
        self._app = app
        self._room_for = room_for

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http" and scope["method"] == "POST":
                self._room_for(scope["path"])
        except Busy as busy:
            content = orjson.dumps(fault(scope["path"], busy_sentence(busy)))
            headers = {
                "content-type": "application/json",
                "retry-after": busy.retry_after,
                "content-length": len(content),
            }
            pairs = [(name.encode(), str(value).encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": 429, "headers": pairs})
            await send({"type": "http.response.body", "body": content})
        else:
            await self._app(scope, receive, send)


def busy_sentence(busy: Busy) -> str:
    return f"More is asked than can be answered now. Ask again in {busy.retry_after} s."


async def _refuse(scope: Scope, send: Send, status: int, sentence: str, *headers: tuple[bytes, bytes]) -> None:
    every = [(b"content-type", b"application/json"), (b"connection", b"close"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": every})
    await send({"type": "http.response.body", "body": orjson.dumps(fault(scope["path"], sentence))})


def _too_slow(what: str, seconds: float) -> str:
    return f"The {what} did not arrive within {seconds:g} s."


def protocol(seconds: float) -> type[HttpToolsProtocol]:
    """uvicorn's own protocol, with limits that it lacks: on the time that headers take (408), and on their size (431).

    Without them, who sends a byte a minute holds a connection for good, and who never ends holds ever more memory.
    """

    class HeaderLimits(HttpToolsProtocol):
        _deadline: asyncio.TimerHandle | None = None
        _num_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait(transport.close)  # nothing has been asked, so nothing is answered

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._deadline is not None:
                self._num_bytes += len(data)
                if self._num_bytes > _MAX_HEADER_BYTES:
                    self._send_away(431, f"The headers are larger than {_MAX_HEADER_BYTES:,} bytes.")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._wait(lambda: self._send_away(408, _too_slow("request", seconds)))

        def on_headers_complete(self) -> None:
            self._stop_waiting()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait(self, otherwise: Callable[[], None]) -> None:
            self._stop_waiting()
            self._num_bytes = 0
            self._deadline = self.loop.call_later(seconds, otherwise)

        def _stop_waiting(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _send_away(self, status: int, sentence: str) -> None:
            self._stop_waiting()
            if self.transport.is_closing():
                return
            # An answer to an earlier request on this connection may still be under way: nothing is mixed into it.
            if self.cycle is None or self.cycle.response_complete:
                content = orjson.dumps({"error": sentence})  # which route it was for is not known yet
                head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                head += f"connection: close\r\ncontent-length: {len(content)}\r\n\r\n"
                self.transport.write(head.encode("ascii") + content)
            self.transport.close()

    return HeaderLimits
