"""Rows that wait to be written, committed together by one thread; and whether that goes well.

A commit costs the disk a sync, however many rows are in it. So whatever has come while one is under way is in the next.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

# One commit for as many rows as wait, up to about this many.
_ROWS_PER_COMMIT = 1_000

# A commit that takes longer is said to hang.
_STALLED_SECONDS = 5.0

# How often it is tried after a failure whether the database takes anything again, when nobody writes.
_PROBE_SECONDS = 1.0

# How long an end waits for a commit that hangs.
_END_SECONDS = 30.0

Row = TypeVar("Row")


@dataclass(eq=False)
class _Entry(Generic[Row]):
    rows: Sequence[Row]
    written: "Future[None]" = field(default_factory=Future)


class GroupCommit(Generic[Row]):
    """Calls `write` with rows in the order in which they came, from a thread of its own.

    `probe` writes something that changes nothing. After a failure it says whether the database is well again: of a
    server that says it is not well nobody asks anything, so that nothing else would be written.
    """

    def __init__(self, write: Callable[[list[Row]], None], probe: Callable[[], None]) -> None:
        self._write = write
        self._probe = probe
        self._waiting: queue.SimpleQueue[_Entry[Row] | None] = queue.SimpleQueue()
        self._num_waiting = 0
        self._lock = threading.Lock()
        self._began: float | None = None  # when the commit that is under way did
        self._failure: str | None = None  # of the last one
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Rows that were submitted and are not written yet."""
        return self._num_waiting

    @property
    def stalled_seconds(self) -> float | None:
        """How long a commit has been under way that takes too long; None where none does."""
        began = self._began
        seconds = 0.0 if began is None else time.monotonic() - began
        return seconds if seconds > _STALLED_SECONDS else None

    @property
    def failure(self) -> str | None:
        """Why the last commit failed; None where it did not."""
        return self._failure

    def submit(self, rows: Sequence[Row]) -> "Future[None]":
        """Have rows written. The future ends when they are, or with what `write` raised.

        Rows whose future is cancelled while they wait are not written.
        """
        entry = _Entry(rows)
        with self._lock:
            self._num_waiting += len(rows)
        self._waiting.put(entry)
        return entry.written

    def close(self) -> None:
        """Write what waits, unless that hangs."""
        self._waiting.put(None)
        self._thread.join(_END_SECONDS)

    def _work(self) -> None:
        ended = False
        while not ended:
            group, ended = self._take()
            wanted = [entry for entry in group if entry.written.set_running_or_notify_cancel()]
            if wanted:
                self._commit(wanted)
            elif not group and not ended:
                self._attempt(self._probe)
            with self._lock:
                self._num_waiting -= sum(len(entry.rows) for entry in group)

    def _take(self) -> tuple[list[_Entry[Row]], bool]:
        """What waits, and whether the end has come. Nothing where it is time for a probe."""
        group: list[_Entry[Row]] = []
        num_rows = 0
        while num_rows < _ROWS_PER_COMMIT:
            try:
                entry = self._waiting.get(block=not group, timeout=_PROBE_SECONDS if self._failure else None)
            except queue.Empty:
                break
            if entry is None:
                return group, True
            group.append(entry)
            num_rows += len(entry.rows)
        return group, False

    def _commit(self, entries: "list[_Entry[Row]]") -> None:
        rows = [row for entry in entries for row in entry.rows]
        error = self._attempt(lambda: self._write(rows))
        for entry in entries:
            with suppress(InvalidStateError):
                if error is None:
                    entry.written.set_result(None)
                else:
                    entry.written.set_exception(error)

    def _attempt(self, act: Callable[[], None]) -> Exception | None:
        self._began = time.monotonic()
        try:
            act()
        except Exception as error:  # whatever it is, those who wait hear of it and the thread goes on
            self._failure = str(error)
            return error
        finally:
            self._began = None
        self._failure = None
        return None
