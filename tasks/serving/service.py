"""What every route does: who asks, which version answers, and the journal's line before the answer goes out."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from tasks.answers import Traced
from tasks.database import JournalError
from tasks.journal import Journal, Prediction
from tasks.labels import Label, targets_of
from tasks.private_labels import redacted
from tasks.serving.batcher import Busy, Retired
from tasks.serving.keys import Client, Keys, Scope
from tasks.serving.lanes import Row
from tasks.serving.live import Live
from tasks.serving.metrics import Metrics
from tasks.serving.served import Served
from tasks.serving.settings import Serving
from tasks.serving.writers import Wanted, Writers, Writing

log = logging.getLogger(__name__)

# So many requests with labels may be under way. They come one after the other anyway (tasks/database.py, in_turn).
_MOST_LABELLING = 16

# Where a model is asked for what its lanes compute.
_ASKED = re.compile(r"(?:/v2)?/models/([^/]+)/(?:versions/[^/]+/)?(?:predict|infer)")

Accept = Callable[[Served, Sequence[Traced]], None]


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
    writers: Writers
    _copies: set["asyncio.Task[None]"] = field(default_factory=set)
    _labelling: set["asyncio.Future[int]"] = field(default_factory=set)
    # Of their own: where the journal hangs, they take the threads of nobody else.
    _label_threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "labels"))

    def admit(self, request: Request, scope: Scope, authorization: str | None = None) -> Client | None:
        """Who asks, by the request's header where none is given; None where no keys are in use.

        Raises Denied or TooOften.
        """
        client = self.keys.admit(authorization or request.headers.get("authorization"), scope)
        request.state.client = None if client is None else client.name
        return client

    def check_room(self, path: str) -> None:
        """Raises Busy where this is the path of a model that has no room for a single row."""
        asked = _ASKED.fullmatch(path)
        served = next((served for served in self.live.served if asked and served.model == asked[1]), None)
        if served is not None:
            with self.metrics.turned_away(served.model):
                served.batcher.check_room()

    async def answer(
        self,
        model: str,
        rows: Sequence[Row],
        request: Request,
        client: Client | None,
        accept: Accept = lambda served, traced: None,
    ) -> Answered:
        """Answer rows and write that down, unless `accept` raises at what has come out.

        Raises Busy, and JournalError where the answers cannot be written down, or not in time.
        """
        started = time.perf_counter()
        with self.metrics.request(model, len(rows)):
            self._check_journal(len(rows))
            served, traced = await self._compute(model, rows)
            accept(served, traced)
            ids = [None if row.reason else self.new_id() for row in traced]
            latency_ms = round(1000 * (time.perf_counter() - started), 3)
            answered = Answered(served, ids, traced, latency_ms)
            lines = _journal_lines(answered, client)
            request.state.told = {"version": served.version, "rows": len(rows), "answered": len(lines)}
            if lines:
                written = time.perf_counter()
                await self._record(lines)
                self.metrics.journal_seconds.observe(time.perf_counter() - written)
                self._copy_to_shadow(rows, answered, client)
        return answered

    def write(self, served: Served, wanted: Wanted, client: Client | None) -> Writing:
        """Have texts written, each into the journal when it is whole or its caller has gone.

        Raises Busy and JournalError.
        """
        self._check_journal(len(wanted.prompts))

        def keep(served: Served, traced: Traced, latency_ms: float) -> str:
            line = self.new_id()
            lines = _journal_lines(Answered(served, [line], [traced], latency_ms), client)
            try:
                self.journal.record(lines).result(self.serving.journal_seconds)
            except TimeoutError:
                raise self._too_late() from None
            return line

        return self.writers.start(served, wanted, keep)

    @staticmethod
    def new_id() -> str:
        """Of an answer, by which it is found in the journal."""
        return uuid.uuid4().hex

    async def label(self, served: Served, labels: Sequence[Label], client: Client | None) -> int:
        """Keep labels; how many are new. Raises Busy, UnknownPrediction, and JournalError where that cannot be."""
        if len(self._labelling) >= _MOST_LABELLING:
            raise Busy(1)
        name = None if client is None else client.name

        def keep() -> int:
            problem, tidy = served.problem, served.answerer.runtime.tidy
            targets = targets_of(problem.columns, problem.inputs)
            tidied = redacted(labels, targets, tidy.redact, tidy.phone_regions)
            return self.journal.add_labels(tidied, model=served.model, client=name)

        kept = asyncio.get_running_loop().run_in_executor(self._label_threads, keep)
        self._labelling.add(kept)  # until it is over, whether somebody waits for it or not
        kept.add_done_callback(self._labelling.discard)
        try:
            return await asyncio.wait_for(asyncio.shield(kept), self.serving.journal_seconds)
        except TimeoutError:
            kept.add_done_callback(lambda over: over.cancelled() or over.exception())  # nobody else asks for it
            raise JournalError(
                f"The journal has not kept the labels within {self.serving.journal_seconds:g} s "
                "(flows.serve.journal_seconds). Send them again: those that it did keep stand once."
            ) from None

    async def end(self) -> None:
        """Wait for the copies and the labels that are still under way."""
        under_way: set[asyncio.Future[Any]] = {*self._copies, *self._labelling}
        if under_way:
            await asyncio.wait(under_way, timeout=self.serving.journal_seconds)
        self._label_threads.shutdown(wait=False)
        await asyncio.to_thread(self.writers.close)

    def _check_journal(self, num_rows: int) -> None:
        """Raise Busy or JournalError where an answer could not be written down in time: before it is computed."""
        if stall := self.journal.stall:
            raise JournalError(stall)
        waiting = self.journal.num_waiting
        if waiting and waiting + num_rows > self.serving.queue_rows:
            raise Busy(1)

    async def _record(self, lines: Sequence[Prediction]) -> None:
        written = asyncio.wrap_future(self.journal.record(lines))
        try:
            await asyncio.wait_for(written, self.serving.journal_seconds)
        except TimeoutError:
            raise self._too_late() from None

    def _too_late(self) -> JournalError:
        return JournalError(
            f"The journal has not written the answer down within {self.serving.journal_seconds:g} s "
            "(flows.serve.journal_seconds)."
        )

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
        if answered.served.batcher.queued_rows or self.journal.num_waiting > self.serving.queue_rows:
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
            ids = [None if row.reason or copied is None else self.new_id() for row, copied in pairs]
            copy = Answered(shadow, ids, traced, round(1000 * (time.perf_counter() - started), 3))
            lines = _journal_lines(copy, client, answered.ids)
            if lines:
                await self._record(lines)
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
