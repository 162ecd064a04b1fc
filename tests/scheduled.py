"""A repository whose models have schedules. Its line takes no time, and its release is refused, so nothing is gated."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows.git import git
from tasks.release import seal
from tasks.shards import write_json, write_text
from tests.conftest import REPOSITORY, tiny_params

MAKE = """
import json, os, shutil, sys, time
from pathlib import Path
model = sys.argv[1]
started = Path("RUNS") / f"{time.time_ns()}"
started.write_text(str(os.getpid()))
time.sleep(float(Path("RUNS/seconds").read_text()))
release = Path(f"models/{model}/release")
shutil.rmtree(release, ignore_errors=True)
shutil.copytree("RELEASE", release)
Path(f"reports/{model}").mkdir(parents=True, exist_ok=True)
Path(f"reports/{model}/deploy.json").write_text(json.dumps({"model": model}))
"""

STAGES = """stages:
  deploy:
    foreach: ${models}
    do:
      cmd: python make.py ${key}
      deps: ["${item.pin}", make.py]
      outs:
        - models/${key}/release
        - reports/${key}/deploy.json: {cache: false}
"""

RETRAIN = {"cron": "0 3 1 1 *", "timezone": "UTC", "silence_hours": 9000, "cool_down_hours": 20, "max_a_week": 7}


REFUSED = {
    "verdict": "refused",
    "reasons": ["accuracy is below its floor."],
    "headline": "accuracy",
    "metrics": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}},
}


def make_repository(folder: Path, models: tuple[str, ...] = ("films",)) -> Path:
    """The repository, below `folder`; beside it `runs` has a file for each time that the line has run."""
    release, root = folder / "release", folder / "repository"
    write_text(release / "weights", "none")
    seal(release, REFUSED)
    root.mkdir()
    (folder / "runs").mkdir()
    write_text(folder / "runs/seconds", "0")
    git(root, "init", "-q", "-b", "main")
    git(root, "config", "user.name", "t")
    git(root, "config", "user.email", "t@localhost")
    write_params(root, models)
    write_text(root / "dvc.yaml", STAGES)
    write_text(root / "make.py", MAKE.replace("RELEASE", str(release)).replace("RUNS", str(folder / "runs")))
    write_text(root / ".gitignore", "/.mill/\n/models/\n/incoming/\n*.html\nmeasured/\n")
    write_text(root / ".dvc/config", "[core]\n    analytics = false\n    autostage = false\n")
    write_text(root / ".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    for model in models:
        arrive(root, model, 1)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "all")
    return root


def write_params(root: Path, models: tuple[str, ...] = ("films",), notify: str | None = None, **retrain: Any) -> None:
    """params.yaml with free ports and one schedule for all; `retrain` replaces what it says."""
    from ruamel.yaml import YAML

    shipped = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())["flows"]
    gate = shipped["models"]["reviews"]["gate"]
    lines = {}
    for model in models:
        params = tiny_params().model_dump(mode="json", by_alias=True, serialize_as_any=True)
        params["collect"] |= {"path": f"incoming/{model}/*.csv", "format": "csv"}
        lines[model] = {**params, "pin": f"data/{model}/source.json"}
    before = json.loads((root / "params.yaml").read_text())["flows"] if (root / "params.yaml").exists() else None
    flows = {
        **shipped,
        "server": before["server"] if before else {**shipped["server"], "port": free_port()},
        "serve": before["serve"] if before else {**shipped["serve"], "port": free_port()},
        "evidently": None,
        "notify": notify,
        "models": {model: {"gate": gate, "retrain": {**RETRAIN, **retrain}} for model in models},
    }
    write_json(root / "params.yaml", {"models": lines, "flows": flows})


def arrive(root: Path, model: str, number: int) -> None:
    """Something new to learn."""
    write_text(root / f"incoming/{model}/{number}.csv", f"id,text\n{number},new\n")


def line_runs(root: Path) -> list[int]:
    """The processes of the line's stage, one for each time that it has run."""
    return [int(file.read_text()) for file in sorted((root.parent / "runs").glob("[0-9]*"))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mill(root: Path, *arguments: str, **env: str | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=root,
        env=around(root, **env),
        capture_output=True,
        text=True,
        timeout=300,
    )


def around(root: Path, **env: str | None) -> dict[str, str]:
    """An environment with a home of its own, whose Prefect profile names a server that is not there."""
    home = root.parent / "home"
    if not home.exists():
        write_text(
            home / ".prefect/profiles.toml", 'active = "work"\n[profiles.work]\nPREFECT_API_URL = "http://h/api"\n'
        )
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    own |= {"HOME": str(home), **env}
    return {name: value for name, value in own.items() if value is not None}
