"""Logs as a line of JSON each, for machines that read them. Never the inputs: those may be personal."""

import asyncio
import json
import logging
import time
import traceback
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

# What every record has; the rest came by `extra`.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JsonFormatter(logging.Formatter):
    """Time, level, message, and whatever the caller put into `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _OWN},
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = _places(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)


def log_json() -> None:
    """Send the log of this process to its standard error, as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def log_loop_errors() -> None:
    """Log what fails in the running event loop without what it says."""

    def failed(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        log.error("the event loop failed", exc_info=context.get("exception"))

    asyncio.get_running_loop().set_exception_handler(failed)


class RequestLog:
    """A line for each request: what was asked of which model by whom, and how it ended."""

    def __init__(self, app: ASGIApp, models: Callable[[], Collection[str]]) -> None:
        self._app = app
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            log.info("request", extra=_told(scope, status, time.perf_counter() - started, self._models()))


def _told(scope: Scope, status: int, seconds: float, models: Collection[str]) -> dict[str, Any]:
    # A name that no model has may be anything as well.
    route, name = scope.get("route"), scope.get("path_params", {}).get("name")
    state = scope.get("state", {})
    return {
        "method": scope["method"],
        # The pattern: whoever asks for a path that there is none of may have put anything into it.
        "route": getattr(route, "path", None),
        "model": name if name in models else None,
        "status": status,
        "ms": round(1000 * seconds, 1),
        "client": state.get("client"),
        **state.get("told", {}),
    }


def _places(error: BaseException) -> list[str]:
    """Where it was raised, and its type. What an exception says may quote an input."""
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    behind = error.__cause__ or error.__context__
    return [*(_places(behind) if behind is not None else []), *places, type(error).__qualname__]
