"""`mill status`: what is in use, what ran last and runs next, and what waits for a person.

Git knows the versions and the decisions, and needs no server. Prefect's server, where it is there, knows the runs.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flows.git import blob, check_live_is_free, live_of, main_branch
from flows.landing import PROMOTE
from flows.marks import marks
from flows.merge import merge_by_model
from flows.params import ModelFlows, load_flows
from flows.publish import no_default_of
from flows.registry import champion, decisions, spoken
from flows.schedule import Planned, planned
from flows.seen import Seen, look
from flows.tags import promotions
from flows.up import running
from flows.worktree import home_of
from tasks.errors import MillError
from tasks.gate import Gate
from tasks.params import load
from tasks.paths import Paths
from tasks.shards import read_json
from tasks.spending import has_left

NOTHING_NEEDED, NEEDS_A_PERSON = 0, 1

GATE = "gate"

# The schedules' process looks every few seconds.
_LATE = timedelta(minutes=15)


@dataclass(frozen=True)
class Status:
    """Lines of a name and what is known, for each model; and a sentence for each thing that waits for a person."""

    models: Mapping[str, list[tuple[str, str]]]
    needs: list[str]


def status(root: Path) -> int:
    """Print what is known. The exit code: 1 where something needs a person, else 0."""
    found = status_of(root, datetime.now(UTC))
    for model, lines in found.models.items():
        print(model)
        for name, told in lines:
            print(f"  {name:12} {told}")
    print("\nNeeds a person:" if found.needs else "\nNothing needs a person.")
    for sentence in found.needs:
        print("- " + sentence.replace("\n", "\n  "))
    return NEEDS_A_PERSON if found.needs else NOTHING_NEEDED


def status_of(root: Path, now: datetime) -> Status:
    """Read Git, and ask the server where there is one. Raises MillError where params.yaml is wrong."""
    home = home_of(root)
    flows = load_flows(home / "params.yaml")
    plans = planned(flows)
    up = running(home)
    api = up.api if up else os.environ.get("PREFECT_API_URL")
    seen, silence = look(api, [plan.name for plan in plans]) if api and plans else ({}, None)
    models: dict[str, list[tuple[str, str]]] = {}
    needs: list[str] = []
    for model in load(home / "params.yaml").models:
        lines = models.setdefault(model, [])
        with _for_a_person(needs, model):
            lines += _of_git(home, model)
            needs += (f"{model}: {sentence}" for sentence in _undecided(home, model, flows.models.get(model)))
            needs += _forgotten(home, model)
        for plan in plans:
            if plan.model == model:
                lines += _of_runs(plan, seen.get(plan.name), now)
                needs += _amiss(plan, seen.get(plan.name), now)
    if silence:
        needs.append(f"Prefect's server at {api} does not answer: {silence}")
    if plans and up is None and flows.server.work_pool is None:
        needs.append("Nothing runs by itself: `mill up` does not run here. Start it: mill up --detach")
    needs += _of_branches(home)
    return Status(models, needs)


@contextlib.contextmanager
def _for_a_person(needs: list[str], about: str = "") -> Iterator[None]:
    """What cannot be read is something for a person too, and hides nothing else."""
    try:
        yield
    except MillError as error:
        needs.append(f"{about}: {error}" if about else str(error))


def _of_git(home: Path, model: str) -> list[tuple[str, str]]:
    now, made = champion(home, model), decisions(home, model)
    in_use = "none yet"
    if now is not None:
        measured = f", {spoken(now.metric)}" if now.metric else ""
        in_use = f"{now.tag}{measured}, made {_moment(now.when)}"
    last = "no challenger was decided on yet"
    if made:
        last = f"{made[-1]['verdict']}, {_moment(datetime.fromisoformat(made[-1]['at']))}: {made[-1]['sentence']}"
    return [("champion", in_use), ("last verdict", last)]


def _undecided(home: Path, model: str, flows: ModelFlows | None) -> Iterator[str]:
    """What the decisions leave to a person."""
    made = decisions(home, model)
    if not made:
        return
    last, now = made[-1], champion(home, model)
    is_promoted = any(tag.commit == last["commit"] for tag in promotions(home, model))
    # Where the champion is another one by now, somebody has decided.
    if not is_promoted and (now.tag if now else None) == last["champion"]:
        if last["verdict"] == "ask":
            yield f"a challenger waits: {last['sentence']} Decide: mill promote {last['challenger']} --why '…'"
        if last["verdict"] == PROMOTE:
            yield f"{last['challenger']} was to be promoted, and is not: mill retrain {model} goes on, or says why not."
    if flows is not None:
        yield from _worn_out(home, model, made, flows.gate)


def _forgotten(home: Path, model: str) -> Iterator[str]:
    """That the version in use has learned from rows that it should not know any more."""
    now = champion(home, model)
    if now is not None and (mark := marks(home, model).get(now.tag)):
        yield f"{now.tag} is in use. {mark.sentence} A version without them: mill retrain {model}"


def _worn_out(home: Path, model: str, made: Sequence[Mapping[str, Any]], gate: Gate) -> Iterator[str]:
    """The test set that may decide no more, where no row is left that the next decision could take in its place."""
    gated = [decision for decision in made if decision.get("alpha_spent")]
    names = [decision["test_set"] for decision in gated]
    if not gated or any(has_left(made, name, alpha=gate.alpha, uses=gate.uses) for name in names):
        return
    if not _kept_back(home, model, gated[-1]["commit"]):
        yield (
            f"the test set {names[-1]} has decided {names.count(names[-1])} times (flows.models.{model}.gate.uses) and "
            "is worn out: the next decision needs test rows that no decision has looked at."
        )


def _kept_back(home: Path, model: str, commit: str) -> int:
    """How many test rows a decision has kept for the next test set, by its report."""
    try:
        report = json.loads(blob(home, f"{commit}:{Paths(model).report(GATE).as_posix()}") or b"{}")
        return int(report["test_set"]["rows"]["kept_back"])
    except (ValueError, KeyError, TypeError):  # not of this gate
        return 0


def _of_runs(plan: Planned, seen: Seen | None, now: datetime) -> list[tuple[str, str]]:
    name, lines = plan.kind.name, []
    if seen and seen.last:
        lines.append((f"last {name}", f"{seen.last.state}, {_moment(seen.last.at)}"))
    at = seen.next_at if seen and seen.next_at else plan.schedule.next_run(now)
    lines.append((f"next {name}", _moment(at) + ("" if seen else ", where `mill up` runs by then")))
    return lines


def _amiss(plan: Planned, seen: Seen | None, now: datetime) -> Iterator[str]:
    if seen is None:
        return
    if seen.last and seen.last.is_bad:
        last = seen.last
        yield f"{plan.name} ended as {last.state} at {_moment(last.at)}: {last.message}\n{last.page}"
    if seen.next_at and seen.next_at + _LATE < now and not (seen.last and seen.last.state == "Running"):
        yield f"{plan.name} should have started at {_moment(seen.next_at)}, and has not."


def _of_branches(home: Path) -> list[str]:
    """What keeps retraining from landing, or what it made from reaching others; and a purge that is not finished."""
    needs = [
        f"Some rows of {file.stem} are not purged yet: run `mill forget … --model {file.stem} --purge` again."
        for file in sorted((home / ".mill" / "forget").glob("*.json"))
    ]
    with _for_a_person(needs):
        check_live_is_free(home)
    with _for_a_person(needs):
        main = main_branch(home)
        live = live_of(home)
        if live:
            merge_by_model(home, live, main, "To see whether it can be done")
    unpushed = home / ".mill" / "unpushed"
    with _for_a_person(needs):
        owed = list(read_json(unpushed)) if unpushed.exists() else []
        if owed:
            needs.append(
                f"{len(owed)} commit{'s' * (len(owed) > 1)} of retraining did not reach the remotes. The next retrain "
                "tries again; `dvc push` and `git push` say what is amiss."
            )
    if undecided := no_default_of(home):
        needs.append(undecided)
    return needs


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} {at.tzname() or 'UTC'}"
