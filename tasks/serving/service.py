"""What every route does: who asks, which version answers, and the journal's line before the answer goes out."""

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastapi import Request

from tasks.answers import Traced
from tasks.journal import Journal, Prediction
from tasks.serving.batcher import Busy, Retired
from tasks.serving.keys import Client, Keys, Scope
from tasks.serving.lanes import Row
from tasks.serving.live import Live
from tasks.serving.metrics import Metrics
from tasks.serving.served import Served
from tasks.serving.settings import Serving

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answered:
    """The answers to a request's rows, all of one version, as they stand in the journal."""

    served: Served
    ids: Sequence[str | None]  # None where there is no answer
    rows: Sequence[Traced]
    latency_ms: float


@dataclass(frozen=True)
class Service:
    """The parts of one server."""

    live: Live
    serving: Serving
    metrics: Metrics
    journal: Journal
    keys: Keys
    _copies: set["asyncio.Task[None]"] = field(default_factory=set)

    def admit(self, request: Request, scope: Scope) -> Client | None:
        """Who asks; None where no keys are in use. Raises Denied or TooOften."""
        client = self.keys.admit(request.headers.get("authorization"), scope)
        request.state.client = None if client is None else client.name
        return client

    async def answer(self, model: str, rows: Sequence[Row], request: Request, client: Client | None) -> Answered:
        """Answer rows and write that down."""
        started = time.perf_counter()
        with self.metrics.request(model, len(rows)):
            served, traced = await self._compute(model, rows)
            ids = [None if row.reason else uuid.uuid4().hex for row in traced]
            latency_ms = round(1000 * (time.perf_counter() - started), 3)
            answered = Answered(served, ids, traced, latency_ms)
            lines = _journal_lines(answered, client)
            request.state.told = {"version": served.version, "rows": len(rows), "answered": len(lines)}
            if lines:
                written = time.perf_counter()
                await asyncio.wrap_future(self.journal.record(lines))
                self.metrics.journal_seconds.observe(time.perf_counter() - written)
                self._copy_to_shadow(rows, answered, client)
        return answered

    async def end(self) -> None:
        """Wait for the copies that are still under way."""
        if self._copies:
            await asyncio.wait(self._copies)

    async def _compute(self, model: str, rows: Sequence[Row]) -> tuple[Served, Sequence[Traced]]:
        while True:
            served = self.live.get(model)
            try:
                future = served.batcher.submit(rows)
            except Retired:  # replaced between the two lines above
                continue
            return served, await asyncio.wrap_future(future)

    def _copy_to_shadow(self, rows: Sequence[Row], answered: Answered, client: Client | None) -> None:
        """Ask the challenger the same, where there is one and nobody waits; its answers go into the journal alone."""
        shadow = self.live.shadow(answered.served.model)
        if shadow is None or shadow.version == answered.served.version or not self._is_chosen(answered):
            return
        if answered.served.batcher.queued_rows:
            self.metrics.shadow.labels(shadow.model, "left_out").inc(len(rows))
            return
        task = asyncio.get_running_loop().create_task(self._ask_shadow(shadow, rows, answered, client))
        self._copies.add(task)  # the loop itself would forget it
        task.add_done_callback(self._copies.discard)

    def _is_chosen(self, answered: Answered) -> bool:
        """A share of the requests, by what their ids happen to be."""
        first = next(found for found in answered.ids if found is not None)
        return int(first[:8], 16) < self.serving.shadow * 2**32

    async def _ask_shadow(self, shadow: Served, rows: Sequence[Row], answered: Answered, client: Client | None) -> None:
        started = time.perf_counter()
        try:
            traced = await asyncio.wrap_future(shadow.batcher.submit(rows))
            pairs = zip(traced, answered.ids, strict=True)
            ids = [None if row.reason or copied is None else uuid.uuid4().hex for row, copied in pairs]
            copy = Answered(shadow, ids, traced, round(1000 * (time.perf_counter() - started), 3))
            lines = _journal_lines(copy, client, answered.ids)
            if lines:
                await asyncio.wrap_future(self.journal.record(lines))
            outcome = "answered"
        except (Busy, Retired):
            outcome = "left_out"
        except Exception:  # whatever it is, it concerns nobody who asked
            outcome = "failed"
            log.exception("the shadow failed", extra={"model": shadow.model, "version": shadow.version})
        self.metrics.shadow.labels(shadow.model, outcome).inc(len(rows))


def _journal_lines(
    answered: Answered, client: Client | None, shadow_of: Sequence[str | None] | None = None
) -> list[Prediction]:
    at_us = time.time_ns() // 1000
    return [
        Prediction(
            id=prediction_id,
            at_us=at_us,
            model=answered.served.model,
            version=answered.served.version,
            client=None if client is None else client.name,
            inputs=row.inputs,
            answer=row.answer,
            latency_ms=answered.latency_ms,
            embedding=row.embedding,
            shadow_of=shadow_of[number] if shadow_of is not None else None,
        )
        for number, (prediction_id, row) in enumerate(zip(answered.ids, answered.rows, strict=True))
        if prediction_id is not None
    ]
