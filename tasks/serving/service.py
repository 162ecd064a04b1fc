"""What every route does: who asks, which version answers, and the journal's line before the answer goes out."""

import asyncio
import time
import uuid
from dataclasses import dataclass

import polars as pl
from fastapi import Request

from tasks.journal import Journal, Prediction
from tasks.serving.batcher import Retired
from tasks.serving.keys import Client, Keys, Scope
from tasks.serving.live import Live, Served
from tasks.serving.metrics import Metrics
from tasks.serving.settings import Serving

# What an answer's frame carries for the journal alone.
_TRACE = ("inputs", "embedding")


@dataclass(frozen=True)
class Answered:
    """The answers to a request's rows, all of one version, as they stand in the journal."""

    served: Served
    answers: pl.DataFrame  # id (null where there is no answer), the problem's columns, reason, version
    latency_ms: float


@dataclass(frozen=True)
class Service:
    """The parts of one server."""

    live: Live
    serving: Serving
    metrics: Metrics
    journal: Journal
    keys: Keys

    def admit(self, request: Request, scope: Scope) -> Client | None:
        """Who asks; None where no keys are in use. Raises Denied or TooOften."""
        return self.keys.admit(request.headers.get("authorization"), scope)

    async def answer(self, model: str, rows: pl.DataFrame, client: Client | None, started: float) -> Answered:
        """Answer rows and write that down. `started` is the request's, of time.perf_counter."""
        with self.metrics.request(model, len(rows)):
            served, traced = await self._compute(model, rows)
            ids = [None if reason else uuid.uuid4().hex for reason in traced["reason"]]
            answers = traced.drop(_TRACE).insert_column(0, pl.Series("id", ids, dtype=pl.String))
            latency_ms = round(1000 * (time.perf_counter() - started), 3)
            lines = _journal_lines(served, answers, traced, client, latency_ms)
            if lines:
                await asyncio.wrap_future(self.journal.record(lines))
        return Answered(served, answers, latency_ms)

    async def _compute(self, model: str, rows: pl.DataFrame) -> tuple[Served, pl.DataFrame]:
        while True:
            served = self.live.get(model)
            try:
                future = served.batcher.submit(rows)
            except Retired:  # replaced between the two lines above
                continue
            return served, await asyncio.wrap_future(future)


def _journal_lines(
    served: Served, answers: pl.DataFrame, traced: pl.DataFrame, client: Client | None, latency_ms: float
) -> list[Prediction]:
    kept = traced["reason"].is_null()
    if not kept.any():
        return []
    at_us = time.time_ns() // 1000
    rows = zip(
        answers.filter(kept)["id"],
        traced.filter(kept)["inputs"].to_list(),
        answers.filter(kept).select(*served.answerer.columns).to_dicts(),
        traced.filter(kept)["embedding"].to_numpy(),
        strict=True,
    )
    return [
        Prediction(
            id=prediction_id,
            at_us=at_us,
            model=served.model,
            version=served.version,
            client=None if client is None else client.name,
            inputs=inputs,
            answer=answer,
            latency_ms=latency_ms,
            embedding=embedding,
        )
        for prediction_id, inputs, answer, embedding in rows
    ]
