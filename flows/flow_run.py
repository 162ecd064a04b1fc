"""The line in Prefect: a task run for each stage, and the flow run, watched for the order to cancel it."""

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.output import Output
from flows.params import LineParams
from flows.scheduling import Result
from flows.stages import Node

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import State

    from flows.prefect_link import Link

_RETRIED = "collect"
_POLL_SECONDS = 2
_ANSWER_SECONDS = 10
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
        from prefect.client.schemas.objects import StateType
        from prefect.utilities.annotations import allow_failure

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
        before = [allow_failure(state.model_copy(update={"type": StateType.FAILED})) for state in known]
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
def flow_run_watched(link: "Link", stop: Callable[[str], None], output: Output) -> Iterator[None]:
    """Call `stop` where the flow run that this thread is in is cancelled in Prefect; say where to look at it."""
    from prefect import get_run_logger
    from prefect.context import FlowRunContext
    from prefect.utilities.urls import url_for

    context = FlowRunContext.get()
    assert context is not None  # noqa: S101
    assert context.flow_run is not None  # noqa: S101
    number, ended = context.flow_run.id, threading.Event()
    around = contextvars.copy_context()  # with Prefect's settings
    watcher = threading.Thread(target=around.run, args=(_watch, number, link, stop, output, ended), daemon=True)
    output.attach("", get_run_logger())
    output.about_all(f"Prefect shows it: {url_for('flow-run', number)}")
    watcher.start()
    try:
        yield
    finally:
        ended.set()


def _watch(flow_run: "UUID", link: "Link", stop: Callable[[str], None], output: Output, ended: threading.Event) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    silent = 0
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(httpx_settings={"timeout": _ANSWER_SECONDS}, sync_client=True) as client,
    ):
        while not ended.wait(_POLL_SECONDS):
            try:
                state = client.read_flow_run(flow_run).state
            except Exception as error:
                silent, link.is_lost = silent + 1, True
                if silent == _LOST_AFTER:
                    output.about_all(
                        f"Prefect's server does not answer any more ({error}). The stages go on, and DVC records them."
                    )
                continue
            if silent >= _LOST_AFTER:
                output.about_all("Prefect's server answers again.")
            silent, link.is_lost = 0, False
            if state is not None and (state.is_cancelling() or state.is_cancelled()):
                stop("cancelled in Prefect")
                return
