"""The page of the running server: reports/index.html as it stands now, with what only a server knows.

It is rendered anew at each look, needs no script, and links to the pages that the line, the gate and the monitor have
written. Where keys are in use a browser gives one as the password that it asks for; any name goes with it.
"""

import asyncio
import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import polars as pl
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

from flows.addresses import FOLDERS, MONITORED, REPORTS, RETRAINED
from flows.index import entries_of
from flows.live_page import LiveModel, Tried, live_model
from flows.up import running
from flows.worktree import home_of
from tasks.attribution import NOT_EXPLAINED, Part, can_explain, word_effects
from tasks.database import JournalError
from tasks.errors import MillError
from tasks.monitor_report import HTML
from tasks.pages import render
from tasks.serving.batcher import Busy
from tasks.serving.keys import Client, Denied, Scope
from tasks.serving.live import UnknownModel
from tasks.serving.requests import BadRequest, rows_of
from tasks.serving.served import Served
from tasks.serving.service import Service

# What the pages below reports/ are made of.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".css": "text/css",
    ".csv": "text/csv; charset=utf-8",
}

# The pages hold what people wrote; the browser is told to run and to load nothing.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

# Evidently's page of a window draws by scripts of its own; they reach nothing, this server included.
_DRAWN = {
    **_HEADERS,
    "Content-Security-Policy": (
        "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' data: blob:; "
        "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; worker-src blob:; frame-ancestors 'none'"
    ),
}

# How long somebody's explanation waits for that of another.
_EXPLANATION_SECONDS = 5


def add_portal(app: FastAPI, root: Path, service: Service) -> None:
    """/ and /reports/, what lies below reports/, and the form that asks a model."""
    portal = _Portal(root, service)

    @app.get("/", include_in_schema=False)
    @app.get("/reports/index.html", include_in_schema=False)  # where the pages below reports/ lead back to
    async def start() -> Response:
        return RedirectResponse("/reports/")

    @app.get("/reports/", include_in_schema=False)
    async def page(request: Request) -> Response:
        if denied := portal.denied(request, "predict"):
            return denied
        return await asyncio.to_thread(portal.page, {})

    @app.post("/reports/", include_in_schema=False)
    async def ask(request: Request) -> Response:
        if denied := portal.denied(request, "predict"):
            return denied
        return await portal.ask(request)

    # What follows shows rows that were learned from, and texts that others have asked about.
    @app.get("/reports/{path:path}", include_in_schema=False)
    async def report(path: str, request: Request) -> Response:
        return portal.denied(request, "admin") or portal.file(root / FOLDERS[REPORTS], path)

    @app.get("/retrained/{path:path}", include_in_schema=False)
    async def retrained(path: str, request: Request) -> Response:
        return portal.denied(request, "admin") or portal.file(home_of(root) / FOLDERS[RETRAINED], path)

    # As reports/<model>/monitor.html links to it, also where it is opened as a file.
    @app.get("/.mill/monitor/{path:path}", include_in_schema=False)
    async def watched(path: str, request: Request) -> Response:
        return portal.denied(request, "admin") or portal.file(root / FOLDERS[MONITORED], path)


