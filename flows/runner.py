"""The process of `mill up` that registers the schedules and starts their runs, each as a process in the repository.

It looks at params.yaml again where that changes. Interrupted, it ends the runs that it has started, and then itself.
"""

import asyncio
import signal
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.automations import Deployed
from flows.follow import keep_following
from flows.params import Flows, load_flows
from flows.schedule import planned, register
from tasks.errors import MillError
from tasks.shards import write_json

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State
    from prefect.deployments.runner import RunnerDeployment
    from prefect.runner import Runner

_LOOK_SECONDS = 5
_POLL_SECONDS = 5


def scheduled_file(home: Path) -> Path:
    """Where it says what it has registered, as soon as runs can start."""
    return home / ".mill" / "up" / "scheduled.json"


def main() -> None:
    """Run until SIGINT or SIGTERM, in the repository in which it was started."""
    # What a shell has put into the background ignores SIGINT, and would hand that down.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    home = Path().resolve()
    try:
        asyncio.run(_serve(home))
    except MillError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


async def _serve(home: Path) -> None:
    from prefect.runner import Runner

    # Prefect would pause the schedules on the way out, so that what is missed meanwhile would never be caught up.
    runner = Runner("modelmill", query_seconds=_POLL_SECONDS, limit=None, pause_on_shutdown=False)
    flows = load_flows(home / "params.yaml")
    made = await asyncio.to_thread(_register, home, flows, runner)
    if flows.server.work_pool is None:
        await asyncio.to_thread(end_the_dead, made)
    ended = asyncio.create_task(runner.start())
    while not (runner.started or ended.done()):
        await asyncio.sleep(0.05)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    _say(home, made)
    watching = asyncio.create_task(_watch(home, flows, runner))
    if flows.server.work_pool is not None:
        # A thread that nobody waits for: what it is at may take long, and is finished by the next look.
        threading.Thread(target=keep_following, args=(home,), name="follow", daemon=True).start()
    await asyncio.wait((ended, asyncio.create_task(stop.wait())), return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    if not ended.done():
        await runner.astop()
    await ended


def _register(home: Path, flows: Flows, runner: "Runner") -> list[Deployed]:
    def add(deployment: "RunnerDeployment") -> UUID:
        served = flows.server.work_pool is None
        return UUID(str(runner.add_deployment(deployment) if served else deployment.apply()))

    return register(home, flows, add)


def end_the_dead(made: Sequence[Deployed]) -> None:
    """Mark as crashed the runs of a runner that was killed: they would be taken for running for ever.

    Nothing runs them, since one process alone starts the runs of a repository, and what it started ends with it.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    going = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[one.id for one in made])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=going)),
        ):
            killed: State[Any] = Crashed(message="What had started it was killed, and the run with it.")
            client.set_flow_run_state(run.id, killed, force=True)


async def _watch(home: Path, at_start: Flows, runner: "Runner") -> None:
    """Take over what changes in params.yaml; where there is a mistake in it, say so and stay as it was."""
    file = home / "params.yaml"
    before = _stamp(file)
    held = planned(at_start), at_start.notify
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if (now := _stamp(file)) == before:
            continue
        before = now
        try:
            flows = load_flows(file)
            if flows.server != at_start.server:
                print("flows.server of params.yaml has changed: that holds from the next `mill up` on.", flush=True)
            wanted = planned(flows), flows.notify
            if wanted == held:
                continue
            flows = flows.model_copy(update={"server": at_start.server})
            made = await asyncio.to_thread(_register, home, flows, runner)
        except MillError as error:
            print(f"params.yaml has changed, and the schedules stay as they were: {error}", file=sys.stderr, flush=True)
            continue
        except Exception as error:  # of a server that is away for a moment: the next look finds it again
            print(f"params.yaml has changed, and is not registered yet: {error}", file=sys.stderr, flush=True)
            before = None
            continue
        held = wanted
        _say(home, made)


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


def _say(home: Path, made: Sequence[Deployed]) -> None:
    now = datetime.now(UTC)
    times = {one.name: one.schedule.next_run(now).isoformat(timespec="minutes") for one in made}
    write_json(scheduled_file(home), times)
    for name, at in times.items():
        print(f"{name} runs next at {at}", flush=True)


if __name__ == "__main__":
    main()
