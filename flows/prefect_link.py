"""What a run tells Prefect's server, kept while the server is away: states of tasks, which are events, and logs."""

import contextlib
import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker, emit_events_to_cloud
from prefect.logging.handlers import APILogWorker, set_api_log_sink

from flows.prefect_api import silence

_DRAIN_SECONDS = 10
_POLL_SECONDS = 2
_ANSWER_SECONDS = 10
_LOST_AFTER = 3  # polls without an answer
_MAX_KEPT_LOGS = 10_000
_RUNS = ("prefect.flow_runs", "prefect.task_runs")
_EVENTS = ("prefect.events.clients", "prefect._internal.concurrency")


def this_flow_run() -> UUID:
    """The flow run that this thread is in."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    assert context is not None  # noqa: S101
    assert context.flow_run is not None  # noqa: S101
    return context.flow_run.id


class Link:
    """The way to the server. Without this Prefect would try each event for seconds, and complain of each log."""

    def __init__(self) -> None:
        self.is_lost = False
        self._logs: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def open(self, api_url: str, *, on_terminal: bool = False) -> Iterator[None]:
        """Let what the flow run within tells the server go this way; all of it has arrived afterwards, if it can.

        With `on_terminal` its log is shown there as well.
        """
        self._api = api_url
        # Prefect's settings here name the server: lines come from threads that have none.
        self._around = contextvars.copy_context()
        set_api_log_sink(self._send_log)
        if not emit_events_to_cloud():
            # What did not get through is sent again with the next event, so that one need not be tried for long.
            EventsWorker.set_client_override(PrefectEventsClient, api_url=api_url, reconnection_attempts=1)
        try:
            with _filtered(_RUNS, self._mended, propagate=on_terminal), _filtered(_EVENTS, self._is_to_be_said):
                yield
                if not self.is_lost:
                    EventsWorker.drain_all(_DRAIN_SECONDS)
                    APILogWorker.drain_all(_DRAIN_SECONDS)
        finally:
            EventsWorker.set_client_override(None)
            set_api_log_sink(None)

    @contextlib.contextmanager
    def watched(self, cancel: Callable[[str], None], say: Callable[[str], None], goes_on: str) -> Iterator[None]:
        """Look at the flow run that this is in, all the while: `cancel` is called where somebody cancels it in Prefect.

        `say` hears where the server goes away and comes back, and then `goes_on`, which says what does without it.
        """
        over, around = threading.Event(), contextvars.copy_context()  # the flow run and the settings of this thread
        arguments = over, this_flow_run(), cancel, say, goes_on
        threading.Thread(target=around.run, args=(self._watch, *arguments), daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _watch(
        self,
        over: threading.Event,
        flow_run: UUID,
        cancel: Callable[[str], None],
        say: Callable[[str], None],
        goes_on: str,
    ) -> None:
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

        silent = 0
        if over.wait(_POLL_SECONDS):
            return
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(httpx_settings={"timeout": _ANSWER_SECONDS}, sync_client=True) as client,
        ):
            while not over.is_set():
                try:
                    state = client.read_flow_run(flow_run).state
                except Exception as error:
                    silent, self.is_lost = silent + 1, True
                    if silent == _LOST_AFTER:
                        say(f"Prefect's server does not answer any more ({error}). {goes_on}")
                else:
                    if silent >= _LOST_AFTER:
                        say("Prefect's server answers again.")
                    silent, self.is_lost = 0, False
                    if state is not None and (state.is_cancelling() or state.is_cancelled()) and not over.is_set():
                        cancel("cancelled in Prefect")
                        return
                over.wait(_POLL_SECONDS)

    def _send_log(self, log: dict[str, Any]) -> None:
        """Send a line of a log, and before it those that were kept; keep it where the server is away."""
        with self._lock:
            self._logs.append(log)
            if self.is_lost:
                del self._logs[:-_MAX_KEPT_LOGS]
                return
            # Found anew each time: Prefect stops it where anything sets up logging afresh, as importing DVC does.
            worker = self._around.copy().run(APILogWorker.instance)
            for kept in self._logs:
                worker.send(kept)
            self._logs = []

    def _is_to_be_said(self, record: logging.LogRecord) -> bool:
        """Whether a complaint about an event says something new: that the server is away is said once, elsewhere."""
        if record.levelno >= logging.WARNING and not self.is_lost:
            self.is_lost = bool(silence(self._api))
        return not self.is_lost

    def _mended(self, record: logging.LogRecord) -> bool:
        """Every line, at the time when it was said, and a returned state without the traceback of no exception.

        What Prefect runs into where the server is away is no line of the run.
        """
        record.created = getattr(record, "said_at", record.created)
        if record.exc_info and record.exc_info[0] is None:
            record.exc_info = None
        if record.exc_info and not self.is_lost:
            self.is_lost = bool(silence(self._api))
        return not (record.exc_info and self.is_lost)


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
