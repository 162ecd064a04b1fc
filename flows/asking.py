"""A retrain that somebody else than the schedule asks for: a run of the model's deployment, where a server has one."""

from pathlib import Path

from flows.up import running_api


def ask_for_retrain(home: Path, model: str, why: str) -> str | None:
    """Have the `mill up` of this repository retrain the model soon. The address of the run; None where nobody can."""
    api = running_api(home)
    if api is None:
        return None
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import PREFECT_API_URL, temporary_settings

    try:
        with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name(f"retrain/{model}")
            run = client.create_flow_run_from_deployment(deployment.id, parameters={"model": model, "why": why})
    except (ObjectNotFound, httpx.HTTPError):  # it has no schedule, or the server is away
        return None
    return f"{api.removesuffix('/api')}/runs/flow-run/{run.id}"
