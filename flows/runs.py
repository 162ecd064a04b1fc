"""The runs of a deployment, as Prefect's server has them: which have looked, which have failed, which were in vain."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.cooldown import DRIFT, Learned, held_back, learned
from flows.params import flows_of
from flows.registry import decisions
from flows.up import running_api
from flows.worktree import home_of

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

# Ends of runs that have looked at nothing. A run that ended so catches nothing up.
AT_ONCE = ("CaughtUp", "CoolDown", "OverBudget", "Busy")


def has_looked(run: "FlowRun") -> bool:
    """Whether a run has done its work, or is at it."""
    state = run.state
    return state is not None and (state.is_running() or (state.is_completed() and state.name not in AT_ONCE))


def runs_since(deployment: UUID, since: datetime) -> list["FlowRun"]:
    """The runs of a deployment that have started since then, the last ones first."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterStartTime

    return _runs(deployment, FlowRunFilter(start_time=FlowRunFilterStartTime(after_=since)))


def failed_runs(deployment: UUID, now: datetime) -> list[Learned]:
    """The retrains of the last week that have failed."""
    return [
        Learned(run.end_time, run.parameters.get("why") == DRIFT)
        for run in runs_since(deployment, now - timedelta(weeks=1))
        if run.state and (run.state.is_failed() or run.state.is_crashed()) and run.end_time
    ]


def asked_in_vain(root: Path, model: str, at: datetime) -> bool:
    """Whether what drift asked for then came to nothing, as it was too soon or in another's way, and now may begin.

    No where a run has looked since, and where no server says so: it is asked again by the next look then.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import PREFECT_API_URL, temporary_settings

    schedule, api = (
        flows_of(model, root / "params.yaml").retrain,
        running_api(root) or os.environ.get("PREFECT_API_URL"),
    )
    if schedule is None or not api:
        return False
    try:
        with temporary_settings({PREFECT_API_URL: api}):
            with get_client(sync_client=True) as client:
                deployment = client.read_deployment_by_name(f"retrain/{model}").id
            now = datetime.now(UTC)
            if _is_at_work(deployment) or not _was_in_vain(deployment, at):
                return False
            past = learned(decisions(home_of(root), model), failed_runs(deployment, now))
            return held_back(past, schedule, now) is None
    except (ObjectNotFound, httpx.HTTPError):
        return False


def _is_at_work(deployment: UUID) -> bool:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    at_work = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
    return bool(_runs(deployment, FlowRunFilter(state=FlowRunFilterState(type=at_work))))


def _was_in_vain(deployment: UUID, at: datetime) -> bool:
    """Whether runs of drift have ended since, the last one without a look, and no run has looked.

    One that was cancelled after it had started was cancelled by a person, who has decided.
    """
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterExpectedStartTime

    runs = _runs(deployment, FlowRunFilter(expected_start_time=FlowRunFilterExpectedStartTime(after_=at)))
    asked = [run for run in runs if run.parameters.get("why") == DRIFT]
    if not asked or any(has_looked(run) for run in runs):
        return False
    last = max(asked, key=lambda run: run.expected_start_time or at)
    if last.state is None:
        return False
    return last.state.name in AT_ONCE or (last.state.is_cancelled() and not last.run_count)


def _runs(deployment: UUID, wanted: Any) -> list["FlowRun"]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
            flow_run_filter=wanted,
            sort=FlowRunSort.START_TIME_DESC,
        )
