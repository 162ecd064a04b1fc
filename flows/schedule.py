"""What runs by itself: one Prefect deployment for each model and flow, by the cron lines of params.yaml."""

import shlex
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.automations import MONITOR, Deployed, automate, block_of
from flows.git import attempt
from flows.params import Flows, ModelFlows, Schedule
from tasks.errors import MillError
from tasks.shards import write_text

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.deployments.runner import RunnerDeployment

TAG = "modelmill"


class ScheduleError(MillError):
    """Prefect's server does not take what params.yaml asks for."""


@dataclass(frozen=True)
class Kind:
    """A flow that runs by itself. Its deployments are called <name>/<model>."""

    name: str
    entrypoint: str  # a module of flows/ and a flow in it
    schedule: Callable[[ModelFlows], Schedule | None]
    drift_starts_it: bool


KINDS = (
    Kind("retrain", "flows.deployed.retrain", lambda flows: flows.retrain, drift_starts_it=True),
    Kind(MONITOR, "flows.deployed.monitor", lambda flows: flows.monitor, drift_starts_it=False),
)


@dataclass(frozen=True)
class Planned:
    """A flow of a model, and when it runs."""

    kind: Kind
    model: str
    schedule: Schedule

    @property
    def name(self) -> str:
        return f"{self.kind.name}/{self.model}"


def planned(flows: Flows) -> list[Planned]:
    """All that params.yaml gives a schedule."""
    return [
        Planned(kind, model, schedule)
        for model, own in flows.models.items()
        for kind in KINDS
        if (schedule := kind.schedule(own)) is not None
    ]


def register(home: Path, flows: Flows, add: Callable[["RunnerDeployment"], UUID]) -> list[Deployed]:
    """Make Prefect's server hold what params.yaml says, and no more of this repository: deployments and automations.

    `add` registers one deployment. Raises ScheduleError where one of the same name belongs to another
    repository, NotifyError where nobody can be told; nothing has changed then.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentUpdate

    tags = [TAG, f"checkout:{identity(home)}"]
    if flows.notify:
        block_of(flows.notify)  # what is wrong with it is said before anything has changed
    with get_client(sync_client=True) as client:
        pool = _pool_type(client, flows.server.work_pool)
        made = []
        for plan in planned(flows):
            _check_ours(client, plan, tags)
            deployment = _deployment(home, plan, tags)
            way = way_of(home, pool) if pool else None
            # Said also where there is none, so that a pool that it had before is taken back.
            deployment.work_pool_name = flows.server.work_pool
            deployment.job_variables = {"env": {"PYTHONPATH": way.code}} if way else {}
            made.append(Deployed(add(deployment), plan.kind.name, plan.model, plan.schedule, plan.kind.drift_starts_it))
            if way:
                client.update_deployment(made[-1].id, DeploymentUpdate(pull_steps=way.steps))
        _forget_others(client, tags, {one.id for one in made})
        automate(client, flows.notify, made, tags)
    return made


def identity(home: Path) -> str:
    """What this checkout is called on a server that others use too; given once, and kept where it is moved."""
    file = home / ".mill" / "up" / "identity"
    if not file.exists():
        write_text(file, uuid.uuid4().hex[:12])
    return file.read_text(encoding="utf-8")


def _deployment(home: Path, plan: Planned, tags: list[str]) -> "RunnerDeployment":
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType
    from prefect.utilities.importtools import import_object

    deployment: RunnerDeployment = import_object(plan.kind.entrypoint).to_deployment(
        name=plan.model,
        description=f"{plan.kind.name} of the model {plan.model} in {home}. params.yaml says when: change it there.",
        tags=tags,
        parameters={"model": plan.model},
        schedule=Cron(plan.schedule.cron, timezone=plan.schedule.timezone),
        # A run that finds another one at work is not needed: the other sees what it would have seen, or the next does.
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return deployment


def _check_ours(client: "SyncPrefectClient", plan: Planned, tags: Sequence[str]) -> None:
    from prefect.exceptions import ObjectNotFound

    try:
        found = client.read_deployment_by_name(plan.name)
    except ObjectNotFound:
        return
    if not set(tags) <= set(found.tags):
        raise ScheduleError(
            f"The Prefect server at {client.api_url} has a deployment {plan.name} of another repository: "
            f"{found.description or 'it says nothing of itself'}\nTake it away where it is no longer needed, prefect "
            f"deployment delete {plan.name}, or leave PREFECT_API_URL empty, so that this repository has a server of "
            "its own."
        )


def _forget_others(client: "SyncPrefectClient", tags: list[str], kept: set[UUID]) -> None:
    """Delete the deployments of models that params.yaml schedules no longer."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=tags))
    for deployment in client.read_deployments(deployment_filter=ours):
        if deployment.id not in kept:
            client.delete_deployment(deployment.id)


def _pool_type(client: "SyncPrefectClient", name: str | None) -> str | None:
    from prefect.exceptions import ObjectNotFound

    if name is None:
        return None
    try:
        return client.read_work_pool(name).type
    except ObjectNotFound:
        raise ScheduleError(
            f"The Prefect server at {client.api_url} has no work pool {name} (flows.server.work_pool). Make it: "
            f"PREFECT_API_URL={client.api_url} prefect work-pool create --type process {name}"
        ) from None


@dataclass(frozen=True)
class Way:
    """How a worker comes by the repository: Prefect's steps, and where Python then finds the code."""

    steps: list[dict[str, Any]]
    code: str


def way_of(home: Path, pool: str) -> Way:
    """Processes work in the repository that is here, and containers in a clone of where it is pushed to."""
    step = "prefect.deployments.steps"
    if pool == "process":
        return Way([{f"{step}.set_working_directory": {"directory": str(home)}}], str(home))
    remote = attempt(home, "remote", "get-url", "origin").stdout.strip()
    if not remote:
        raise ScheduleError(
            f"A work pool of type {pool} needs a clone of this repository, and it has no Git remote `origin` to clone."
        )
    # Prefect's own step clones one commit alone, and versions are tags on others.
    clone = f"git clone --quiet {shlex.quote(remote)} repository"
    steps = [
        {f"{step}.run_shell_script": {"script": clone}},
        {f"{step}.set_working_directory": {"directory": "repository"}},
    ]
    return Way(steps, "repository")
