"""The line: what is stale in the DVC graph is run in parallel, with one committer, and Prefect shows it.

DVC says what there is and what is stale; `Scheduler` runs it; `FlowRun` shows it and takes the order to cancel.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flows.commands import Commands
from flows.committer import Committer
from flows.flow_run import Ended, FlowRun
from flows.output import Output
from flows.params import LineParams
from flows.prefect_api import find_server
from flows.scheduling import Scheduler
from flows.stages import forced
from flows.waiting import Patience

INTERRUPTED = "interrupted"


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
    is in the result and not raised. Ctrl-C and SIGTERM stop what runs. Raises LineError where DVC cannot be asked,
    ServerError where a Prefect server is named and does not answer; nothing has been run then.
    """
    output, commands = Output(), Commands()
    patience = Patience(params.lock_wait_minutes * 60, output.about_all, lambda: commands.is_stopped)
    with Committer(root, patience) as committer:
        nodes = committer.plan(models, known)
        output.align(node.address for node in nodes)
        jobs, asked = jobs or params.jobs, forced(nodes, force)
        scheduler = Scheduler(nodes, committer, commands, jobs=jobs, forced=asked, say=output)
        flow_run = FlowRun(
            find_server(root),
            root,
            params,
            output,
            {"models": list(models), "jobs": jobs, "force": list(force)},
            known=known,
            outputs=committer.outputs,
            stop=scheduler.stop,
            is_stopped=lambda: commands.is_stopped,
        )
        with _signals(scheduler.stop):
            flow_run.start()
            scheduler.run(flow_run.watch)
            flow_run.finish(Ended(scheduler.results, scheduler.why_stopped))
    return Ended(scheduler.results, scheduler.why_stopped)


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
