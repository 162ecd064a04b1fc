"""What this repository tells Prefect's server, so that its automations can act on it."""

import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.automations import DRIFT_EVENT, ENOUGH, LABELS, resource_of
from flows.up import running_api
from tasks.errors import MillError


class NotHeard(MillError):
    """There is no server to tell it to."""


def emit_drift(
    root: Path,
    model: str,
    sentence: str,
    payload: Mapping[str, Any] | None = None,
    *,
    enough_labels: bool = True,
) -> uuid.UUID:
    """Say that a model's world has moved: its retrain starts by that, within its cool-down and budget. The event's id.

    Without `enough_labels` to learn from no retrain starts: whoever listens is asked for labels. `sentence` says how it
    has moved, and goes into the commit and the tags of the retrain; `payload` is what JSON can hold. Raises NotHeard
    where no server takes it.
    """
    api = running_api(root) or os.environ.get("PREFECT_API_URL")
    if not api:
        by_hand = f" Retrain by hand: mill retrain {model}" if enough_labels else ""
        raise NotHeard(
            f"{model}: drift was seen, and nobody hears of it: `mill up` does not run here, and PREFECT_API_URL names "
            f"no server.{by_hand}"
        )
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    event = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": DRIFT_EVENT,
        "resource": {
            "prefect.resource.id": resource_of(model),
            "prefect.resource.name": model,
            LABELS: ENOUGH if enough_labels else "wanted",
        },
        "payload": {"told": sentence, **(payload or {}), "model": model, "sentence": sentence},
    }
    try:
        # Sent and answered, where Prefect's own emit_event hands it to a thread that may lose it in silence.
        with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[event])
    except httpx.HTTPError as error:
        raise NotHeard(f"{model}: drift was seen, and the Prefect server at {api} does not take it: {error}") from None
    return uuid.UUID(str(event["id"]))
