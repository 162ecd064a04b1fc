"""What a run tells Prefect's server, kept while the server is away: states of tasks, which are events, and logs."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from prefect.events import Event
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker, emit_events_to_cloud
from prefect.logging.handlers import APILogWorker, set_api_log_sink

_DRAIN_SECONDS = 10
_MAX_KEPT_LOGS = 10_000


class Link:
    """The way to the server. Without this Prefect would try each event for seconds, and complain of each log."""

    def __init__(self) -> None:
        self.is_lost = False
        self._logs: list[dict[str, Any]] = []

    def send_log(self, log: dict[str, Any]) -> None:
        """Send a line of a log, and before it those that were kept; keep it where the server is away."""
        self._logs.append(log)
        if self.is_lost:
            del self._logs[:-_MAX_KEPT_LOGS]
            return
        logs, self._logs = self._logs, []
        for kept in logs:
            APILogWorker.instance().send(kept)

    @contextlib.contextmanager
    def open(self, api_url: str) -> Iterator[None]:
        """Let what the flow run within tells the server go this way; all of it has arrived afterwards, if it can."""
        set_api_log_sink(self.send_log)
        if not emit_events_to_cloud():
            EventsWorker.set_client_override(_Events, api_url=api_url, link=self)
        try:
            with _only_in_prefects_logs():
                yield
            if not self.is_lost:
                EventsWorker.drain_all(_DRAIN_SECONDS)
                APILogWorker.drain_all(_DRAIN_SECONDS)
        finally:
            EventsWorker.set_client_override(None)
            set_api_log_sink(None)


class _Events(PrefectEventsClient):
    """Prefect's own, which sends again what was not confirmed once it has found its server again."""

    def __init__(self, api_url: str, link: Link) -> None:
        super().__init__(api_url)
        self._link = link

    async def _emit(self, event: Event) -> None:
        if self._link.is_lost:
            self._unconfirmed_events.append(event)
            return
        try:
            await super()._emit(event)
        except Exception:
            if not self._link.is_lost:
                raise

    def _log_connection_error(self, error: Exception) -> None:
        """Nothing: whoever watches the flow run says it, once."""


@contextlib.contextmanager
def _only_in_prefects_logs() -> Iterator[None]:
    """Keep Prefect's own lines about runs from the terminal: what matters of them is there already."""

    def without_nothing(record: logging.LogRecord) -> bool:
        """A state that is returned is logged with the traceback of no exception."""
        if record.exc_info and record.exc_info[0] is None:
            record.exc_info = None
        return True

    loggers = [logging.getLogger(f"prefect.{name}") for name in ("flow_runs", "task_runs")]
    former = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.propagate = False
        logger.addFilter(without_nothing)
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, former, strict=True):
            logger.removeFilter(without_nothing)
            logger.propagate = propagate
