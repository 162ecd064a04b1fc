"""Deployments and automations, on a real Prefect server; the runs themselves are tests/test_up.py's."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from flows.automations import Deployed, NotifyError, automate, save_block
from flows.cooldown import Learned, held_back, learned
from flows.events import NotHeard, emit_drift
from flows.git import git
from flows.params import Retrain, load_flows
from flows.registry import decisions
from flows.runner import end_the_dead
from flows.schedule import TAG, ScheduleError, identity, register, way_of
from tests.deployments import applied, runs_of
from tests.scheduled import RETRAIN, line_runs, make_repository, write_params
from tests.waiting import wait_until

# Of Apprise, where it loads all that it knows.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("scheduled"), ("films", "books"))


@pytest.fixture
def repository(made: Path, tmp_path: Path) -> Path:
    """params.yaml alone decides here, and each copy is a checkout of its own."""
    root = tmp_path / "repository"
    subprocess.run(["git", "clone", "-q", str(made), str(root)], check=True)
    return root


def registered(root: Path) -> list[Deployed]:
    return register(root, load_flows(root / "params.yaml"), applied)


@pytest.mark.parametrize(
    "cron", ["0 3 * *", "60 3 * * *", "0 3 * * 5L", "0 0 30 2 *", "* * * * * *", "@daily", "every night", ""]
)
def test_a_cron_line_that_prefect_would_not_run_is_refused_with_one_that_it_would(cron):
    with pytest.raises(ValidationError, match=r"every night at three|at least 1 character"):
        Retrain(**{**RETRAIN, "cron": cron})


@pytest.mark.parametrize("cron", ["0 3 * * *", "*/5 9-17 * * 1-5", "0 3 L * *", "30 2 29 2 *", "0 3 * * SUN#1"])
def test_prefect_takes_every_cron_line_that_params_takes(cron):
    from prefect.client.schemas.schedules import CronSchedule

    schedule = Retrain(**{**RETRAIN, "cron": cron, "silence_hours": 80000})
    CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
    assert schedule.next_run(NOW) > NOW


@pytest.mark.parametrize(
    ("cron", "hours"), [("0 3 * * *", 24), ("0 3 * * 1-5", 72), ("*/5 * * * 1-5", 48), ("0 3 1 * *", 744)]
)
def test_a_silence_that_is_no_longer_than_the_pauses_of_the_cron_line_is_refused(cron, hours):
    with pytest.raises(ValidationError, match=r"silence_hours is .* pauses for"):
        Retrain(**{**RETRAIN, "cron": cron, "silence_hours": hours})
    Retrain(**{**RETRAIN, "cron": cron, "silence_hours": hours + 1})


def past(hours: float, by_drift: bool = True) -> Learned:
    return Learned(NOW - timedelta(hours=hours), by_drift)


def test_drift_waits_until_the_last_retrain_has_cooled_down_whoever_asked_for_it():
    schedule = Retrain(**RETRAIN)
    assert held_back([], schedule, NOW) is None
    assert held_back([past(30), past(20)], schedule, NOW) is None
    state, sentence = held_back([past(30), past(19.5, by_drift=False)], schedule, NOW) or ("", "")
    assert state == "CoolDown"
    assert "until 2026-11-24 12:30 UTC" in sentence


def test_drift_has_a_budget_of_a_week_which_the_schedule_does_not_use_up():
    schedule = Retrain(**{**RETRAIN, "max_a_week": 2})
    own = [past(hours, by_drift=False) for hours in range(160, 20, -20)]
    assert held_back(sorted([*own, past(150)], key=lambda one: one.at), schedule, NOW) is None
    assert held_back([past(170), past(30)], schedule, NOW) is None
    state, sentence = held_back([past(150), past(100), past(30)], schedule, NOW) or ("", "")
    assert state == "OverBudget"
    assert "2 retrains of this week" in sentence
    assert "2026-11-27 08:00 UTC" in sentence  # when the run of 100 hours ago is a week old


def test_what_was_learned_is_what_git_says_and_the_runs_that_failed():
    decided = [{"at": "2026-11-24T03:00:00+00:00", "why": "drift: other words"}, {"at": "2026-11-20T03:00:00+00:00"}]
    found = learned(decided, [Learned(datetime(2026, 11, 22, tzinfo=UTC), by_drift=False)])
    assert [(one.at.day, one.by_drift) for one in found] == [(20, False), (22, False), (24, True)]


def test_each_model_with_a_schedule_gets_a_deployment_that_says_when(repository, client):
    write_params(repository, ("films", "books"), cron="30 2 * * *", timezone="Europe/Berlin")
    made = registered(repository)
    assert [one.name for one in made] == ["retrain/books", "retrain/films"]
    found = client.read_deployment_by_name("retrain/films")
    assert (found.schedules[0].schedule.cron, found.schedules[0].schedule.timezone) == ("30 2 * * *", "Europe/Berlin")
    assert found.entrypoint == "flows.deployed.retrain"
    assert found.parameters == {"model": "films"}
    assert found.global_concurrency_limit.limit == 1
    assert found.concurrency_options.collision_strategy.value == "CANCEL_NEW"
    assert str(repository) in found.description


def test_the_servers_scheduler_plans_the_runs_of_the_cron_line_in_its_time_zone(repository, client):
    write_params(repository, ("films",), cron="30 2 * * *", timezone="Europe/Berlin")
    [one] = registered(repository)
    runs = wait_until(lambda: [run for run in client.read_flow_runs() if run.deployment_id == one.id])
    first = min(run.expected_start_time for run in runs)
    assert first == one.schedule.next_run(datetime.now(UTC)).astimezone(UTC)
    assert first.astimezone(ZoneInfo("Europe/Berlin")).strftime("%H:%M") == "02:30"


def test_registering_again_changes_nothing_and_what_is_late_stays(repository, client, inbox, monkeypatch):
    from prefect.states import Scheduled

    monkeypatch.setenv("MILL_TEST_NOTIFY", inbox.url)
    write_params(repository, ("films",), notify="$MILL_TEST_NOTIFY")
    [one] = registered(repository)
    late = Scheduled(scheduled_time=datetime.now(UTC) - timedelta(hours=3))
    run = client.create_flow_run_from_deployment(one.id, state=late)
    before = {(automation.name, automation.id) for automation in client.read_automations()}
    updated = {automation.id: automation.model_dump() for automation in client.read_automations()}
    assert registered(repository) == [one]
    assert {(automation.name, automation.id) for automation in client.read_automations()} == before
    assert {automation.id: automation.model_dump() for automation in client.read_automations()} == updated
    assert len(before) == 3
    assert client.read_flow_run(run.id).state.is_scheduled()


def test_a_model_that_loses_its_schedule_loses_deployment_and_automations(repository, client):
    registered(repository)
    assert {automation.name for automation in client.read_automations()} == {
        "retrain/films: drift",
        "retrain/books: drift",
    }
    write_params(repository, ("films",))
    assert [one.name for one in registered(repository)] == ["retrain/films"]
    assert [deployment.name for deployment in client.read_deployments()] == ["films"]
    assert [automation.name for automation in client.read_automations()] == ["retrain/films: drift"]


def test_the_deployment_of_another_repository_is_left_alone_and_said(repository, client, tmp_path):
    registered(repository)
    before = client.read_deployment_by_name("retrain/films")
    other = make_repository(tmp_path / "other")
    with pytest.raises(ScheduleError, match=rf"retrain/films of another repository: .*{repository}") as raised:
        registered(other)
    assert "prefect deployment delete retrain/films" in str(raised.value)
    assert client.read_deployment_by_name("retrain/films") == before


def test_a_repository_that_is_moved_is_the_same_one(repository, client, tmp_path):
    before = registered(repository)
    moved = repository.rename(tmp_path / "moved")
    assert registered(moved) == before
    assert str(moved) in client.read_deployment_by_name("retrain/films").description


def test_a_work_pool_that_is_not_there_is_said_with_the_command_that_makes_it(repository, client):
    pooled(repository, "nowhere")
    with pytest.raises(ScheduleError, match="prefect work-pool create --type process nowhere"):
        registered(repository)
    assert client.read_deployments() == []


def test_workers_of_a_process_pool_run_in_the_repository_and_others_clone_it(repository, client, made):
    pools(client)
    pooled(repository, "processes")
    registered(repository)
    found = client.read_deployment_by_name("retrain/films")
    assert found.work_pool_name == "processes"
    step = "prefect.deployments.steps"
    assert found.pull_steps == [{f"{step}.set_working_directory": {"directory": str(repository)}}]
    pooled(repository, "containers")
    registered(repository)
    found = client.read_deployment_by_name("retrain/films")
    assert f"git clone --quiet {made} repository" in found.pull_steps[0][f"{step}.run_shell_script"]["script"]
    pooled(repository, None)
    registered(repository)
    found = client.read_deployment_by_name("retrain/films")
    assert (found.work_pool_name, found.pull_steps) == (None, None)


def pools(client: Any) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate

    known = {pool.name for pool in client.read_work_pools()}
    for name, kind in (("processes", "process"), ("containers", "docker")):
        if name not in known:
            client.create_work_pool(WorkPoolCreate(name=name, type=kind))


def pooled(root: Path, name: str | None) -> None:
    params = json.loads((root / "params.yaml").read_text())
    params["flows"]["server"]["work_pool"] = name
    (root / "params.yaml").write_text(json.dumps(params))


def test_drift_starts_the_models_retrain_alone_and_says_why(repository, client):
    books, films = registered(repository)
    emit_drift(repository, "films", "The words are {{ others }}.", {"share": 0.4})
    [run] = wait_until(lambda: runs_of(client, films))
    assert run.parameters == {"model": "films", "why": "drift", "because": "The words are {{ others }}."}
    assert runs_of(client, books) == []


def test_drift_that_nobody_hears_is_said(repository, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(NotHeard, match="mill retrain films"):
        emit_drift(repository, "films", "The words are others.")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(NotHeard, match="does not take it"):
        emit_drift(repository, "films", "The words are others.")


def test_a_failed_run_and_one_that_asks_are_told_and_the_secret_is_nowhere(
    repository, client, inbox, monkeypatch, served
):
    from prefect.client.schemas.objects import State, StateType
    from prefect.states import Completed, Failed

    monkeypatch.setenv("MILL_TEST_NOTIFY", inbox.url)
    write_params(repository, ("films", "books"), notify="$MILL_TEST_NOTIFY")
    books, films = registered(repository)
    ends = [
        (films, Completed(name="Kept", message="It is not better.")),
        (films, Failed(message="The line failed at train.")),
        (books, State(type=StateType.COMPLETED, name="Ask", message="A person has to decide.")),
    ]
    for one, end in ends:
        run = client.create_flow_run_from_deployment(one.id)
        client.set_flow_run_state(run.id, end, force=True)
    wait_until(lambda: len(inbox.messages) >= 2)
    time.sleep(2)
    told = sorted((message["title"], message["message"].split("\n")[0]) for message in inbox.messages)
    assert told == [
        ("books: retrain Ask", "A person has to decide."),
        ("films: retrain Failed", "The line failed at train."),
    ]
    held = json.dumps([automation.model_dump(mode="json") for automation in client.read_automations()])
    logs = json.dumps([log.model_dump(mode="json") for log in client.read_logs()])
    assert "sesame" not in held + logs


@pytest.mark.long
def test_silence_is_told(client, served, inbox, monkeypatch, repository):
    monkeypatch.setenv("MILL_TEST_NOTIFY", inbox.url)
    books, films = registered(repository)
    soon = films.schedule.model_copy(update={"silence_hours": 10.5 / 3600})
    quick = [Deployed(one.id, one.flow, one.model, soon, drift_starts_it=False) for one in (films, books)]
    automate(client, "$MILL_TEST_NOTIFY", quick, [TAG, f"checkout:{identity(repository)}"])
    until = time.monotonic() + 60
    while not inbox.messages and time.monotonic() < until:
        run = client.create_flow_run_from_deployment(books.id)
        client.set_flow_run_state(run.id, running(), force=True)
        time.sleep(2)
    assert {message["title"].split(" for ")[0] for message in inbox.messages} == {"films: no retrain"}
    assert "0 3 1 1 *" in inbox.messages[0]["message"]


def running() -> Any:
    from prefect.states import Running

    return Running()


@pytest.mark.parametrize(
    ("url", "told"), [(None, "has no MILL_TEST_NOTIFY"), ("nonsense", "no URL that Apprise knows")]
)
def test_a_notify_that_leads_nowhere_is_said_and_its_content_is_not(client, monkeypatch, url, told):
    if url is None:
        monkeypatch.delenv("MILL_TEST_NOTIFY", raising=False)
    else:
        monkeypatch.setenv("MILL_TEST_NOTIFY", url)
    with pytest.raises(NotifyError, match=told) as raised:
        save_block("$MILL_TEST_NOTIFY")
    assert "nonsense" not in str(raised.value)


def test_where_nobody_can_be_told_the_schedules_stay_as_they_were(repository, client, monkeypatch):
    before = {one.id for one in registered(repository)}
    monkeypatch.delenv("MILL_TEST_NOTIFY", raising=False)
    write_params(repository, ("films",), notify="$MILL_TEST_NOTIFY")
    with pytest.raises(NotifyError):
        registered(repository)
    assert {one.id for one in client.read_deployments()} == before


def test_runs_of_a_runner_that_was_killed_are_crashed_and_give_their_place_back(repository, client):
    from prefect.states import Pending

    books, films = registered(repository)
    dead, other = (client.create_flow_run_from_deployment(one.id) for one in (films, books))
    for run in (dead, other):
        assert client.set_flow_run_state(run.id, Pending()).state.is_pending()
        assert client.set_flow_run_state(run.id, running()).state.is_running()
    second = client.create_flow_run_from_deployment(films.id)
    assert client.set_flow_run_state(second.id, Pending()).state.is_cancelled()
    end_the_dead([films])
    assert client.read_flow_run(dead.id).state.is_crashed()
    assert client.read_flow_run(other.id).state.is_running()
    third = client.create_flow_run_from_deployment(films.id)
    assert client.set_flow_run_state(third.id, Pending()).state.is_pending()


def worked(client: Any, one: Deployed, root: Path, **env: str) -> Any:
    """The end of a run that a worker of the process pool has taken, in some folder."""
    run = client.create_flow_run_from_deployment(one.id)
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", "processes", "--run-once"],
        cwd=root,
        env={**own, "PREFECT_API_URL": str(client.api_url).rstrip("/"), "PYTHONPATH": "", **env},
        capture_output=True,
        text=True,
    )
    state = client.read_flow_run(run.id).state
    assert state.is_final(), done.stdout + done.stderr
    return state


@pytest.mark.slow
def test_a_worker_runs_the_retrain_in_the_repository(made, client, tmp_path):
    pools(client)
    root = make_repository(tmp_path / "own")
    pooled(root, "processes")
    git(root, "commit", "-qam", "a work pool")
    [one] = registered(root)
    state = worked(client, one, tmp_path)
    assert (state.name, state.type.value) == ("Refused", "COMPLETED")
    assert [decision["verdict"] for decision in decisions(root, "films")] == ["keep"]
    assert len(line_runs(root)) == 1


@pytest.mark.slow
def test_a_worker_without_the_repository_clones_it_and_what_it_makes_goes_out(made, client, tmp_path):
    pools(client)
    root, bare = make_repository(tmp_path / "own"), tmp_path / "bare.git"
    pooled(root, "processes")
    (root / ".dvc/config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {tmp_path}/store\n")
    git(root, "add", "-A")
    git(root, "add", "--force", "incoming")
    git(root, "commit", "-qm", "what a clone needs")
    git(tmp_path, "clone", "-q", "--bare", str(root), str(bare))
    git(root, "remote", "add", "origin", str(bare))
    [one] = registered(root)
    as_containers_do(client, one, root)
    who = {f"GIT_{role}_{what}": "mill" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    state = worked(client, one, tmp_path, **who)
    assert (state.name, state.type.value) == ("Refused", "COMPLETED")
    assert decisions(root, "films") == []
    assert [decision["verdict"] for decision in decisions(bare, "films")] == ["keep"]
    assert any(file.is_file() for file in (tmp_path / "store").rglob("*"))
    assert worked(client, one, tmp_path, **who).name == "Nothing"


def as_containers_do(client: Any, one: Deployed, root: Path) -> None:
    """Give a process worker the steps of a container's."""
    from prefect.client.schemas.actions import DeploymentUpdate

    way = way_of(root, "docker")
    update = DeploymentUpdate(pull_steps=way.steps, job_variables={"env": {"PYTHONPATH": way.code}})
    client.update_deployment(one.id, update)
