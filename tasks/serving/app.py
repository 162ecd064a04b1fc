"""The server's application: its routes stand in files of their own, what is common to them here."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from tasks.database import JournalError
from tasks.journal import Journal
from tasks.serving import completions, docs, health, inference, predictions
from tasks.serving.batcher import Busy
from tasks.serving.keys import Denied, Keys, TooOften
from tasks.serving.lanes import cores
from tasks.serving.limits import BodyLimits, Doorkeeper, busy_sentence
from tasks.serving.live import Live, UnknownModel
from tasks.serving.logs import RequestLog, log_loop_errors
from tasks.serving.metrics import Metrics
from tasks.serving.replies import Json, errors, fault
from tasks.serving.requests import BadRequest
from tasks.serving.retention import Retention
from tasks.serving.service import Service
from tasks.serving.settings import Serving
from tasks.serving.writers import Writers

log = logging.getLogger(__name__)


def create_app(live: Live, serving: Serving, journal: Journal, keys: Keys, *, keep_days: int | None = None) -> FastAPI:
    """The application over the models of `live`. It starts and closes them, and closes the journal.

    With `keep_days` the journal forgets what is older.
    """
    service = Service(live, serving, Metrics(live, journal), journal, keys, Writers(serving.threads or cores()))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        log_loop_errors()
        await asyncio.to_thread(live.start)
        retention = None if keep_days is None else Retention(journal, keep_days)
        if retention is not None:
            retention.start()
        yield
        await asyncio.to_thread(live.close)
        await service.end()
        if retention is not None:
            await asyncio.to_thread(retention.close)
        await asyncio.to_thread(journal.close)

    app = FastAPI(
        title="modelmill",
        summary="The models in use: answers, late labels, and how the server is.",
        lifespan=lifespan,
        responses=errors(401, 403, 404, 422, 429),
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service  # for pages that others add
    app.add_middleware(Doorkeeper, room_for=service.check_room)
    app.add_middleware(BodyLimits, max_bytes=int(serving.max_request_mb * 1e6), seconds=serving.body_seconds)
    app.add_middleware(RequestLog, models=lambda: live.models)
    _explain_errors(app)
    health.add_routes(app, service)
    predictions.add_routes(app, service)
    inference.add_routes(app, service)
    completions.add_routes(app, service)
    docs.add_routes(app, live)
    return app


def _explain_errors(app: FastAPI) -> None:
    """Whatever a caller or an operator can mend is answered with a sentence; anything else is a defect and a 500."""

    def said(request: Request, sentence: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
        return Json(fault(request.url.path, sentence), status_code=status, headers=headers)

    async def refused(request: Request, error: Exception) -> Response:
        status = error.status if isinstance(error, BadRequest | Denied) else 404
        return said(request, str(error), status, {"WWW-Authenticate": "Bearer"} if status == 401 else None)

    async def later(request: Request, error: Exception) -> Response:
        seconds = error.retry_after if isinstance(error, Busy | TooOften) else 1
        used_up = f"This client has used up its rate. Ask again in {seconds} s."
        sentence = busy_sentence(error) if isinstance(error, Busy) else used_up
        return said(request, sentence, 429, {"Retry-After": str(seconds)})

    async def not_kept(request: Request, error: Exception) -> Response:
        log.error("the journal failed", extra={"reason": str(error)})
        return said(request, f"{error} No answer goes out that is not in the journal.", 503, {"Retry-After": "5"})

    async def no_route(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 404
        sentence = {
            404: "There is nothing at this address. /docs lists what there is.",
            405: f"{request.method} is not what this address takes. /docs says what is.",
        }.get(status, f"{HTTPStatus(status).phrase}.")
        return said(request, sentence, status, error.headers if isinstance(error, HTTPException) else None)

    async def failed(request: Request, _: Exception) -> Response:
        # uvicorn closes the connection after a defect: unless that is said, the next request on it would be cut off.
        return said(request, "The server failed at this request. Its log says where.", 500, {"Connection": "close"})

    app.add_exception_handler(BadRequest, refused)
    app.add_exception_handler(Denied, refused)
    app.add_exception_handler(UnknownModel, refused)
    app.add_exception_handler(Busy, later)
    app.add_exception_handler(TooOften, later)
    app.add_exception_handler(JournalError, not_kept)
    app.add_exception_handler(HTTPException, no_route)
    app.add_exception_handler(Exception, failed)
