"""The line as Prefect shows it: a flow run in a thread of its own, and in it a task run for each stage.

No stage waits for it. Prefect takes seconds to be imported and its temporary server more, and meanwhile the stages are
at work; a server that goes away in the middle is missed and nothing else.
"""

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.merge import model_of_stage
from flows.output import Output
from flows.params import LineParams
from flows.scheduling import Result
from flows.stages import Node

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

    from flows.artifacts import Artifact
    from flows.prefect_link import Link

_RETRIED = "collect"
_LAST_WORDS_SECONDS = 10  # for a run that was stopped to be shown as such


@dataclass(frozen=True)
class Ended:
    """How a run ended: each stage's result by its address, and why it was stopped, if it was."""

    results: Mapping[str, Result]
    why_stopped: str = ""

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.results.values() if result.outcome == "failed"]


@dataclass(frozen=True)
class _Shown:
    """A stage that has begun, or has come to an end without: what it needed, and the results of its attempts."""

    node: Node
    needs: tuple[str, ...]
    retries: int
    results: "queue.SimpleQueue[Result]" = field(default_factory=queue.SimpleQueue)
    state: "Future[State[Any] | None]" = field(default_factory=Future)


class FlowRun:
    """Shows a run in Prefect while it goes on, and calls `stop` where somebody cancels it there.

    `api` is the server's URL; without, a temporary one is started. `shown` are the flow run's parameters, `known` all
    models; `outputs` gives what a stage has made.
    """

    def __init__(
        self,
        api: str | None,
        root: Path,
        params: LineParams,
        output: Output,
        shown: Mapping[str, Any],
        *,
        known: Sequence[str],
        outputs: Callable[[str], list[dict[str, Any]]],
        stop: Callable[[str], None],
        is_stopped: Callable[[], bool],
    ) -> None:
        self._api, self._root, self._params, self._output, self._parameters = api, root, params, output, shown
        self._known, self._outputs, self._stop, self._is_stopped = known, outputs, stop, is_stopped
        self._news: queue.SimpleQueue[_Shown | None] = queue.SimpleQueue()
        self._shown: dict[str, _Shown] = {}
        self._cached: list[Node] = []
        self._ended = Ended({})
        around = contextvars.copy_context()  # a flow run that this one is part of
        self._thread = threading.Thread(target=around.run, args=(self._observe,), name="prefect", daemon=True)

    def start(self) -> None:
        """Bring Prefect up, and return at once."""
        self._thread.start()

    def watch(self, node: Node, upstream: Sequence[Result], work: Callable[[], Result]) -> Result:
        """The last result of a stage's work, while Prefect shows it: `collect` is tried again where it fails."""
        retries = self._params.collect_retries if node.word == _RETRIED else 0
        shown = _Shown(node, tuple(result.address for result in upstream), retries)
        self._shown[node.address] = shown
        self._news.put(shown)
        for attempt in range(retries + 1):
            result = work()
            shown.results.put(result)
            if result.outcome != "failed" or attempt == retries or self._is_stopped():
                break
            self._output(node.address, f"to be tried again in {self._params.collect_retry_seconds:g} s")
            self._rest(self._params.collect_retry_seconds)
        return result

    def finish(self, ended: Ended) -> None:
        """Let Prefect show the rest and how the run ended, and wait for that; not for long where it was stopped."""
        self._ended = ended
        self._news.put(None)
        until = time.monotonic() + (_LAST_WORDS_SECONDS if ended.why_stopped else float("inf"))
        while self._thread.is_alive() and time.monotonic() < until:
            self._thread.join(0.1)
            if self._is_stopped() and not ended.why_stopped:
                return

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._is_stopped():
            time.sleep(min(0.2, seconds))

    def _observe(self) -> None:
        try:
            self._as_flow()
        except Exception as error:
            self._output.detach()
            self._output.about_all(
                f"Prefect does not show how this run ended: {error!r}. Nothing is lost: what the stages have made is "
                "recorded in DVC. `mill up` keeps a server."
            )

    def _as_flow(self) -> None:
        from flows.prefect_api import on_server
        from flows.prefect_link import Link

        link = Link()
        with on_server(self._api) as url, link.open(url):
            from prefect import flow

            @flow(name="line", flow_run_name="-".join(["line", *self._parameters["models"]]), persist_result=False)
            def line(models: list[str], jobs: int, force: list[str]) -> "State[Any]":
                self._greet()
                self._show_all(link)
                return _last_state(self._ended)

            line(**self._parameters, return_state=True)

    def _greet(self) -> None:
        from prefect import get_run_logger
        from prefect.utilities.urls import url_for

        from flows.prefect_link import this_flow_run

        self._output.attach("", get_run_logger())
        if self._api is not None:
            self._output.about_all(f"Prefect shows it: {url_for('flow-run', this_flow_run())}")

    def _show_all(self, link: "Link") -> None:
        """Make a task run of each stage as it comes, until the run has ended."""
        threads = []
        with link.watched(self._stop, self._output.about_all, "The stages go on, and DVC records them."):
            while (shown := self._news.get()) is not None:
                if not shown.results.empty():
                    self._show(shown)
                    continue
                threads.append(_thread(self._show, shown))
            for thread in threads:
                # One that was stopped between two attempts sleeps on.
                thread.join(1 if self._ended.why_stopped else None)
            self._leave_artifacts_of_cached()

    def _show(self, shown: _Shown) -> None:
        """A stage as a task run, which ends with the stage's last attempt."""
        from prefect import get_run_logger, task
        from prefect.cache_policies import NO_CACHE

        address = shown.node.address

        @task(
            name=address,
            task_run_name=lambda: address,
            retries=shown.retries,
            retry_delay_seconds=self._params.collect_retry_seconds,
            retry_condition_fn=lambda *_: not self._is_stopped(),
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        def stage() -> "State[Any]":
            self._output.attach(address, get_run_logger())
            result = shown.results.get()
            if result.outcome == "cached":
                self._cached.append(shown.node)
            elif result.is_good:
                self._leave_artifacts(shown.node)
            return _state(result)

        try:
            shown.state.set_result(stage(wait_for=self._before(shown), return_state=True))
        except Exception as error:
            shown.state.set_result(None)
            self._output(address, f"Prefect does not show this stage: {error!r}")

    def _leave_artifacts(self, node: Node) -> None:
        from flows.artifacts import leave

        try:
            leave(self._artifacts([node])[node.address])
        except Exception as error:  # it is the stage that counts
            self._output(node.address, f"no artifacts in Prefect: {error!r}")

    def _leave_artifacts_of_cached(self) -> None:
        from flows.artifacts import leave_together

        try:
            if self._cached and not self._ended.why_stopped:
                leave_together(self._artifacts(self._cached), self._parameters["models"])
        except Exception as error:
            self._output.about_all(f"No artifacts in Prefect of what was up to date: {error!r}")

    def _artifacts(self, nodes: Sequence[Node]) -> "dict[str, list[Artifact]]":
        from flows.addresses import Portal
        from flows.artifacts import artifacts_of

        portal = Portal.of(self._root)
        return {
            node.address: artifacts_of(
                self._root, node, model_of_stage(node.name, self._known), self._outputs(node.address), portal
            )
            for node in nodes
        }

    def _before(self, shown: _Shown) -> list[Any]:
        """The states of what a stage needed: they draw the edges of the flow run's graph.

        Whether a stage may run is decided elsewhere, so that Prefect is told of nothing that it would wait for.
        """
        from prefect.client.schemas.objects import StateType
        from prefect.utilities.annotations import allow_failure

        states = [self._shown[need].state.result() for need in shown.needs]
        return [allow_failure(state.model_copy(update={"type": StateType.FAILED})) for state in states if state]


def _thread(work: Callable[..., None], *arguments: Any) -> threading.Thread:
    """A thread in the flow run and with the settings of this one."""
    thread = threading.Thread(target=contextvars.copy_context().run, args=(work, *arguments), daemon=True)
    thread.start()
    return thread


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


def _last_state(ended: Ended) -> "State[Any]":
    """The flow run's last state, with what failed, how, and the end of its log."""
    from prefect.states import Cancelled, Completed, Failed

    counts: dict[str, int] = {}
    for result in ended.results.values():
        counts[result.outcome] = counts.get(result.outcome, 0) + 1
    summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    if ended.why_stopped:
        return Cancelled(message=f"{ended.why_stopped}: {summary}")
    if ended.failed:
        return Failed(message="\n\n".join([summary, *(result.message for result in ended.failed)]))
    return Completed(message=summary)
