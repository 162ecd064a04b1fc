"""What Prefect's server knows of the runs of deployments."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_ANSWER_SECONDS = 10


@dataclass(frozen=True)
class Ended:
    """A run that has come to an end, or goes on."""

    state: str  # Promoted, Nothing, Failed, Running, …
    is_bad: bool
    at: datetime
    message: str
    page: str


@dataclass(frozen=True)
class Seen:
    """The last run that has started, and when the next one is to start; that is in the past where it is late."""

    last: Ended | None
    next_at: datetime | None


def look(api: str, names: Sequence[str]) -> tuple[dict[str, Seen], str | None]:
    """What is known of each deployment, by its name; and why nothing is, where the server does not answer."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    found: dict[str, Seen] = {}
    settings = {PREFECT_API_URL: api, PREFECT_CLIENT_MAX_RETRIES: 0}
    try:
        with (
            temporary_settings(settings),
            get_client(httpx_settings={"timeout": _ANSWER_SECONDS}, sync_client=True) as client,
        ):
            for name in names:
                try:
                    found[name] = _seen(client, name)
                except ObjectNotFound:
                    continue
    except (httpx.HTTPError, RuntimeError) as error:
        return found, str(error) or type(error).__name__
    return found, None


def _seen(client: "SyncPrefectClient", name: str) -> Seen:
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterStartTime,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    one = DeploymentFilter(id=DeploymentFilterId(any_=[client.read_deployment_by_name(name).id]))
    started = client.read_flow_runs(
        deployment_filter=one,
        flow_run_filter=FlowRunFilter(start_time=FlowRunFilterStartTime(is_null_=False)),
        sort=FlowRunSort.START_TIME_DESC,
        limit=1,
    )
    waits = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    waiting = client.read_flow_runs(
        deployment_filter=one,
        flow_run_filter=FlowRunFilter(state=waits),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=1,
    )
    last = None
    if started and (state := started[0].state):
        page = f"{str(client.api_url).removesuffix('/').removesuffix('/api')}/runs/flow-run/{started[0].id}"
        is_bad = state.is_failed() or state.is_crashed() or state.name == "Ask"
        last = Ended(state.name or state.type.value, is_bad, state.timestamp, state.message or "", page)
    return Seen(last, waiting[0].expected_start_time if waiting else None)
