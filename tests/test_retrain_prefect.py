"""A retrain and Prefect's servers: which one shows it, what stays there, and what it does where that goes away."""

import fcntl
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import flows.retrain as flow
from flows.as_flow import as_flow
from flows.git import git
from flows.prefect_api import ServerError
from flows.registry import decisions
from flows.retrain import retrain
from tasks.errors import MillError
from tasks.shards import write_json, write_text
from tests.conftest import REPOSITORY
from tests.test_flow_line import Proxy, guards_of, servers_below
from tests.test_retrain import arrive, branches, champion, gate, repository, toy  # noqa: F401
from tests.test_worktree import fingerprint
from tests.waiting import lives, wait_until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# `mill retrain films` with the stand-in for the gate.
COMMAND = """
import sys
import flows.gating
from flows.cli import main
from tests.test_retrain import Gate

flows.gating.gate_release = Gate()
sys.argv = ["mill", "retrain", "films"]
main()
"""

SILENT = "http://127.0.0.1:9/api"


@contextmanager
def in_a_process(root: Path, **env: str | None) -> Iterator["subprocess.Popen[str]"]:
    """That command there, which ends with the block; None takes a variable away."""
    around = {**os.environ, "PYTHONPATH": str(REPOSITORY), **env}
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        cwd=root,
        env={name: value for name, value in around.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def halting(repository: Path) -> Path:  # noqa: F811
    """The repository, with a line that writes its process into `.mill/running` and goes on once `.mill/on` is there."""
    make, place = (repository / "make.py").read_text(), repository / ".mill"
    halt = (
        "import os, time\nfrom pathlib import Path\n"
        f"Path({str(place / 'running')!r}).write_text(str(os.getpid()))\n"
        f"while not Path({str(place / 'on')!r}).exists():\n    time.sleep(0.05)\n"
    )
    write_text(repository / "make.py", halt + make)
    git(repository, "commit", "-qam", "it halts")
    return repository


def running(root: Path, process: "subprocess.Popen[str]") -> str:
    """The process of the line's stage, once it halts."""
    file = root / ".mill/running"
    wait_until(lambda: process.poll() is not None or (file.exists() and file.read_text() != ""), seconds=180)
    assert process.poll() is None, process.communicate()[0]
    return file.read_text()


def runs_of(client: Any, name: str) -> list[Any]:
    """The flow runs of a name, the last one first."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    named = FlowRunFilter(name=FlowRunFilterName(any_=[name]))
    found: list[Any] = client.read_flow_runs(flow_run_filter=named, sort=FlowRunSort.START_TIME_DESC)
    return found


@pytest.mark.usefixtures("served", "gate")
def test_the_flow_run_bears_the_models_name_and_the_verdict(repository):  # noqa: F811
    from prefect.client.orchestration import get_client

    retrain(repository, "films")
    with get_client(sync_client=True) as client:
        run = runs_of(client, "retrain-films")[0]
    assert (run.state.name, run.state.type.value) == ("Promoted", "COMPLETED")
    assert "films@v1.0.0 is the champion now" in run.state.message


@pytest.mark.long
@pytest.mark.usefixtures("served", "gate")
def test_the_links_to_its_reports_lead_somewhere_when_the_worktree_is_gone(repository):  # noqa: F811
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    retrain(repository, "films")
    for number in (2, 3, 4):
        arrive(repository, "films", number)
    assert retrain(repository, "films").verdict == "failed"
    with get_client(sync_client=True) as client:
        line = next(run for run in runs_of(client, "line-films") if run.state.is_completed())
        of_line = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[line.id]))
        links = {found.key: str(found.data) for found in client.read_artifacts(artifact_filter=of_line)}
    assert "models/films/release" in links.pop("deploy-films-outputs")
    assert set(links) == {"films-deploy-report", "films-deploy-page"}
    places = [Path(re.findall(r"\(file://(.*)\)", link)[0]) for link in links.values()]
    assert [place for place in places if not place.exists()] == []
    assert {place.read_text() for place in places} == {"a page", '{"count": 1}'}


@pytest.mark.usefixtures("served", "gate")
def test_a_server_that_is_named_and_does_not_answer_is_said_before_anything_is_done(repository, monkeypatch):  # noqa: F811
    monkeypatch.setenv("PREFECT_API_URL", SILENT)
    before, refs = fingerprint(repository), git(repository, "for-each-ref")
    with pytest.raises(ServerError, match=f"Prefect's server at {SILENT} does not answer"):
        retrain(repository, "films")
    assert (fingerprint(repository), git(repository, "for-each-ref")) == (before, refs)
    assert not (repository / ".mill").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("gate")
def test_a_server_that_goes_away_in_the_middle_loses_neither_result_nor_sentence(halting, served):
    proxy = Proxy(int(served.rpartition(":")[2].removesuffix("/api")))
    with in_a_process(halting, PREFECT_API_URL=f"http://127.0.0.1:{proxy.port}/api") as process:
        running(halting, process)
        proxy.cut()
        write_text(halting / ".mill/on", "")
        began = time.monotonic()
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "films: films@v1.0.0 is the champion now. It is better." in said.splitlines()
    assert "Prefect does not show how this ended" in said
    assert "Traceback" not in said
    assert champion(halting) == "films@v1.0.0"
    assert time.monotonic() - began < 60


@pytest.mark.slow  # Prefect makes a database first
@pytest.mark.usefixtures("gate")
def test_where_the_server_goes_away_before_the_line_the_line_does_without(repository, served, tmp_path, monkeypatch):  # noqa: F811
    proxy = Proxy(int(served.rpartition(":")[2].removesuffix("/api")))
    look = flow.check_out_data

    def cut(*arguments: Any) -> None:
        proxy.cut()
        look(*arguments)

    monkeypatch.setattr(flow, "check_out_data", cut)
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{proxy.port}/api")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    assert retrain(repository, "films").verdict == "promoted"


@contextmanager
def up(root: Path, api: str, serves: str = "") -> Iterator[None]:
    """What a `mill up` in the repository shows of itself: its lock is held, and it says where its servers are."""
    write_json(
        root / ".mill/up/running.json",
        {"process": os.getpid(), "api": api, "page": "", "serves": serves, "evidently": None, "since": "", "log": ""},
    )
    with (root / ".mill/up/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_it_is_on_the_dashboard_of_a_running_mill_up_and_can_be_cancelled_there(halting, prefect_api, tmp_path):
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.states import Cancelling

    alone = {"PREFECT_API_URL": None, "PREFECT_HOME": str(tmp_path / "home")}
    with up(halting, prefect_api), SyncPrefectClient(prefect_api) as client, in_a_process(halting, **alone) as process:
        before = {run.id for run in runs_of(client, "retrain-films")}
        stage = running(halting, process)
        (run,) = [run for run in runs_of(client, "retrain-films") if run.id not in before]
        client.set_flow_run_state(run.id, Cancelling())
        said, _ = process.communicate(timeout=120)
        assert (process.returncode, client.read_flow_run(run.id).state.type.value) == (1, "CANCELLED")
    assert "mill retrain: retrain-films was cancelled in Prefect." in said
    assert "Traceback" not in said
    assert not lives(stage)
    assert decisions(halting, "films") == []
    assert branches(halting) == ["main"]
    assert len(git(halting, "worktree", "list").splitlines()) == 1


@pytest.mark.slow  # Prefect makes its database first
def test_a_temporary_server_ends_with_a_retrain_that_is_killed(halting, tmp_path):
    with in_a_process(halting, PREFECT_API_URL=None, PREFECT_HOME=str(tmp_path / "home")) as process:
        running(halting, process)
        (server,) = servers_below(process.pid)
        wait_until(lambda: guards_of(server))
    wait_until(lambda: not lives(server), seconds=30)


@pytest.mark.usefixtures("served")
def test_work_that_prefect_cannot_show_is_done_once_and_what_stops_it_is_raised(capsys):
    done: list[str | None] = []

    def fail(api: str | None) -> None:
        done.append(api)
        raise MillError("there is no data")

    assert as_flow("look", "films", SILENT, lambda api: str(api), lambda _: pytest.fail("shown")) == "None"
    assert "Prefect cannot show this" in capsys.readouterr().err
    with pytest.raises(MillError, match="there is no data"):
        as_flow("look", "films", os.environ["PREFECT_API_URL"], fail, lambda _: pytest.fail("shown"))
    assert done == [os.environ["PREFECT_API_URL"]]


def test_where_a_library_sets_up_logging_afresh_the_lines_after_it_arrive_too(served, capsys):
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext
    from prefect.states import Completed

    def work(_: str | None) -> Any:
        print("a line before")
        for handler in logging.getLogger("prefect.flow_runs").handlers:
            handler.flush()  # as logging.config does with all that there are
        print("a line after")
        context = FlowRunContext.get()
        assert context is not None
        return context.flow_run

    run = as_flow("retrain", "films", served, work, lambda _: Completed())
    assert "Logging error" not in capsys.readouterr().err
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/logs/filter", json={"logs": {"flow_run_id": {"any_": [str(run.id)]}}}).json()
    assert {"a line before", "a line after"} <= {line["message"] for line in found}
