"""Rows of many requests, answered together: a window of them costs far less than one after the other.

What waits is shared out among lanes, each a thread that computes by itself: while one of them talks to Python, another
has the processor. What waits is bounded in rows and in time: whoever comes when it is full is told at once, and latency
does not grow with the load.
"""

import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Generic, TypeVar

# How many batches a lane takes from the queue together. It sorts their rows by length before it cuts them, and rows of
# like length waste no padding.
_WINDOW = 16

# A request is shared among lanes in parts of at least so many rows: less is not worth a call.
_LEAST_PART = 4

# The weight of the newest measurement in the running mean of what a row costs.
_NEWEST = 0.2

Row = TypeVar("Row")
Answer = TypeVar("Answer")


class Busy(Exception):
    """The queue is full. `retry_after` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"busy for about {retry_after} s")
        self.retry_after = retry_after


class Retired(Exception):
    """The version was replaced; its successor takes the request."""


@dataclass(eq=False)
class _Request(Generic[Answer]):
    answers: list[Answer | None]
    num_missing: int  # parts that are not computed yet
    future: "Future[list[Answer]]" = field(default_factory=Future)


@dataclass(eq=False)
class _Part(Generic[Row, Answer]):
    """Rows of one request that are computed together."""

    request: _Request[Answer]
    places: Sequence[int]  # where in the request they belong
    rows: list[Row]
    cost: float
    arrived: float


class Batcher(Generic[Row, Answer]):
    """Gives the answers to each submitted list of rows, in the rows' own order, through a Future.

    A lane is a function from rows to their answers; it is called by one thread, which is nicer to other processes by
    `niceness` than the rest of this one.
    """

    def __init__(
        self,
        lanes: Sequence[Callable[[list[Row]], Sequence[Answer]]],
        cost: Callable[[Row], float],
        *,
        batch_rows: int,
        wait_seconds: float,
        queue_rows: int,
        queue_seconds: float,
        name: str,
        niceness: int = 0,
    ) -> None:
        self._cost = cost
        self._batch_rows = batch_rows
        self._wait_seconds = wait_seconds
        self._queue_rows = queue_rows
        self._queue_seconds = queue_seconds
        self._niceness = niceness
        self._queue: deque[_Part[Row, Answer]] = deque()
        self._num_queued = 0
        self._queued_cost = 0.0
        self._running_cost = 0.0
        self._seconds_per_cost = 0.0  # of one lane
        self._changed = threading.Condition()
        self._is_closed = False
        self._lanes = [
            threading.Thread(target=self._work, args=(answer,), name=f"{name}-{number}", daemon=True)
            for number, answer in enumerate(lanes)
        ]
        for lane in self._lanes:
            lane.start()

    @property
    def queued_rows(self) -> int:
        return self._num_queued

    def submit(self, rows: Sequence[Row]) -> "Future[list[Answer]]":
        """Queue at least one row. Raises Busy where too much waits already, Retired after `close`."""
        costs = [self._cost(row) for row in rows]
        order = sorted(range(len(rows)), key=costs.__getitem__)
        step = min(self._batch_rows, max(_LEAST_PART, math.ceil(len(rows) / len(self._lanes))))
        chosen = [order[start : start + step] for start in range(0, len(rows), step)]
        request: _Request[Answer] = _Request([None] * len(rows), len(chosen))
        now = time.monotonic()
        with self._changed:
            if self._is_closed:
                raise Retired
            self._check_room(len(rows))
            for places in chosen:
                part = _Part(request, places, [rows[row] for row in places], sum(costs[row] for row in places), now)
                self._queue.append(part)
                self._queued_cost += part.cost
            self._num_queued += len(rows)
            self._changed.notify(len(chosen))
        return request.future

    def close(self) -> None:
        """Take nothing more, answer what waits, and return when that is done."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for lane in self._lanes:
            lane.join()

    def check_room(self, num_rows: int = 1) -> None:
        """Raises Busy where so many rows would be turned away now."""
        with self._changed:
            self._check_room(num_rows)

    def _check_room(self, num_rows: int) -> None:
        seconds = (self._running_cost + self._queued_cost) * self._seconds_per_cost / len(self._lanes)
        # With nothing waiting any request is taken, or a long list would never be.
        if self._queue and (self._num_queued + num_rows > self._queue_rows or seconds > self._queue_seconds):
            raise Busy(max(1, math.ceil(seconds)))

    def _work(self, answer: Callable[[list[Row]], Sequence[Answer]]) -> None:
        if self._niceness:
            with contextlib.suppress(OSError, AttributeError):  # of this thread alone, where the system has that
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        while window := self._take():
            self._compute(window, answer)

    def _take(self) -> "list[_Part[Row, Answer]]":
        """The oldest parts, at most a window of rows; none once closed and empty."""
        with self._changed:
            # Another lane may take all that waits while this one waits for more.
            while not self._is_closed and (left := self._left()) != 0:
                self._changed.wait(left)
            # A lane's share of what waits: one must not take all while another has nothing to do.
            share = math.ceil(self._num_queued / len(self._lanes))
            room = min(max(share, _LEAST_PART), _WINDOW * self._batch_rows)
            taken: list[_Part[Row, Answer]] = []
            while self._queue and (not taken or len(self._queue[0].rows) <= room):
                part = self._queue.popleft()
                taken.append(part)
                room -= len(part.rows)
                self._num_queued -= len(part.rows)
                self._queued_cost -= part.cost
                self._running_cost += part.cost
            return taken

    def _left(self) -> float | None:
        """Seconds until what waits is computed even if nothing comes to it; None where nothing waits."""
        if not self._queue:
            return None
        if self._num_queued >= self._batch_rows:
            return 0
        return max(0, self._queue[0].arrived + self._wait_seconds - time.monotonic())

    def _compute(self, window: "list[_Part[Row, Answer]]", answer: Callable[[list[Row]], Sequence[Answer]]) -> None:
        started = time.monotonic()
        cost = sum(part.cost for part in window)
        asked = [part for part in window if not part.request.future.done()]  # else their callers have gone
        try:
            answers = answer([row for part in asked for row in part.rows]) if asked else []
        except Exception as error:  # whatever it is, its callers hear of it and the thread goes on
            for part in asked:
                with contextlib.suppress(InvalidStateError):
                    part.request.future.set_exception(error)
            with self._changed:
                self._running_cost -= cost
            return
        with self._changed:
            self._running_cost -= cost
            if asked:
                self._learn(sum(part.cost for part in asked), time.monotonic() - started)
        start = 0
        for part in asked:
            self._finish(part, answers[start : start + len(part.rows)])
            start += len(part.rows)

    def _learn(self, cost: float, seconds: float) -> None:
        now = seconds / max(cost, 1.0)
        before = self._seconds_per_cost or now
        self._seconds_per_cost = before + _NEWEST * (now - before)

    def _finish(self, part: _Part[Row, Answer], answers: Sequence[Answer]) -> None:
        request = part.request
        for place, answer in zip(part.places, answers, strict=True):
            request.answers[place] = answer
        with self._changed:
            request.num_missing -= 1
            is_whole = not request.num_missing
        if is_whole:
            with contextlib.suppress(InvalidStateError):  # cancelled in the meantime
                request.future.set_result(request.answers)  # type: ignore[arg-type]  # none is missing now
