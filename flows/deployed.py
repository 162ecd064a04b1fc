"""The flows that run by themselves, as Prefect's deployments name them: flows.deployed.retrain, flows.deployed.monitor.

Each run is a process of its own in the repository, so it runs the code that is there by then.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed

from flows.cooldown import DRIFT, held_back, learned
from flows.params import Schedule, flows_of
from flows.runs import failed_runs, has_looked, runs_since
from flows.worktree import Busy, home_of
from tasks.errors import MillError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


@flow(name="retrain", flow_run_name="retrain-{model}", log_prints=True)
def retrain(model: str, why: str = "schedule", because: str = "") -> State[Any]:
    """Retrain a model, and end in a state that is named by the verdict. `because` says more of the reason."""
    from flows.retrain import retrain as retrain_model

    try:
        if caught_up := _caught_up():
            return caught_up
        if why == DRIFT and (held := _held_back(model)):
            return held
        result = retrain_model(Path(), model, why=f"{why}: {because}" if because else why)
    except Busy as error:
        return _in_the_way(error, flows_of(model).retrain)
    except MillError as error:
        return Failed(message=str(error))
    if result.verdict == "failed":
        return Failed(message=result.sentence)
    return Completed(name=result.verdict.capitalize(), message=result.sentence)


@flow(name="monitor", flow_run_name="monitor-{model}", log_prints=True)
def monitor(model: str) -> State[Any]:
    """Look at a model once, and end in a state that is named by the verdict."""
    from flows.monitor import monitor as look

    try:
        if caught_up := _caught_up():
            return caught_up
        looked = look(Path(), model)
    except Busy as error:
        return _in_the_way(error, flows_of(model).monitor)
    except MillError as error:
        return Failed(message=str(error))
    return Completed(name=looked.verdict.capitalize(), message=looked.sentence)


def _in_the_way(error: Busy, schedule: Schedule | None) -> State[Any]:
    """The end of a run that found another at work: a failure, so that it is told, where that one seems to hang.

    The server's own look at silence cannot know it: this run has started.
    """
    if schedule and error.since and datetime.now(UTC) - error.since > timedelta(hours=schedule.silence_hours):
        hours = f"{schedule.silence_hours:g} hours (silence_hours)"
        return Failed(message=f"{error} That is more than {hours}, so it seems to hang, and nothing else is started.")
    return Completed(name="Busy", message=str(error))


def _caught_up() -> State[Any] | None:
    """The end of a run that has been waiting so long that another has done its work.

    While a machine sleeps the runs that are missed pile up. One that starts after another was due sees all that the
    other one would have seen.
    """
    run = _this_run()
    if run is None or run.deployment_id is None or run.expected_start_time is None:
        return None
    for other in runs_since(run.deployment_id, run.expected_start_time):
        if other.id != run.id and has_looked(other):
            message = f"It was due at {run.expected_start_time:%Y-%m-%d %H:%M} UTC; {other.name} has started since."
            return Completed(name="CaughtUp", message=message)
    return None


def _held_back(model: str) -> State[Any] | None:
    from flows.registry import decisions

    schedule = flows_of(model).retrain
    if schedule is None:
        return None
    run, now = _this_run(), datetime.now(UTC)
    failed = failed_runs(run.deployment_id, now) if run is not None and run.deployment_id is not None else []
    held = held_back(learned(decisions(home_of(Path()), model), failed), schedule, now)
    return Completed(name=held[0], message=held[1]) if held else None


def _this_run() -> "FlowRun | None":
    context = FlowRunContext.get()
    return context.flow_run if context else None
