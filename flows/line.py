"""The line under Prefect: what is stale in the DVC graph runs as Prefect tasks, in parallel, with one committer.

DVC says what there is and what is stale; Prefect shows it, retries `collect`, and takes the order to cancel. Prefect is
a watcher here: where its server goes away in the middle, the stages go on and are recorded all the same.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.commands import Commands
from flows.committer import Committer
from flows.output import Output
from flows.params import LineParams
from flows.prefect_api import prefect_api
from flows.scheduling import Result, Scheduler
from flows.stages import forced
from flows.waiting import Patience

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Ended:
    """How a run ended: each stage's result by its address, and why it was stopped, if it was."""

    results: Mapping[str, Result]
    why_stopped: str = ""

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.results.values() if result.outcome == "failed"]


def run_line(
    root: Path,
    models: Sequence[str],
    *,
    known: Sequence[str],
    params: LineParams,
    jobs: int | None = None,
    force: Sequence[str] = (),
) -> Ended:
    """Bring the models' stages up to date, without models all of the repository's, as a flow run of Prefect.

    `known` are all models that there are, `force` names stages to run though they are up to date. A stage that fails
    is in the result and not raised. Ctrl-C and SIGTERM stop what runs.
    """
    output, commands = Output(), Commands()
    patience = Patience(params.lock_wait_minutes * 60, output.about_all, lambda: commands.is_stopped)
    with Committer(root, patience) as committer:
        nodes = committer.plan(models, known)
        output.align(node.address for node in nodes)
        asked = forced(nodes, force)
        scheduler = Scheduler(nodes, committer, commands, jobs=jobs or params.jobs, forced=asked, say=output)
        with prefect_api(root) as api:
            shown = {"models": list(models), "jobs": jobs or params.jobs, "force": list(force)}
            _as_flow(root, api, scheduler, params, output, shown)
    return Ended(scheduler.results, scheduler.why_stopped)


def _as_flow(
    root: Path,
    api: str,
    scheduler: Scheduler,
    params: LineParams,
    output: Output,
    shown: Mapping[str, Any],
) -> None:
    """Run the scheduler within a flow run, and to its end without one where Prefect's server goes away."""
    from prefect import flow
    from prefect.exceptions import TerminationSignal

    from flows.flow_run import TaskRuns, flow_run_watched
    from flows.prefect_link import Link

    link = Link()
    defects: list[Exception] = []

    @flow(name="line", flow_run_name="-".join(["line", *shown["models"]]), persist_result=False)
    def line(models: list[str], jobs: int, force: list[str]) -> "State[Any]":
        try:
            with flow_run_watched(link, scheduler.stop, output), _signals(scheduler.stop):
                scheduler.run(TaskRuns(root, params, output, lambda: bool(scheduler.why_stopped)))
        except Exception as error:
            defects.append(error)
            raise
        return _state(Ended(scheduler.results, scheduler.why_stopped))

    try:
        with link.open(api):
            line(**shown, return_state=True)
    except TerminationSignal:  # before or after the stages
        raise KeyboardInterrupt from None
    except Exception as error:
        output.detach()
        output.about_all(
            f"Prefect's server is gone ({error!r}), so its page does not show how this run ended. Nothing is lost: "
            "what the stages have made is recorded in DVC. `mill up` starts the server again."
        )
    if defects:
        raise defects[0]
    if not scheduler.is_done:
        with _signals(scheduler.stop):
            scheduler.run(lambda node, upstream, work: work())


def _state(ended: Ended) -> "State[Any]":
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


@contextlib.contextmanager
def _signals(stop: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the run, and wait for its stages to end in their own way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Also where they are ignored, as in a shell's background: the stages would inherit that.
    numbers = (signal.SIGINT, signal.SIGTERM)
    former = {number: signal.signal(number, lambda *_: stop(INTERRUPTED)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
