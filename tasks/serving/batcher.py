"""Rows of many requests, answered together: a batch of 32 costs far less than 32 batches of one.

One thread computes, since ONNX Runtime spreads over the cores by itself. What waits is bounded in rows and in time:
whoever comes when it is full is told at once, and latency does not grow with the load.
"""

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import polars as pl

# How many batches are taken from the queue together: their rows are sorted by length before they are cut, and rows of
# like length waste no padding.
_WINDOW = 2

# The weight of the newest batch in the running mean of what a row costs.
_NEWEST = 0.2


class Busy(Exception):
    """The queue is full. `retry_after` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"busy for about {retry_after} s")
        self.retry_after = retry_after


class Retired(Exception):
    """The version was replaced; its successor takes the request."""


@dataclass(eq=False)
class _Request:
    num_parts: int
    order: list[int]  # where each computed row belongs
    future: "Future[pl.DataFrame]" = field(default_factory=Future)
    done: dict[int, pl.DataFrame] = field(default_factory=dict)


@dataclass(eq=False)
class _Part:
    """Rows of one request that are computed together."""

    request: _Request
    number: int
    rows: pl.DataFrame
    length: float  # of its rows, on average
    arrived: float

    @property
    def cost(self) -> float:
        return self.length * len(self.rows)


class Batcher:
    """Gives every submitted frame's answer, in the frame's own order, through a Future."""

    def __init__(
        self,
        answer: Callable[[pl.DataFrame], pl.DataFrame],
        lengths: Callable[[pl.DataFrame], Iterable[float]],
        *,
        batch_rows: int,
        wait_seconds: float,
        queue_rows: int,
        queue_seconds: float,
        name: str,
    ) -> None:
        self._answer = answer
        self._lengths = lengths
        self._batch_rows = batch_rows
        self._wait_seconds = wait_seconds
        self._queue_rows = queue_rows
        self._queue_seconds = queue_seconds
        self._queue: deque[_Part] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._running_cost = 0.0
        self._seconds_per_cost = 0.0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def queued_rows(self) -> int:
        with self._changed:
            return sum(len(part.rows) for part in self._queue)

    def submit(self, rows: pl.DataFrame) -> "Future[pl.DataFrame]":
        """Queue at least one row. Raises Busy where too much waits already, Retired after `close`."""
        lengths = list(self._lengths(rows))
        order = sorted(range(len(rows)), key=lambda row: lengths[row])
        starts = range(0, len(rows), self._batch_rows)
        request = _Request(len(starts), order)
        with self._changed:
            if self._closed:
                raise Retired
            self._check_room(len(rows))
            for number, start in enumerate(starts):
                chosen = order[start : start + self._batch_rows]
                length = sum(lengths[row] for row in chosen) / len(chosen)
                self._queue.append(_Part(request, number, rows[chosen], length, time.monotonic()))
            self._changed.notify_all()
        return request.future

    def close(self) -> None:
        """Take nothing more, answer what waits, and return when that is done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _check_room(self, num_rows: int) -> None:
        waiting_rows = sum(len(part.rows) for part in self._queue)
        waiting_cost = self._running_cost + sum(part.cost for part in self._queue)
        seconds = waiting_cost * self._seconds_per_cost
        # With nothing waiting any request is taken, or a long list would never be.
        if self._queue and (waiting_rows + num_rows > self._queue_rows or seconds > self._queue_seconds):
            raise Busy(max(1, math.ceil(seconds)))

    def _work(self) -> None:
        while window := self._take():
            for batch in self._batches(window):
                self._compute(batch)
            with self._changed:
                self._running_cost = 0.0

    def _take(self) -> list[_Part]:
        """The oldest parts, at most a window of rows; none once closed and empty."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            while self._queue and not self._closed and sum(len(part.rows) for part in self._queue) < self._batch_rows:
                left = self._queue[0].arrived + self._wait_seconds - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            taken: list[_Part] = []
            room = _WINDOW * self._batch_rows
            while self._queue and (not taken or len(self._queue[0].rows) <= room):
                part = self._queue.popleft()
                room -= len(part.rows)
                taken.append(part)
            self._running_cost = sum(part.cost for part in taken)
            return taken

    def _batches(self, window: list[_Part]) -> Iterable[list[_Part]]:
        batch: list[_Part] = []
        for part in sorted(window, key=lambda part: part.length):
            if batch and sum(len(one.rows) for one in batch) + len(part.rows) > self._batch_rows:
                yield batch
                batch = []
            batch.append(part)
        yield batch

    def _compute(self, batch: list[_Part]) -> None:
        started = time.monotonic()
        batch = [part for part in batch if not part.request.future.cancelled()]  # their callers have gone
        if not batch:
            return
        try:
            answers = self._answer(pl.concat([part.rows for part in batch]))
        except Exception as error:  # whatever it is, its callers hear of it and the thread goes on
            for part in batch:
                with contextlib.suppress(InvalidStateError):
                    part.request.future.set_exception(error)
            return
        self._learn(sum(part.cost for part in batch), time.monotonic() - started)
        start = 0
        for part in batch:
            self._finish(part, answers[start : start + len(part.rows)])
            start += len(part.rows)

    def _learn(self, cost: float, seconds: float) -> None:
        now = seconds / max(cost, 1.0)
        with self._changed:
            before = self._seconds_per_cost or now
            self._seconds_per_cost = before + _NEWEST * (now - before)

    @staticmethod
    def _finish(part: _Part, answers: pl.DataFrame) -> None:
        request = part.request
        request.done[part.number] = answers
        if len(request.done) < request.num_parts:
            return
        sorted_answers = pl.concat([request.done[number] for number in range(request.num_parts)])
        back = [0] * len(request.order)
        for place, row in enumerate(request.order):
            back[row] = place
        with contextlib.suppress(InvalidStateError):  # cancelled in the meantime
            request.future.set_result(sorted_answers[back])
