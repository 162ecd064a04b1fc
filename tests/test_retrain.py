"""Retraining on real Git, DVC, Prefect and registry; the line of the toy project is one cheap stage."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows import registry
from flows.git import LIVE, git, tip
from flows.retrain import retrain
from tasks.release import MANIFEST, seal
from tasks.shards import read_json, write_json, write_text
from tests.conftest import REPOSITORY, Line, tiny_params
from tests.test_worktree import dvc, fingerprint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# As many files as are pinned, that release; the fourth pin is the one that fails.
MAKE = """
import json, shutil, sys
from pathlib import Path
model = sys.argv[1]
count = len(json.loads(Path(f"data/{model}/source.json").read_text())["partitions"])
print("making release", count, flush=True)
if count == 4:
    sys.exit("no such release")
release = Path(f"models/{model}/release")
shutil.rmtree(release, ignore_errors=True)
shutil.copytree(f"RELEASES/{count}", release)
Path(f"reports/{model}").mkdir(parents=True, exist_ok=True)
Path(f"reports/{model}/deploy.json").write_text(json.dumps({"count": count}))
Path(f"reports/{model}/deploy.html").write_text("a page")
"""

STAGES = """stages:
  deploy:
    foreach: ${models}
    do:
      cmd: python make.py ${key}
      deps: ["${item.pin}", make.py, "data/${key}/admitted.jsonl"]
      outs:
        - models/${key}/release
        - reports/${key}/deploy.json: {cache: false}
"""


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory) -> Iterator[str]:
    """A Prefect server of the tests' own."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/api"
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1).close()
            break
        except OSError:
            time.sleep(0.3)
    else:
        raise AssertionError((home / "server.log").read_text())
    yield url
    server.terminate()
    server.wait(30)


@pytest.fixture(autouse=True)
def _served(prefect_api, tmp_path, monkeypatch) -> Iterator[None]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        yield


@pytest.fixture(scope="session")
def toy(tmp_path_factory, released: Line) -> Path:
    """A repository of two models whose line packs one of three releases, by how many files its source has."""
    folder = tmp_path_factory.mktemp("toy")
    for count in (1, 2, 3):
        release = folder / "releases" / str(count)
        shutil.copytree(released.paths.release, release)
        facts = {key: value for key, value in read_json(release / MANIFEST).items() if key not in ("files", "version")}
        verdict = {"verdict": "refused", "reasons": ["accuracy is below its floor."]} if count == 3 else {}
        seal(release, {**facts, **verdict, "count": count})
    root = folder / "repository"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    git(root, "config", "user.name", "t")
    git(root, "config", "user.email", "t@localhost")
    write_params(root)
    write_text(root / "dvc.yaml", STAGES)
    write_text(root / "make.py", MAKE.replace("RELEASES", str(folder / "releases")))
    write_text(root / ".gitignore", "/.mill/\n/models/\n/incoming/\n*.html\nmeasured/\n")
    write_text(root / ".dvc/config", "[core]\n    analytics = false\n    autostage = false\n")
    write_text(root / ".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    for model in ("films", "books"):
        arrive(root, model, 1)
        write_text(root / f"data/{model}/admitted.jsonl", "\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "all")
    return root


def write_params(root: Path) -> None:
    from ruamel.yaml import YAML

    shipped = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())["flows"]
    gate = {"gate": shipped["models"]["reviews"]["gate"], "retrain": None}
    models = {}
    for model in ("films", "books"):
        params = tiny_params().model_dump(mode="json", by_alias=True, serialize_as_any=True)
        params["collect"] |= {"path": f"incoming/{model}/*.csv", "format": "csv"}
        models[model] = {**params, "pin": f"data/{model}/source.json"}
    flows = {**shipped, "models": {"films": gate, "books": gate}}
    write_json(root / "params.yaml", {"models": models, "flows": flows})


def arrive(root: Path, model: str, number: int) -> None:
    write_text(root / f"incoming/{model}/{number}.csv", f"id,text\n{number},new\n")


@dataclass
class Gate:
    """Stands in for the statistics, which have tests of their own: says what it is told, and counts."""

    verdict: str = "promote"
    uses: int = 0

    def __call__(self, root: Path, worktree: Path, model: str) -> dict[str, Any]:
        self.uses += 1
        found = {"verdict": self.verdict, "sentence": "It is better.", "alpha_spent": 0.001, "test_set": "t"}
        write_json(worktree / f"reports/{model}/gate.json", found)
        write_text(worktree / f"reports/{model}/gate.html", "a page")
        return found


@pytest.fixture
def gate(monkeypatch) -> Gate:
    found = Gate()
    monkeypatch.setattr("flows.gating.gate_release", found)
    return found


@pytest.fixture
def repository(toy, tmp_path) -> Path:
    """A copy of the toy repository of one's own."""
    return Path(shutil.copytree(toy, tmp_path / "repository", symlinks=True))


def champion(root: Path, model: str = "films") -> str | None:
    version = registry.champion(root, model)
    return version.tag if version else None


def branches(root: Path) -> list[str]:
    return git(root, "for-each-ref", "--format=%(refname:short)", "refs/heads/").splitlines()


def test_the_first_version_lands_on_live_with_tag_decision_and_reports(repository, gate):
    write_text(repository / "notes.txt", "mine")
    before = fingerprint(repository)
    result = retrain(repository, "films", why="by hand")
    assert (result.verdict, result.version, result.exit_code) == ("promoted", "films@v1.0.0", 0)
    assert "films@v1.0.0 is the champion now" in result.sentence
    assert fingerprint(repository) == before
    assert champion(repository) == "films@v1.0.0"
    assert tip(repository, LIVE) == result.commit == registry.champion(repository, "films").commit
    changed = git(repository, "diff", "--name-only", "main", LIVE).splitlines()
    assert changed == ["data/films/source.json", "dvc.lock", "reports/films/deploy.json", "reports/films/gate.json"]
    message = git(repository, "log", "-1", "--format=%B", LIVE)
    assert "It is better." in message
    assert "Why: by hand" in message
    decision = registry.decisions(repository, "films")[-1]
    assert (decision["verdict"], decision["commit"], decision["champion"]) == ("promote", result.commit, None)
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert list((repository / ".mill/retrain/reports/films").glob("*/gate.html"))
    assert "modified" not in dvc(repository, "status", "-q")
