"""The server's application: its routes stand in files of their own, what is common to them here."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response

from tasks.database import JournalError
from tasks.journal import Journal
from tasks.serving import health, inference, predictions
from tasks.serving.batcher import Busy
from tasks.serving.keys import Denied, Keys, TooOften
from tasks.serving.limits import BodyLimits
from tasks.serving.live import Live, UnknownModel
from tasks.serving.metrics import Metrics
from tasks.serving.replies import Json, errors
from tasks.serving.requests import BadRequest
from tasks.serving.service import Service
from tasks.serving.settings import Serving


def create_app(live: Live, serving: Serving, journal: Journal, keys: Keys) -> FastAPI:
    """The application over the models of `live`. It starts and closes them, and closes the journal."""
    service = Service(live, serving, Metrics(live), journal, keys)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(live.start)
        yield
        await asyncio.to_thread(live.close)
        await asyncio.to_thread(journal.close)

    app = FastAPI(title="modelmill", lifespan=lifespan, responses=errors(401, 403, 404, 422, 429))
    app.add_middleware(BodyLimits, max_bytes=int(serving.max_request_mb * 1e6), seconds=serving.body_seconds)
    _explain_errors(app)
    health.add_routes(app, service)
    predictions.add_routes(app, service)
    inference.add_routes(app, service)
    return app


def _explain_errors(app: FastAPI) -> None:
    """Whatever a caller or an operator can mend is answered with a sentence; anything else is a defect and a 500."""

    async def refused(_: Request, error: Exception) -> Response:
        status = error.status if isinstance(error, BadRequest | Denied) else 404
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        return Json({"error": str(error)}, status_code=status, headers=headers)

    async def later(_: Request, error: Exception) -> Response:
        seconds = error.retry_after if isinstance(error, Busy | TooOften) else 1
        too_often = isinstance(error, TooOften)
        why = "This client has used up its rate." if too_often else "More is asked than can be answered now."
        sentence = f"{why} Ask again in {seconds} s."
        return Json({"error": sentence}, status_code=429, headers={"Retry-After": str(seconds)})

    async def not_kept(_: Request, error: Exception) -> Response:
        return Json({"error": f"{error} No answer goes out that is not in the journal."}, status_code=503)

    app.add_exception_handler(BadRequest, refused)
    app.add_exception_handler(Denied, refused)
    app.add_exception_handler(UnknownModel, refused)
    app.add_exception_handler(Busy, later)
    app.add_exception_handler(TooOften, later)
    app.add_exception_handler(JournalError, not_kept)
