"""`mill up` as a process: what it starts, what runs by it, and that all of it ends."""

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.asking import ask_for_retrain
from flows.events import emit_drift
from flows.git import git
from flows.registry import decisions
from flows.up import Running, running, running_api
from tasks.shards import write_json, write_text
from tests.scheduled import around, arrive, free_port, line_runs, make_repository, mill, write_params
from tests.waiting import lives, wait_until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Prefect:
    """What the server says of the runs."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def ask(self, method: str, path: str, **content: Any) -> Any:
        """The server asks for patience where its database is busy."""
        return wait_until(
            lambda: found if (found := self._http.request(method, path, **content)).status_code != 503 else None
        ).json()

    @property
    def deployment(self) -> dict[str, Any]:
        return dict(self.ask("GET", "/deployments/name/retrain/films"))

    def run(self, hours_ago: float = 0) -> str:
        """A run that was due then."""
        due = datetime.now(UTC) - timedelta(hours=hours_ago)
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
        path = f"/deployments/{self.deployment['id']}/create_flow_run"
        return str(self.ask("POST", path, json={"state": state})["id"])

    def runs(self) -> list[dict[str, Any]]:
        """Those of the deployment that the schedule did not plan."""
        found = self.ask("POST", "/flow_runs/filter", json={"sort": "EXPECTED_START_TIME_ASC"})
        return [run for run in found if run["deployment_id"] and not run["auto_scheduled"]]

    def state(self, run: str) -> dict[str, Any]:
        return dict(self.ask("GET", f"/flow_runs/{run}")["state"])

    def ended(self, run: str) -> dict[str, Any]:
        ends = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        return wait_until(lambda: state if (state := self.state(run))["type"] in ends else None)

    @property
    def cron(self) -> str:
        [schedule] = self.deployment["schedules"]
        return str(schedule["schedule"]["cron"])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = make_repository(tmp_path_factory.mktemp("up"))
    yield root
    mill(root, "down")


@pytest.fixture(scope="module")
def started(repository: Path) -> Running:
    """A `mill up --detach` that the tests below share; the last of them stop it."""
    done = mill(repository, "up", "--detach")
    assert done.returncode == 0, done.stderr
    found = running(repository)
    assert found is not None
    for told in (
        f"Dashboard     {found.page}",
        f"Models        {found.serves}/",
        "retrain/films next at 2027-01-01T03:00",
        found.log,
    ):
        assert told in done.stdout
    return found


@pytest.fixture
def prefect(started: Running) -> Iterator[Prefect]:
    with httpx.Client(base_url=started.api, timeout=30) as http:
        yield Prefect(http)


def children(process: int) -> dict[str, int]:
    """What a `mill up` has started, by a word of its command."""
    import psutil

    words = {"prefect": "prefect", "flows.runner": "schedules", "flows.cli": "models", "evidently.cli": "evidently"}
    found = {}
    for child in psutil.Process(process).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(child.cmdline())
            found |= {name: child.pid for word, name in words.items() if f"-m {word}" in command}
    return found


def test_it_runs_apart_from_the_persons_own_prefect(repository, started):
    assert running_api(repository) == started.api
    assert (repository / ".mill/prefect/prefect.db").exists()
    home = repository.parent / "home"
    assert sorted(path.name for path in home.rglob("*")) == [".prefect", "profiles.toml"]
    told = (repository / ".mill/up/start").read_text()
    assert "Your Prefect profile `work` names http://h/api, which is not used" in told
    assert "PREFECT_API_URL=http://h/api mill up" in told
    settings = httpx.get(f"{started.api}/admin/settings").json()
    assert settings["server"]["analytics_enabled"] is False


def test_a_second_one_is_told_who_is_there(repository, started):
    for arguments in (("up",), ("up", "--detach")):
        done = mill(repository, *arguments)
        assert done.returncode == 1
        assert f"as process {started.process}: {started.page}" in done.stderr
        assert "mill down" in done.stderr
    assert running(repository) == started


def test_a_port_that_is_taken_is_said_with_who_has_it_and_what_to_do(repository, started, tmp_path):
    other = make_repository(tmp_path)
    params = json.loads((other / "params.yaml").read_text())
    params["flows"]["server"]["port"] = int(started.page.rpartition(":")[2])
    (other / "params.yaml").write_text(json.dumps(params))
    before = git(other, "status", "--porcelain")
    done = mill(other, "up")
    assert done.returncode == 1
    assert f"process {children(started.process)['prefect']} (" in done.stderr
    assert f"in {repository})" in done.stderr
    assert "flows.server.port" in done.stderr
    assert f"PREFECT_API_URL={started.api} mill up" in done.stderr
    assert git(other, "status", "--porcelain") == before
    assert running(other) is None


def test_status_knows_the_next_run_from_the_server(repository, started):
    done = mill(repository, "status")
    assert "next retrain 2027-01-01 03:00 UTC\n" in done.stdout
    assert "mill up --detach" not in done.stdout


def test_of_runs_that_were_missed_one_is_made_up_for_and_they_do_not_pile_up(repository, prefect):
    missed = [prefect.run(hours_ago) for hours_ago in (72, 48, 24)]
    states = [prefect.ended(run) for run in missed]
    assert sorted(state["name"] for state in states) == ["Cancelled", "Cancelled", "Refused"]
    assert len(line_runs(repository)) == 1
    assert decisions(repository, "films")[-1]["why"] == "schedule"
    later = prefect.ended(prefect.run(hours_ago=2))
    assert later["name"] == "CaughtUp"
    assert "retrain-films has started since" in later["message"]
    assert len(line_runs(repository)) == 1


def test_the_links_that_a_retrains_line_leaves_in_the_dashboard_open_the_pages(prefect, started):
    found = prefect.ask("POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": ["films-deploy-report"]}}})
    (link,) = re.findall(r"\((http.*)\)", found[0]["data"])
    assert link.startswith(f"{started.serves}/retrained/films/")
    wait_until(lambda: answers_at(f"{started.serves}/healthz"))
    assert httpx.get(link).json() == {"model": "films"}


def test_drift_learns_when_it_has_cooled_down_and_costs_nothing_before(repository, prefect):
    arrive(repository, "films", 2)
    before = len(prefect.runs())
    emit_drift(repository, "films", "The words are others.")
    run = wait_until(lambda: runs[-1] if len(runs := prefect.runs()) > before else None)
    held = prefect.ended(run["id"])
    assert held["name"] == "CoolDown"
    assert "cool_down_hours (20)" in held["message"]
    assert len(decisions(repository, "films")) == 1
    write_params(repository, cool_down_hours=0)
    git(repository, "commit", "-qam", "no cool-down")
    emit_drift(repository, "films", "The words are others.")
    run = wait_until(lambda: runs[-1] if len(runs := prefect.runs()) > before + 1 else None)
    assert prefect.ended(run["id"])["name"] in ("Refused", "Nothing")


def test_a_retrain_that_somebody_asks_for_is_run_and_says_why(repository, prefect):
    page = ask_for_retrain(repository, "films", "rows were forgotten")
    assert page is not None
    run = page.rpartition("/")[2]
    assert prefect.ended(run)["name"] in ("Refused", "Nothing")
    asked = prefect.ask("GET", f"/flow_runs/{run}")
    assert (asked["id"] in page, asked["parameters"]) == (True, {"model": "films", "why": "rows were forgotten"})
    assert ask_for_retrain(repository, "songs", "rows were forgotten") is None


def test_what_changes_in_params_is_taken_over_and_a_mistake_in_it_is_not(repository, started, prefect):
    write_params(repository, cron="0 4 1 1 *")
    at_four = "0 4 1 1 *"
    wait_until(lambda: prefect.cron == at_four)
    text = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(text.replace(at_four, "every night"))
    wait_until(lambda: "the schedules stay as they were" in Path(started.log).read_text())
    assert "every night at three" in Path(started.log).read_text()
    assert prefect.cron == at_four
    (repository / "params.yaml").write_text(text)


def test_the_model_servers_death_is_mended_and_ends_nothing_else(started):
    before = children(started.process)
    os.kill(before["models"], signal.SIGKILL)
    after = wait_until(lambda: found if len(found := children(started.process)) == 3 and found != before else None)
    assert {name for name in after if after[name] != before[name]} == {"models"}
    wait_until(lambda: answers_at(f"{started.serves}/healthz"))


def answers_at(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_a_server_that_dies_in_mid_run_comes_back_and_the_run_goes_on(repository, started, prefect):
    write_text(repository.parent / "runs/seconds", "60")  # longer than a server takes to come back
    arrive(repository, "films", 3)
    before = len(line_runs(repository))
    run = prefect.run()
    wait_until(lambda: len(line_runs(repository)) > before)
    lease = prefect.state(run)["state_details"]["deployment_concurrency_lease_id"]
    os.kill(children(started.process)["prefect"], signal.SIGKILL)
    wait_until(lambda: not answers_at(f"{started.api}/health"))
    wait_until(lambda: answers_at(f"{started.api}/health"))
    renewed = httpx.post(f"{started.api}/v2/concurrency_limits/leases/{lease}/renew", json={"lease_duration": 300})
    assert renewed.status_code < 300
    assert prefect.ended(run)["name"] in ("Refused", "Nothing")
    assert len(line_runs(repository)) == before + 1
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_down_ends_the_run_and_everything_else(repository, started, prefect):
    write_text(repository.parent / "runs/seconds", "600")
    arrive(repository, "films", 4)
    before, head = len(line_runs(repository)), git(repository, "for-each-ref")
    prefect.run()
    wait_until(lambda: len(line_runs(repository)) > before)
    processes = {**children(started.process), "up": started.process, "line": line_runs(repository)[-1]}
    done = mill(repository, "down")
    assert (done.returncode, done.stdout) == (0, "Stopped.\n")
    assert [name for name, process in processes.items() if lives(process)] == []
    assert running(repository) is None
    assert running_api(repository) is None
    assert git(repository, "for-each-ref") == head
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert mill(repository, "down").stdout == "`mill up` does not run in this repository.\n"


# It holds the lock for a while before it says who it is.
STARTING = """
import fcntl, json, os, sys, time
lock = open("lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(8)
here = {"process": os.getpid(), **dict.fromkeys(("api", "page", "serves", "evidently", "since", "log"), "")}
json.dump(here, open("running.json", "w"))
time.sleep(60)
"""


def test_down_also_ends_one_that_has_just_been_started(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / ".mill/up").mkdir(parents=True)
    starting = subprocess.Popen(
        [sys.executable, "-c", STARTING], cwd=tmp_path / ".mill/up", stdout=subprocess.PIPE, text=True
    )
    try:
        assert starting.stdout is not None
        assert starting.stdout.readline() == "held\n"
        done = mill(tmp_path, "down")
        assert (done.returncode, done.stdout) == (0, "Stopped.\n")
        assert starting.wait(10) == -signal.SIGTERM
    finally:
        starting.kill()
        starting.communicate()


@pytest.mark.slow
def test_killed_in_mid_run_all_ends_and_started_again_it_knows_what_became_of_it(repository):
    mill(repository, "down")
    write_text(repository.parent / "runs/seconds", "600")
    arrive(repository, "films", 5)
    assert mill(repository, "up", "--detach").returncode == 0
    found = running(repository)
    assert found is not None
    before = len(line_runs(repository))
    with httpx.Client(base_url=found.api, timeout=30) as http:
        prefect = Prefect(http)
        old = prefect.run(hours_ago=-1)
        prefect.ask("POST", f"/flow_runs/{old}/set_state", json={"state": {"type": "CANCELLED"}, "force": True})
        run = prefect.run()
        wait_until(lambda: len(line_runs(repository)) > before)
    processes = [*children(found.process).values(), line_runs(repository)[-1]]
    os.kill(found.process, signal.SIGKILL)
    wait_until(lambda: not any(lives(process) for process in processes))
    assert running_api(repository) is None
    write_text(repository.parent / "runs/seconds", "0")
    with contextlib.closing(sqlite3.connect(repository / ".mill/prefect/prefect.db")) as database, database:
        # No API lets a run have ended in the past.
        database.execute("UPDATE flow_run SET end_time = datetime('now', '-31 days') WHERE id = ?", [old])
    assert mill(repository, "up", "--detach").returncode == 0
    with httpx.Client(base_url=found.api, timeout=30) as http:
        prefect = Prefect(http)
        # As far as its processes came in saying so; if not at all, the next start has said it.
        assert prefect.state(run)["type"] in ("CANCELLED", "CRASHED")
        ended = prefect.ended(prefect.run())
        assert ended["name"] in ("Refused", "Nothing"), ended["message"]
        wait_until(lambda: http.get(f"/flow_runs/{old}").status_code == 404)  # keep_runs_days is 30
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    mill(repository, "down")


def _got(url: str) -> str | None:
    """What stands there, where anything does."""
    try:
        found = httpx.get(url)
    except httpx.HTTPError:
        return None
    return found.text if found.is_success else None


def followed_from(portal: str) -> dict[str, str]:
    """The titles of the other servers' pages that the portal links to, by what it calls them."""
    page = wait_until(lambda: _got(portal))
    links = re.findall(r'<a href="(http://[^"]+)">([^<]+)</a>', page)
    led = {name: httpx.get(link, follow_redirects=True).raise_for_status().text for link, name in links}
    return {name: text.partition("<title>")[2].partition("</title>")[0] for name, text in led.items()}


def test_ctrl_c_ends_what_it_started_and_not_the_server_that_was_there(tmp_path, prefect_api):
    root = make_repository(tmp_path, ("songs",))
    params = json.loads((root / "params.yaml").read_text())
    params["flows"]["evidently"] = {"port": free_port()}
    write_json(root / "params.yaml", params)
    git(root, "commit", "-qam", "Evidently's pages as well")
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "up"],
        cwd=root,
        env=around(root, PREFECT_API_URL=prefect_api),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "`mill down` stops it." in line:
            break
    assert f"Dashboard     {prefect_api.removesuffix('/api')}  (by PREFECT_API_URL)\n" in said
    assert running_api(root) == prefect_api
    started = children(process.pid)
    assert sorted(started) == ["evidently", "models", "schedules"]
    assert f"Evidently     http://127.0.0.1:{params['flows']['evidently']['port']}\n" in said
    pages = f"http://127.0.0.1:{params['flows']['evidently']['port']}"
    assert wait_until(lambda: _got(f"{pages}/api/projects")) == "[]"
    assert httpx.post(f"{pages}/api/projects", json={"name": "films"}).status_code in (401, 403)
    followed = followed_from(f"http://127.0.0.1:{params['flows']['serve']['port']}/reports/")
    assert {name: title.split()[0] for name, title in followed.items()} == {
        "Flow runs in Prefect": "Prefect",
        "Drift in Evidently": "Evidently",
    }
    deployment = httpx.get(f"{prefect_api}/deployments/name/retrain/songs").json()
    assert deployment["parameters"] == {"model": "songs"}
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    assert rest.endswith("Stopped.\n")
    assert not any(lives(one) for one in started.values())
    assert httpx.get(f"{prefect_api}/health").json() is True
    # Prefect's own way out pauses the schedules; what is missed until the next start is to be made up for.
    assert httpx.get(f"{prefect_api}/deployments/name/retrain/songs").json()["paused"] is False
