"""Retraining runs the code of `main`, whatever the person has checked out."""

import json
from pathlib import Path

import pytest

import flows
from flows.git import LIVE, git
from flows.params import load_flows
from flows.retrain import retrain
from tasks.errors import ParamsError
from tasks.shards import read_json, write_json, write_text
from tests.test_retrain import gate, repository, toy  # noqa: F401

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("served", "gate")]

# A later version of this code, which knows a parameter more.
PACKAGE = f"__path__.append({str(Path(flows.__file__).parent)!r})\n"
COMMAND = f"""
import importlib.util
import tasks.params

real = tasks.params.read_yaml

def read_yaml(path):
    found = real(path)
    assert found["flows"].pop("tomorrow") == 1
    return found

tasks.params.read_yaml = read_yaml
found = importlib.util.spec_from_file_location("flows.real", {str(Path(flows.__file__).parent / "cli.py")!r})
cli = importlib.util.module_from_spec(found)
found.loader.exec_module(cli)
main = cli.main
"""


def test_what_the_code_here_does_not_know_is_read_by_the_code_that_does(repository: Path) -> None:  # noqa: F811
    git(repository, "switch", "-qc", "older")
    git(repository, "switch", "-q", "main")
    params = read_json(repository / "params.yaml")
    write_json(repository / "params.yaml", {**params, "flows": {**params["flows"], "tomorrow": 1}})
    write_text(repository / "flows/__init__.py", PACKAGE)
    write_text(repository / "flows/cli.py", COMMAND)
    with pytest.raises(ParamsError, match="tomorrow"):
        load_flows(repository / "params.yaml")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "what comes")
    git(repository, "switch", "-q", "older")
    assert retrain(repository, "films").verdict == "promoted"
    assert retrain(repository, "films").verdict == "nothing"
    assert json.loads(git(repository, "show", f"{LIVE}:params.yaml"))["flows"]["tomorrow"] == 1


def test_a_main_that_is_older_than_the_code_here_is_said(repository: Path) -> None:  # noqa: F811
    older = COMMAND.replace("main = cli.main", "cli.cli_versions.app.registered_commands[:] = []\nmain = cli.main")
    write_text(repository / "flows/__init__.py", PACKAGE)
    write_text(repository / "flows/cli.py", older.replace('assert found["flows"].pop("tomorrow") == 1', "pass"))
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "what was")
    result = retrain(repository, "films")
    assert result.verdict == "failed"
    assert "the code of `main` is older than what is checked out here" in result.sentence


def test_a_gate_that_asks_for_no_metric_of_the_problem_is_said_before_anything_is_learned(
    repository: Path,  # noqa: F811
) -> None:
    params = read_json(repository / "params.yaml")
    params["flows"]["models"]["films"]["gate"]["metric"] = "acuracy"
    write_json(repository / "params.yaml", params)
    git(repository, "commit", "-qam", "a misspelt metric")
    result = retrain(repository, "films")
    assert result.verdict == "failed"
    assert "films: nothing can be learned as it stands." in result.sentence
    assert "acuracy" in result.sentence
    assert git(repository, "branch", "--list", "retrain/*") == ""
