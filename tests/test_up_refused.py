"""`mill up` where something is amiss: it says what, and leaves nothing running."""

import json
import os
import socket
from pathlib import Path

import pytest

from flows.git import git
from flows.up import running
from tasks.shards import write_json, write_text
from tests.scheduled import make_repository, mill, write_params

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which nothing is started, since something is amiss each time."""
    return make_repository(tmp_path_factory.mktemp("quiet"))


def refused(root: Path, **env: str | None) -> str:
    """What `mill up` says where it does not start; and nothing is left of it."""
    done = mill(root, "up", **env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert running(root) is None
    assert git(root, "status", "--porcelain") == ""
    return done.stderr


def test_a_named_server_that_does_not_answer_is_said_with_the_way_out(quiet):
    told = refused(quiet, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert "PREFECT_API_URL is http://127.0.0.1:9/api, and nothing that is a Prefect server answers there" in told
    assert "PREFECT_API_URL= mill up" in told


def test_what_the_process_of_the_schedules_cannot_do_is_said(quiet, prefect_api):
    write_params(quiet, notify="$MILL_TEST_NOWHERE")
    git(quiet, "commit", "-qam", "notify")
    told = refused(quiet, PREFECT_API_URL=prefect_api, MILL_TEST_NOWHERE=None)
    assert "flows.notify is $MILL_TEST_NOWHERE, and the environment has no MILL_TEST_NOWHERE" in told
    write_params(quiet)
    git(quiet, "commit", "-qam", "no notify")


@pytest.mark.parametrize(
    "section",
    ["server", pytest.param("serve", marks=pytest.mark.long), pytest.param("evidently", marks=pytest.mark.long)],
)
def test_a_port_that_is_taken_is_said_with_who_has_it(quiet, section):
    params = json.loads((quiet / "params.yaml").read_text())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flows = params["flows"]
        write_json(
            quiet / "params.yaml", {**params, "flows": {**flows, section: {**(flows[section] or {}), "port": port}}}
        )
        git(quiet, "commit", "-qam", "a taken port")
        told = refused(quiet)
    assert f"cannot listen on 127.0.0.1:{port} (flows.{section}.port)" in told
    assert f"There is process {os.getpid()} (" in told
    write_json(quiet / "params.yaml", params)
    git(quiet, "commit", "-qam", "a free one")


def test_a_wrong_cron_line_is_said_before_anything_is_started(quiet):
    write_params(quiet, cron="every night")
    git(quiet, "commit", "-qam", "a wrong cron line")
    assert "flows.models.films.retrain.cron is 'every night'. Expected five fields" in refused(quiet)
    write_params(quiet)
    git(quiet, "commit", "-qam", "a right one")


def test_without_a_git_repository_it_says_so(tmp_path):
    write_text(tmp_path / "place/params.yaml", "models: {}\n")
    done = mill(tmp_path / "place", "up")
    assert done.returncode == 1
    assert "is no Git repository. `git init`, and commit what there is." in done.stderr
