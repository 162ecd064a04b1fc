"""What a run tells Prefect's server, kept while the server is away: states of tasks, which are events, and logs."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker, emit_events_to_cloud
from prefect.logging.handlers import APILogWorker, set_api_log_sink

from flows.prefect_api import silence

_DRAIN_SECONDS = 10
_MAX_KEPT_LOGS = 10_000
_RUNS = ("prefect.flow_runs", "prefect.task_runs")
_EVENTS = ("prefect.events.clients", "prefect._internal.concurrency")


class Link:
    """The way to the server. Without this Prefect would try each event for seconds, and complain of each log."""

    def __init__(self) -> None:
        self.is_lost = False
        self._logs: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def open(self, api_url: str) -> Iterator[None]:
        """Let what the flow run within tells the server go this way; all of it has arrived afterwards, if it can."""
        self._api = api_url
        # Found here, where Prefect's settings name the server: lines come from threads that have none.
        self._worker = APILogWorker.instance()
        set_api_log_sink(self._send_log)
        if not emit_events_to_cloud():
            # What did not get through is sent again with the next event, so that one need not be tried for long.
            EventsWorker.set_client_override(PrefectEventsClient, api_url=api_url, reconnection_attempts=1)
        try:
            with _filtered(_RUNS, _mended, propagate=False), _filtered(_EVENTS, self._is_to_be_said):
                yield
                if not self.is_lost:
                    EventsWorker.drain_all(_DRAIN_SECONDS)
                    APILogWorker.drain_all(_DRAIN_SECONDS)
        finally:
            EventsWorker.set_client_override(None)
            set_api_log_sink(None)

    def _send_log(self, log: dict[str, Any]) -> None:
        """Send a line of a log, and before it those that were kept; keep it where the server is away."""
        with self._lock:
            self._logs.append(log)
            if self.is_lost:
                del self._logs[:-_MAX_KEPT_LOGS]
                return
            for kept in self._logs:
                self._worker.send(kept)
            self._logs = []

    def _is_to_be_said(self, record: logging.LogRecord) -> bool:
        """Whether a complaint about an event says something new: that the server is away is said once, elsewhere."""
        if record.levelno >= logging.WARNING and not self.is_lost:
            self.is_lost = bool(silence(self._api))
        return not self.is_lost


def _mended(record: logging.LogRecord) -> bool:
    """Every line, at the time when it was said, and a returned state without the traceback of no exception."""
    record.created = getattr(record, "said_at", record.created)
    if record.exc_info and record.exc_info[0] is None:
        record.exc_info = None
    return True


@contextlib.contextmanager
def _filtered(names: tuple[str, ...], keep: Any, *, propagate: bool = True) -> Iterator[None]:
    """Loggers that keep to what `keep` says, and, without `propagate`, from the terminal: it has what matters."""
    loggers = [logging.getLogger(name) for name in names]
    former = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addFilter(keep)
        logger.propagate = logger.propagate and propagate
    try:
        yield
    finally:
        for logger, before in zip(loggers, former, strict=True):
            logger.removeFilter(keep)
            logger.propagate = before
