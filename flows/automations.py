"""What Prefect's server does when something happens or does not: retrain on drift, tell of failures and of silence.

An automation that is the same as before is left alone, since one that is written anew forgets how long it has waited.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.cooldown import DRIFT
from flows.params import Schedule
from tasks.errors import MillError

if TYPE_CHECKING:
    from prefect.blocks.notifications import SlackWebhook
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

DRIFT_EVENT = "modelmill.drift"

# What the event's resource says of the labels that there are to learn from.
LABELS, ENOUGH = "modelmill.labels", "enough"

MONITOR = "monitor"

_BLOCK = "modelmill-notify"
# The states of a run that somebody has to look at.
_BAD = ("Ask", "Crashed", "Failed", "TimedOut")


class NotifyError(MillError):
    """flows.notify names nothing to which a message can be sent."""


@dataclass(frozen=True)
class Deployed:
    """A deployment as the server has it."""

    id: UUID
    flow: str
    model: str
    schedule: Schedule
    drift_starts_it: bool

    @property
    def name(self) -> str:
        return f"{self.flow}/{self.model}"


def resource_of(model: str) -> str:
    """What events say they are about."""
    return f"modelmill.model.{model}"


def automate(client: "SyncPrefectClient", notify: str | None, deployed: Sequence[Deployed], tags: list[str]) -> None:
    """Make the server's automations with these tags the ones that belong to the deployments, and no others.

    `notify` is `$NAME` of a variable with an Apprise URL. Raises NotifyError where it holds none.
    """
    wanted = [_on_drift(one) for one in deployed if one.drift_starts_it]
    if notify and deployed:
        block = save_block(notify)
        wanted += [_on_failure(deployed, block), *(_on_silence(one, block) for one in deployed)]
        wanted += [_on_drift_seen(one, block) for one in deployed if one.flow == MONITOR]
    wanted = [automation.model_copy(update={"tags": tags}) for automation in wanted]
    found = {one.name: one for one in client.read_automations() if set(tags) <= set(one.tags)}
    for automation in wanted:
        same = found.pop(automation.name, None)
        if same is None:
            client.create_automation(automation)
        elif _content(same) != _content(automation):
            client.update_automation(same.id, automation)
    for gone in found.values():
        client.delete_automation(gone.id)


def save_block(notify: str) -> UUID:
    """Keep the URL in a block of Prefect's, encrypted, so that no automation, log or artifact holds it."""
    return UUID(str(block_of(notify).save(_BLOCK, overwrite=True)))


def block_of(notify: str) -> "SlackWebhook":
    """The block, not kept yet. Raises NotifyError where the variable holds no URL to which a message can be sent."""
    from prefect.blocks.notifications import SlackWebhook

    name = notify.removeprefix("$")
    url = os.environ.get(name, "")
    if not url:
        raise NotifyError(f"flows.notify is {notify}, and the environment has no {name}. Set it to an Apprise URL.")
    # Of the blocks that the server knows this is the one that hands any URL on to Apprise.
    block = SlackWebhook(url=url)
    if not len(block._apprise_client):
        raise NotifyError(
            f"The environment's {name} (flows.notify) is no URL that Apprise knows: slack://…, mailto://…, json://…"
        )
    return block


def _on_drift(one: Deployed) -> "AutomationCore":
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    return AutomationCore(
        name=f"{one.name}: drift",
        description=(
            f"An event {DRIFT_EVENT} with {LABELS} {ENOUGH} starts {one.name}, which itself keeps cool_down_hours and "
            "max_a_week."
        ),
        trigger=EventTrigger(
            expect={DRIFT_EVENT}, match={"prefect.resource.id": resource_of(one.model), LABELS: ENOUGH}
        ),
        actions=[
            RunDeployment(
                deployment_id=one.id,
                parameters={"model": one.model, "why": DRIFT, "because": "{{ event.payload.sentence }}"},
            )
        ],
    )


def _on_drift_seen(one: Deployed, block: UUID) -> "AutomationCore":
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    return AutomationCore(
        name=f"{one.name}: drift",
        description="flows.notify of params.yaml says who is told, once for each drift.",
        trigger=EventTrigger(expect={DRIFT_EVENT}, match={"prefect.resource.id": resource_of(one.model)}),
        actions=[
            SendNotification(block_document_id=block, subject=f"{one.model}: drift", body="{{ event.payload.told }}")
        ],
    )


def _on_failure(deployed: Sequence[Deployed], block: UUID) -> "AutomationCore":
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    return AutomationCore(
        name="A run has failed, or asks for a person",
        description="flows.notify of params.yaml says who is told.",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{state}" for state in _BAD},
            match_related=_runs_of(deployed),
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject="{{ deployment.name }}: {{ flow.name }} {{ flow_run.state.name }}",
                body="{{ flow_run.state.message }}\n\n{{ flow_run|ui_url }}",
            )
        ],
    )


def _on_silence(one: Deployed, block: UUID) -> "AutomationCore":
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    hours = one.schedule.silence_hours
    return AutomationCore(
        name=f"{one.name}: silence",
        description=f"No run has started for {hours:g} hours (silence_hours).",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            # One that never ends lets no other one start, so that it is silence as well.
            expect={"prefect.flow-run.Running"},
            match_related=_runs_of([one]),
            within=timedelta(hours=hours),
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject=f"{one.model}: no {one.flow} for {hours:g} hours",
                body=(
                    f"{one.name} should have run ({one.schedule.cron}, {one.schedule.timezone}), and none has started "
                    f"for {hours:g} hours. `mill status` says what is known."
                ),
            )
        ],
    )


def _runs_of(deployed: Sequence[Deployed]) -> dict[str, Any]:
    return {
        "prefect.resource.role": "deployment",
        "prefect.resource.id": sorted(f"prefect.deployment.{one.id}" for one in deployed),
    }


def _content(automation: "AutomationCore") -> Any:
    """What an automation does, apart from its identity."""
    from prefect.events.schemas.automations import AutomationCore

    content = AutomationCore.model_validate(automation.model_dump()).model_dump(mode="json")
    return _without_order(content)


def _without_order(value: Any) -> Any:
    """Sets come back as lists in some order, and each trigger with an identity of its own."""
    if isinstance(value, dict):
        return {key: _without_order(inside) for key, inside in value.items() if key != "id"}
    if isinstance(value, list):
        return sorted((_without_order(inside) for inside in value), key=str)
    return value
