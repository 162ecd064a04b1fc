"""The line in Prefect: a task run for each stage, and the flow run, watched for the order to cancel it."""

import contextlib
import contextvars
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.output import Output
from flows.params import LineParams
from flows.scheduling import Result
from flows.stages import Node

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

_RETRIED = "collect"
_POLL_SECONDS = 2
_LOST_AFTER = 3  # polls without an answer


class TaskRuns:
    """Does stages' work within task runs of the flow run around it. Without Prefect's server the work is done too."""

    def __init__(self, root: Path, params: LineParams, output: Output, is_stopped: Callable[[], bool]) -> None:
        self._root, self._params, self._output, self._is_stopped = root, params, output, is_stopped
        self._states: dict[str, State[Any]] = {}

    def __call__(self, node: Node, upstream: Sequence[Result], work: Callable[[], Result]) -> Result:
        """The last result of `work`: `collect` is tried again where it fails."""
        from prefect import get_run_logger, task
        from prefect.cache_policies import NO_CACHE
        from prefect.states import Completed

        results: list[Result] = []
        retries = self._params.collect_retries if node.word == _RETRIED else 0

        @task(
            name=node.address,
            task_run_name=lambda: node.address,
            retries=retries,
            retry_delay_seconds=self._params.collect_retry_seconds,
            retry_condition_fn=lambda *_: not self._is_stopped(),
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        def stage() -> "State[Any]":
            self._output.attach(node.address, get_run_logger())
            results.append(work())
            if results[-1].outcome == "failed" and len(results) <= retries and not self._is_stopped():
                self._output(node.address, f"to be tried again in {self._params.collect_retry_seconds:g} s")
            return _state(results[-1])

        # They draw the edges of the flow run's graph. Whether a stage may run is decided elsewhere, so that Prefect is
        # told of nothing that it would wait for.
        known = [self._states[need.address] for need in upstream if need.address in self._states]
        before = [Completed(state_details=state.state_details) for state in known]
        try:
            self._states[node.address] = stage(wait_for=before, return_state=True)
        except Exception as error:
            self._output(node.address, f"Prefect does not show this stage: {error!r}")
        return results[-1] if results else work()


def _state(result: Result) -> "State[Any]":
    from prefect.client.schemas.objects import State, StateType
    from prefect.states import Cancelled, Completed, Failed

    if result.outcome == "failed":
        return Failed(message=result.message)
    if result.outcome == "stopped":
        return Cancelled(message=result.message)
    if result.outcome == "not run":
        return State(type=StateType.CANCELLED, name="NotRun", message=result.message)
    return Completed(name="Completed" if result.outcome == "ran" else result.outcome.title(), message=result.message)


@contextlib.contextmanager
def flow_run_watched(stop: Callable[[str], None], output: Output) -> Iterator[None]:
    """Call `stop` where the flow run that this thread is in is cancelled in Prefect; say where to look at it."""
    from prefect import get_run_logger
    from prefect.context import FlowRunContext
    from prefect.utilities.urls import url_for

    context = FlowRunContext.get()
    assert context is not None  # noqa: S101
    assert context.flow_run is not None  # noqa: S101
    ended = threading.Event()
    arguments = (str(context.flow_run.id), stop, output, ended)
    watcher = threading.Thread(target=contextvars.copy_context().run, args=(_watch, *arguments), daemon=True)
    output.attach("", get_run_logger())
    output.about_all(f"Prefect shows it: {url_for('flow-run', context.flow_run.id)}")
    watcher.start()
    try:
        yield
    finally:
        ended.set()


def _watch(flow_run: str, stop: Callable[[str], None], output: Output, ended: threading.Event) -> None:
    from uuid import UUID

    from prefect.client.orchestration import get_client

    silent = 0
    with get_client(httpx_settings={"timeout": 10}, sync_client=True) as client:
        while not ended.wait(_POLL_SECONDS):
            try:
                state = client.read_flow_run(UUID(flow_run)).state
            except Exception as error:
                silent += 1
                if silent == _LOST_AFTER:
                    _lose(output, error)
                continue
            silent = 0
            if state is not None and (state.is_cancelling() or state.is_cancelled()):
                stop("cancelled in Prefect")
                return


def _lose(output: Output, error: Exception) -> None:
    """Send no more logs to a server that is gone: each batch would be complained about."""
    from prefect.logging.handlers import set_api_log_sink

    output.detach()
    set_api_log_sink(lambda _: None)
    output.about_all(f"Prefect's server does not answer any more ({error}). The stages go on, and are recorded in DVC.")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Prefect's own lines in its logs alone: what matters of them is on the terminal already."""
    from prefect.logging.handlers import set_api_log_sink

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
        set_api_log_sink(None)
