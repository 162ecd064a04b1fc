"""The line on a real Prefect server: what it shows, what it stops, whom it waits for."""

import contextvars
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from flows.prefect_api import ServerError
from tasks.shards import write_text
from tests import line_toy as toy
from tests.conftest import REPOSITORY
from tests.line_toy import Seen
from tests.waiting import lives, wait_until

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("served")]


@pytest.fixture
def branches(tmp_path) -> Path:
    return toy.make_branches(tmp_path / "toy")


def stages(of: str, *names: str) -> dict[str, str]:
    return {f"{name}@{model}": of for name in names for model in ("one", "two")}


def test_each_stage_is_a_task_of_its_address_with_its_output_in_its_log(branches, capfd):
    ended = toy.line(branches, ["two", "one"])
    assert not ended.failed
    seen = Seen(6)
    assert seen.run.name == "line-two-one"
    assert seen.run.parameters == {"models": ["two", "one"], "jobs": 4, "force": []}
    assert (seen.run.state.type.value, seen.run.state.message) == ("COMPLETED", "6 ran")
    assert seen.states == dict(sorted(stages("Completed", "collect", "clean", "deploy").items()))
    assert "rows of one" in seen.log("collect@one")
    assert seen.before("deploy@one") == {"clean@one"}
    said = capfd.readouterr().err
    assert "collect@two  rows of two\n" in said
    assert f"/runs/flow-run/{seen.run.id}" in said


def test_what_is_up_to_date_is_shown_as_cached_and_what_the_run_cache_has_as_restored(branches):
    toy.line(branches)
    write_text(branches / "raw-one.txt", "new\n")
    toy.line(branches)
    assert Seen(6).states == dict(
        sorted({**stages("Cached", "collect", "clean", "deploy"), **dict.fromkeys(of_one(), "Completed")}.items())
    )
    write_text(branches / "raw-one.txt", "1\n")
    toy.line(branches)
    assert {name for name, state in Seen(6).states.items() if state == "Restored"} == of_one()


def of_one() -> set[str]:
    return {"collect@one", "clean@one", "deploy@one"}


def test_a_stage_that_fails_stops_its_branch_alone_and_is_named_with_its_code_and_the_end_of_its_log(branches):
    write_text(branches / "broken-one", "")
    ended = toy.line(branches)
    assert toy.outcomes(ended) == {
        "ran": ["clean@two", "collect@one", "collect@two", "deploy@two"],
        "failed": ["clean@one"],
        "not run": ["deploy@one"],
    }
    seen = Seen(6)
    assert (seen.states["clean@one"], seen.states["deploy@one"]) == ("Failed", "NotRun")
    assert seen.message("deploy@one") == "not run: it needs clean@one, which failed."
    assert seen.states["deploy@two"] == "Completed"
    for message in (seen.message("clean@one"), seen.run.state.message):
        assert "clean@one failed: exit code 3." in message
        assert message.endswith("no such column: text")
    assert seen.run.state.type.value == "FAILED"
    assert "Traceback" not in "".join(seen.log("clean@one"))
    assert not (branches / "d-one.txt").exists()
    assert "clean@one" not in (branches / "dvc.lock").read_text()


def test_only_collect_is_tried_again_and_a_second_attempt_begins_like_the_first(branches):
    params = toy.PARAMS.model_copy(update={"collect_retries": 2, "collect_retry_seconds": 0.2})
    toy.line(branches)
    kept = (branches / "dvc.lock").read_bytes()
    write_text(branches / "raw-one.txt", "new\n")
    write_text(branches / "dvc.yaml", toy.BRANCHES.replace("cp raw", "test ${item} = two && cp raw"))
    write_text(branches / "broken-two", "")
    ended = toy.line(branches, params=params)
    # Not restored as what the inputs before had made.
    assert toy.outcomes(ended)["failed"] == ["collect@one"]
    assert (branches / "dvc.lock").read_bytes().count(b"test two = two") == 1
    assert kept.count(b"test two = two") == 0
    seen = Seen(6)
    assert (seen.tasks["collect@one"].run_count, seen.states["collect@one"]) == (3, "Failed")
    assert seen.log("collect@one").count("rows of one") == 3


def test_cancelled_in_prefect_it_ends_the_whole_process_group_and_says_so(branches):
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    def cancel() -> None:
        wait_until((branches / "pid").exists)
        with get_client(sync_client=True) as client:
            wait_until(lambda: toy.last_run(client).state.is_running())
            client.set_flow_run_state(toy.last_run(client).id, Cancelling())

    write_text(branches / "slow", "")
    canceller = threading.Thread(target=contextvars.copy_context().run, args=(cancel,))  # with Prefect's settings
    canceller.start()
    ended = toy.line(branches, ["one"])
    canceller.join()
    assert ended.why_stopped == "cancelled in Prefect"
    assert toy.outcomes(ended) == {"ran": ["collect@one"], "stopped": ["clean@one"], "not run": ["deploy@one"]}
    assert not lives((branches / "pid").read_text().strip())
    seen = Seen(3)
    assert (seen.run.state.type.value, seen.states["clean@one"]) == ("CANCELLED", "Cancelled")
    assert seen.states["deploy@one"] == "NotRun"
    (branches / "slow").unlink()
    assert not toy.line(branches, ["one"]).failed


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "http://nowhere.invalid/api", "nonsense"])
def test_a_server_that_is_named_and_does_not_answer_is_said_and_nothing_is_touched(branches, monkeypatch, url):
    monkeypatch.setenv("PREFECT_API_URL", url)
    before = toy.written(branches)
    with pytest.raises(ServerError, match=rf"Prefect's server at {url} does not answer: .*variable PREFECT_API_URL"):
        toy.line(branches)
    assert toy.written(branches) == before