class _Portal:
    def __init__(self, root: Path, service: Service) -> None:
        self._root, self._service = root, service
        self._explaining = asyncio.Semaphore(1)

    def denied(self, request: Request, scope: Scope) -> Response | None:
        """Who asks has to have a key, where keys are in use; None where that is so."""
        try:
            request.state.admitted = _admitted(self._service, request, scope)
        except Denied as error:
            headers = {**_HEADERS, "WWW-Authenticate": 'Basic realm="modelmill: the key is the password"'}
            return HTMLResponse(_said(str(error)), 401, headers)
        return None

    def page(self, tried: Mapping[str, Tried], status: int = 200) -> Response:
        """The whole page, with what was tried on it."""
        try:
            entries = entries_of(self._root)
            live = {entry.name: self._live(entry.name) for entry in entries}
        except MillError as error:
            return HTMLResponse(_said(str(error)), 503, _HEADERS)
        text = render("index.html", entries=entries, live=live, tried=tried, outside=self._outside())
        return HTMLResponse(text, status, _HEADERS)

    def file(self, folder: Path, path: str) -> Response:
        """A page that was written below a folder, and nothing beside it."""
        place = (folder / path.replace("\0", "")).resolve()
        place = place / "index.html" if place.is_dir() else place
        if not place.is_relative_to(folder.resolve()) or place.suffix not in _TYPES or not place.is_file():
            return HTMLResponse(_said("There is no such page. /reports/ lists what there is."), 404, _HEADERS)
        headers = _DRAWN if place.name == HTML else _HEADERS
        return FileResponse(place, media_type=_TYPES[place.suffix], headers=headers)

    async def ask(self, request: Request) -> Response:
        """Ask a model what the form says, and show the answer on the page."""
        if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return HTMLResponse(
                _said("This form is answered where it stands, and not from other pages."), 403, _HEADERS
            )
        try:
            fields = parse_qs((await request.body()).decode(), keep_blank_values=True, max_num_fields=100)
        except ValueError:
            fields = {}
        given = {name: values[-1] for name, values in fields.items()}
        model = given.pop("model", "")
        try:
            tried = await self._tried(model, given, request)
        except BadRequest as error:
            tried = Tried(given, reason=str(error))
        except UnknownModel as error:
            return HTMLResponse(_said(str(error)), 404, _HEADERS)
        except Busy as error:
            tried = Tried(given, reason=f"The server is busy. Ask again in {error.retry_after} s.")
        except JournalError as error:
            tried = Tried(given, reason=f"{error} No answer goes out that is not in the journal.")
        return await asyncio.to_thread(self.page, {model: tried})

    async def _tried(self, model: str, given: Mapping[str, str], request: Request) -> Tried:
        problem = self._service.live.get(model).problem
        rows, _ = rows_of(dict(given), problem, 1)
        answered = await self._service.answer(model, rows, request, request.state.admitted)
        row = answered.rows[0]
        if row.reason:
            return Tried(given, reason=f"There is no answer: {row.reason}.")
        signature = answered.served.answerer.runtime.signature
        words = [name for name, kind in problem.answer_schema(signature).items() if kind == pl.String]
        answer = {
            **row.answer,
            "id": answered.ids[0],
            "version": answered.served.version,
            "latency_ms": answered.latency_ms,
            "classes": signature.get("labels", []),
            "said": row.answer[words[0]] if words else None,  # the first text of an answer is the answer
        }
        if not can_explain(problem):
            return Tried(given, answer, unexplained=NOT_EXPLAINED)
        parts = await self._explained(answered.served, row.inputs)
        if parts is None:
            return Tried(given, answer, unexplained="Others are waiting, so which words drove it was not computed.")
        return Tried(given, answer, parts)

    async def _explained(self, served: Served, inputs: Mapping[str, Any]) -> list[Part] | None:
        """Which words drove an answer: some sixty texts, so one such at a time, and None where anybody waits."""
        try:
            await asyncio.wait_for(self._explaining.acquire(), _EXPLANATION_SECONDS)
        except TimeoutError:
            return None
        try:
            if any(other.batcher.queued_rows for other in self._service.live.served):
                return None
            return await asyncio.to_thread(word_effects, served.answerer, inputs)
        finally:
            self._explaining.release()

    def _live(self, model: str) -> LiveModel:
        trouble = self._service.live.failures.get(model, "")
        try:
            problem = self._service.live.get(model).problem
        except UnknownModel:
            return live_model(self._root, model, self._service.journal, inputs=(), explains=False, trouble=trouble)
        is_text = all(name in problem.texts for name in problem.inputs)
        return live_model(
            self._root,
            model,
            self._service.journal,
            inputs=problem.inputs if is_text else (),
            explains=can_explain(problem),
            trouble=trouble,
        )

    def _outside(self) -> dict[str, str]:
        """Other pages that belong to it, by their names."""
        found = {"How to ask from a program": "/docs"}
        here = running(self._root)
        if here is not None:
            found["Flow runs in Prefect"] = here.page
            if here.evidently:
                found["Drift in Evidently"] = here.evidently
        return found


def _admitted(service: Service, request: Request, scope: Scope) -> Client | None:
    """As for programs; a browser sends the key as a password."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return service.admit(request, scope)
    try:
        key = base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        key = ""
    return service.admit(request, scope, f"Bearer {key}")


def _said(sentence: str) -> str:
    return render("said.html", sentence=sentence)
