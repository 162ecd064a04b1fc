"""The monitor and Prefect: what a run leaves there, when drift starts a retrain, and who is told."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from prefect.states import Cancelled, Completed, Running

from flows.automations import Deployed
from flows.events import emit_drift
from flows.follow_up import follow_up
from flows.git import git
from flows.monitor import monitor
from flows.monitored import Memory, Progress, Watched
from flows.params import load_flows
from flows.registry import record_decision
from flows.schedule import register
from tasks import problems
from tasks.monitor import Subject
from tasks.shards import write_json
from tests.conftest import REPOSITORY, Line
from tests.deployments import applied, runs_of
from tests.scheduled import RETRAIN
from tests.waiting import wait_until
from tests.watched import MODEL, WINDOW, World, make_world

# Of Apprise, where it loads all that it knows.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

ODD = [f"UNBELIEVABLE!!! {number} × {number + 7} ÷ 3 = ??? #WOW ψω €{number}00" for number in range(200)]


@pytest.fixture
def world(released: Line, tmp_path: Path) -> World:
    """In a repository, with a retrain that has a schedule as well."""
    made = make_world(tmp_path / "root", released, min_labels=2)
    params = json.loads((made.root / "params.yaml").read_text())
    params["flows"]["models"][MODEL]["retrain"] = RETRAIN
    (made.root / "params.yaml").write_text(json.dumps(params))
    git(made.root, "init", "-q", "-b", "main")
    git(made.root, "config", "user.name", "t")
    git(made.root, "config", "user.email", "t@localhost")
    git(made.root, "commit", "-q", "--allow-empty", "-m", "all")
    return made


def registered(world: World) -> dict[str, Deployed]:
    return {one.flow: one for one in register(world.root, load_flows(world.root / "params.yaml"), applied)}


def events(client: Any) -> list[dict[str, Any]]:
    found = client.request("POST", "/events/filter", json={"filter": {"event": {"name": ["modelmill.drift"]}}}).json()
    return sorted(found["events"], key=lambda event: str(event["occurred"]))


def test_the_monitor_has_a_deployment_by_its_cron_line(world, client):
    found = registered(world)
    assert set(found) == {"retrain", "monitor"}
    assert client.read_deployment(found["monitor"].id).schedules[0].schedule.cron == "*/15 * * * *"
    assert [one.name for one in client.read_automations()] == [f"retrain/{MODEL}: drift"]


def test_drift_asks_for_labels_once_and_with_enough_of_them_it_starts_the_retrain(world, client):
    deployed = registered(world)
    before = len(events(client))
    ids = world.ask(ODD[: 2 * WINDOW])
    looked = monitor(world.root, MODEL, say=lambda _: None)
    assert looked.verdict == "alarm"
    told = wait_until(lambda: events(client)[before:])
    assert told[0]["resource"]["modelmill.labels"] == "wanted"
    assert told[0]["payload"]["columns"]
    assert len(told[0]["payload"]["examples"]) == 10
    assert "0 of 2 labels" in told[0]["payload"]["told"]
    monitor(world.root, MODEL, say=lambda _: None)
    assert len(events(client)[before:]) == 1, "an alarm that stands is told once"
    assert runs_of(client, deployed["retrain"]) == []
    world.label(dict.fromkeys(ids[:2], "negative"))
    looked = monitor(world.root, MODEL, say=lambda _: None)
    assert any("a retrain was asked for" in line for line in looked.advice)
    assert any(f"models.{MODEL}.feedback of params.yaml is null" in line for line in looked.advice)
    [run] = wait_until(lambda: runs_of(client, deployed["retrain"]))
    assert run.parameters["why"] == "drift"
    assert "drift in 2 windows in a row" in run.parameters["because"]
    monitor(world.root, MODEL, say=lambda _: None)
    assert len(events(client)[before:]) == 2
    runs = [run for run in client.read_flow_runs() if run.name == f"monitor-{MODEL}"]
    assert {run.state.name for run in runs} == {"Alarm"}
    keys = {artifact.key for artifact in client.read_artifacts()}
    assert {f"{MODEL}-monitor-drift", f"{MODEL}-monitor-page"} <= keys


def asks(world: World) -> bool:
    """Whether a look asks for a retrain."""
    return any("a retrain was asked for" in line for line in monitor(world.root, MODEL, say=lambda _: None).advice)


def set_cool_down(world: World, hours: float) -> None:
    params = json.loads((world.root / "params.yaml").read_text())
    params["flows"]["models"][MODEL]["retrain"]["cool_down_hours"] = hours
    write_json(world.root / "params.yaml", params)


@pytest.mark.parametrize(
    "end",
    [Completed(name="CoolDown"), pytest.param(Cancelled(message="another one is at work"), marks=pytest.mark.long)],
)
def test_a_retrain_that_drift_asked_for_too_soon_is_asked_for_once_more_when_it_may_learn(world, client, end):
    deployed = registered(world)["retrain"]
    kept = {"model": MODEL, "verdict": "keep", "sentence": "It is no better.", "why": "schedule"}
    kept["at"] = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    record_decision(world.root, git(world.root, "rev-parse", "HEAD"), kept)
    world.label(dict.fromkeys(world.ask(ODD[: 2 * WINDOW])[:2], "negative"))
    assert asks(world)
    [first] = wait_until(lambda: runs_of(client, deployed))
    assert not asks(world), "the run that was asked for has not ended"
    client.set_flow_run_state(first.id, end, force=True)
    assert not asks(world), "it would be as vain"
    set_cool_down(world, 0.5)
    assert asks(world)
    [second] = wait_until(lambda: [run for run in runs_of(client, deployed) if run.id != first.id])
    assert second.parameters["why"] == "drift"
    client.set_flow_run_state(second.id, Completed(name="Nothing"), force=True)
    assert not asks(world), "it has looked"


@pytest.mark.long
def test_a_run_that_a_person_has_cancelled_is_not_asked_for_again(world, client):
    deployed = registered(world)["retrain"]
    world.label(dict.fromkeys(world.ask(ODD[: 2 * WINDOW])[:2], "negative"))
    assert asks(world)
    [run] = wait_until(lambda: runs_of(client, deployed))
    for state in (Running(), Cancelled()):
        client.set_flow_run_state(run.id, state, force=True)
    assert not asks(world)


def test_a_drift_is_told_to_people_whatever_labels_there_are(world, client, inbox, monkeypatch):
    monkeypatch.setenv("MILL_TEST_NOTIFY", inbox.url)
    params = json.loads((world.root / "params.yaml").read_text())
    params["flows"]["notify"] = "$MILL_TEST_NOTIFY"
    (world.root / "params.yaml").write_text(json.dumps(params))
    deployed = registered(world)
    told = {"told": "The words are others. 0 of 2 labels stand."}
    emit_drift(world.root, MODEL, "The words are others.", told, enough_labels=False)
    [message] = wait_until(lambda: inbox.messages)
    assert (message["title"], message["message"]) == (f"{MODEL}: drift", told["told"])
    assert runs_of(client, deployed["retrain"]) == []


def test_an_alarm_that_nobody_heard_is_told_at_the_next_look(world, client, monkeypatch):
    world.ask(ODD[: 2 * WINDOW])
    with monkeypatch.context() as away:
        away.setenv("PREFECT_API_URL", "")
        looked = monitor(world.root, MODEL, say=lambda _: None)
    assert any("nobody hears of it" in line for line in looked.advice)
    before = len(events(client))
    looked = monitor(world.root, MODEL, say=lambda _: None)
    assert not any("nobody hears" in line for line in looked.advice)
    assert wait_until(lambda: events(client)[before:])


@pytest.mark.parametrize(
    ("told", "num_labels", "is_told"),
    [
        (None, 0, True),
        ({"version": "v", "since": 7, "enough": False, "labels": 0}, 5, False),
        ({"version": "v", "since": 7, "enough": False, "labels": 0}, 10, True),
        ({"version": "v", "since": 7, "enough": True, "labels": 10}, 19, False),
        ({"version": "v", "since": 7, "enough": True, "labels": 10}, 20, True),
        ({"version": "v", "since": 1, "enough": False, "labels": 0}, 0, True),
        ({"version": "u", "since": 7, "enough": True, "labels": 10}, 0, True),
    ],
)
def test_an_alarm_is_told_again_where_it_is_another_or_enough_labels_have_come(told, num_labels, is_told):
    from flows.follow_up import is_news

    assert is_news(told, "v", 7, num_labels, 10) == is_told


def test_where_no_retrain_is_set_up_it_is_said_with_the_command_and_none_is_claimed(world, client):
    params = json.loads((world.root / "params.yaml").read_text())
    params["flows"]["models"][MODEL]["retrain"] = None
    write_json(world.root / "params.yaml", params)
    world.label(dict.fromkeys(world.ask(ODD[: 2 * WINDOW])[:2], "negative"))
    advice = " ".join(monitor(world.root, MODEL, say=lambda _: None).advice)
    assert f"2 new labels stand. flows.models.{MODEL}.retrain of params.yaml is null" in advice
    assert f"mill retrain {MODEL}" in advice
    assert "asked for" not in advice


def test_a_model_that_learns_from_texts_alone_is_asked_no_labels_for(tmp_path):
    watched = Watched(tmp_path, MODEL)
    watched.wanted.parent.mkdir(parents=True)
    watched.wanted.write_text("id\n")  # of a time when its problem was another
    told = {"version": "v", "since": 0, "enough": False, "labels": 0}
    memory = Memory(versions={"v": Progress()}, told=told)
    runtime = SimpleNamespace(problem=problems.load("text_generation"))
    release: Any = SimpleNamespace(version="v")
    writer = Subject(release, runtime, pl.DataFrame(), None, {}, {})  # type: ignore[arg-type]
    params = load_flows(REPOSITORY / "params.yaml").models["reviews"].monitor
    last = {"verdict": "alarm", "number": 1}
    followed = follow_up(tmp_path, MODEL, params, watched, None, memory, writer, last, 0, "")  # type: ignore[arg-type]
    assert (followed.wanted, followed.num_wanted, watched.wanted.exists()) == (None, 0, False)
    assert f"no labels are asked for. What its source has by now is learned by mill retrain {MODEL}" in " ".join(
        followed.sentences
    )
    assert "fill in" not in " ".join(followed.sentences)


def test_without_an_alarm_nothing_follows(tmp_path):
    watched = Watched(tmp_path, MODEL)
    memory = Memory(versions={"v": Progress()})
    nothing = follow_up(tmp_path, MODEL, None, watched, None, memory, None, {"verdict": "watch"}, 0, "")  # type: ignore[arg-type]
    assert nothing.sentences == ()