def test_a_profile_that_points_elsewhere_is_named(branches, tmp_path):
    profile = 'active = "office"\n[profiles.office]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    write_text(tmp_path / "home/profiles.toml", profile)
    line = toy.in_a_process(branches, PREFECT_API_URL=None, PREFECT_HOME=str(tmp_path / "home"))
    _, said = line.communicate()
    assert line.returncode == 1
    assert "Prefect's server at http://127.0.0.1:9/api does not answer" in said
    assert "Prefect's profile 'office'" in said
    assert "prefect config unset PREFECT_API_URL" in said


class Proxy:
    """A way to the server that can be cut."""

    def __init__(self, port: int) -> None:
        self._to, self._listens, self._open = port, socket.create_server(("127.0.0.1", 0)), []
        self.port = self._listens.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listens.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            self._open += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass

    def cut(self) -> None:
        self._listens.shutdown(socket.SHUT_RDWR)
        self._listens.close()
        for end in self._open:
            end.close()


@pytest.mark.long
def test_a_server_that_goes_away_in_the_middle_loses_no_result(branches, served):
    proxy = Proxy(int(served.rpartition(":")[2].removesuffix("/api")))
    write_text(branches / "clean.sh", "while [ ! -e on ]; do sleep 0.1; done; " + toy.CLEAN)
    line = toy.in_a_process(branches, PREFECT_API_URL=f"http://127.0.0.1:{proxy.port}/api")
    assert line.stderr is not None
    assert any("Prefect shows it" in said for said in line.stderr)
    proxy.cut()
    assert any("Prefect's server does not answer any more" in said for said in line.stderr)
    write_text(branches / "on", "")
    out, err = line.communicate(timeout=120)
    assert out.strip() == "{'ran': ['clean@one', 'collect@one', 'deploy@one']}"
    assert "Nothing is lost: what the stages have made is recorded in DVC." in err
    assert "Traceback" not in err
    assert toy.dvc(branches, "status", "-q", "deploy@one") == 0


def test_a_stage_leaves_its_rows_its_metrics_and_links_to_its_reports_in_prefect(tmp_path):
    shutil.copytree(
        REPOSITORY / "reports/reviews", tmp_path / "reports", ignore=shutil.ignore_patterns("*_docs", "live")
    )
    stage = "  {0}:\n    foreach: [one]\n    do:\n      cmd: mkdir -p reports/one; cp ../reports/{0}.json reports/one\n"
    stage += '      deps: [input]\n      outs: ["{0}.txt"]\n'
    text = "stages:\n" + "".join(stage.format(name) for name in ("validate", "clean", "evaluate"))
    for name in ("validate", "clean", "evaluate"):
        text = text.replace(f"{name}.json reports/one\n", f"{name}.json reports/one; touch {name}.txt\n")
    root = toy.make(tmp_path / "toy", {"dvc.yaml": text, "input": "1\n"})
    assert not toy.line(root).failed
    artifacts = Seen(3).artifacts
    assert {"one-clean-rows", "one-clean-report", "one-evaluate-metrics", "one-evaluate-report"} <= set(artifacts)
    rows = str(artifacts["one-clean-rows"].data)
    assert "rows in" in rows
    assert "dropped: duplicate_of" in rows
    metrics = str(artifacts["one-evaluate-metrics"].data)
    assert "accuracy of the baseline tfidf_logistic_regression" in metrics
    assert '"low"' in metrics
    link = str(artifacts["one-clean-report"].data)
    assert f"file://{root}/reports/one/clean.json" in link


@pytest.mark.slow  # Prefect makes its database first
def test_without_any_server_the_stages_do_not_wait_for_a_temporary_one_and_it_ends_with_a_run_that_is_killed(
    branches, tmp_path
):
    alone = {"PREFECT_API_URL": None, "PREFECT_HOME": str(tmp_path / "home")}
    line = toy.in_a_process(branches, **alone)
    out, _ = line.communicate(timeout=300)
    assert out.strip() == "{'ran': ['clean@one', 'collect@one', 'deploy@one']}"
    write_text(branches / "slow", "")
    write_text(branches / "raw-one.txt", "new\n")
    line = toy.in_a_process(branches, **alone)
    wait_until((branches / "pid").exists)
    wait_until(lambda: bool(servers_below(line.pid)))
    (server,) = servers_below(line.pid)
    wait_until(lambda: guards_of(server))
    line.kill()
    line.communicate()
    wait_until(lambda: not lives(server), seconds=30)


def servers_below(process: int) -> list[str]:
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(process)], capture_output=True, text=True, check=False
    )
    return [line.split()[0] for line in listed.stdout.splitlines() if "uvicorn" in line]


def guards_of(server: str) -> bool:
    listed = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True)
    return any(line.endswith(f"2>/dev/null {server}") for line in listed.stdout.splitlines())
