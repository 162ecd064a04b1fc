"""A repository whose history has made releases, by a line of one cheap stage: what the registry's tests stand on."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.git import git
from flows.registry import Version, champion, record_decision, register
from tasks.release import MANIFEST, read_release, seal
from tasks.shards import read_json, write_json, write_text
from tests.conftest import REPOSITORY, Line, tiny_params

# Packs the release that the file `which` names, and reports it as `deploy` does.
MAKE = """
import json, shutil, sys
from pathlib import Path
model, release = sys.argv[1], Path("RELEASES") / Path("which").read_text().strip()
shutil.rmtree(f"models/{model}/release", ignore_errors=True)
shutil.copytree(release, f"models/{model}/release")
said = json.loads((release / "manifest.json").read_text())
headline = {"metric": said["headline"], **said["metrics"][said["headline"]]}
told = {"version": said["version"], "verdict": said["verdict"], "reasons": said["reasons"], "headline": headline}
Path(f"reports/{model}").mkdir(parents=True, exist_ok=True)
Path(f"reports/{model}/deploy.json").write_text(json.dumps(told))
"""

STAGES = """stages:
  deploy:
    foreach: ${models}
    do:
      cmd: python make.py ${key}
      deps: [make.py, which]
      outs:
        - models/${key}/release
        - reports/${key}/deploy.json: {cache: false}
"""


@dataclass(frozen=True)
class History:
    """The repository, and for each of its commits the release that it made: the third was refused."""

    root: Path
    packed: Path  # the releases by their numbers
    commits: list[str]
    releases: list[str]

    def version(self, number: int, why: str = "") -> Version:
        """Register the release of that number, from 1."""
        release = read_release(self.packed / str(number))
        return register(self.root, "films", self.commits[number - 1], release=release, why=why)

    def another(self, number: int) -> Version:
        """Make one more release, with a file of its own, and register it."""
        packed = self.root.parent / f"another-{number}"
        pack(self.packed / "1", packed, number)
        commit = make_release(self.root, str(packed))
        return register(self.root, "films", commit, release=read_release(packed), why="")

    def decide(self, number: int, verdict: str) -> None:
        """Record what a gate would have said of it beside the champion that there is now."""
        now = champion(self.root, "films")
        said = {"model": "films", "verdict": verdict, "sentence": f"{verdict}, says the gate."}
        about = {"challenger": self.releases[number - 1], "champion": now.tag if now else None}
        record_decision(self.root, self.commits[number - 1], {**said, **about})


def make_history(folder: Path, released: Line) -> History:
    """Commit three releases of the model films on main."""
    for number in (1, 2, 3):
        verdict = {"verdict": "refused", "reasons": ["accuracy is below its floor."]} if number == 3 else {}
        pack(released.paths.release, folder / "releases" / str(number), number, **verdict)
    root = folder / "repository"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    git(root, "config", "user.name", "t")
    git(root, "config", "user.email", "t@localhost")
    write_params(root)
    write_text(root / "dvc.yaml", STAGES)
    write_text(root / "make.py", MAKE.replace("RELEASES", str(folder / "releases")))
    write_text(root / ".gitignore", "/.mill/\n/models/\n")
    write_text(root / ".dvc/config", "[core]\n    analytics = false\n    autostage = false\n")
    write_text(root / ".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    commits = [make_release(root, number) for number in (1, 2, 3)]
    packed = folder / "releases"
    return History(root, packed, commits, [read_release(packed / str(number)).version for number in (1, 2, 3)])


def pack(release: Path, folder: Path, number: int, **told: Any) -> None:
    """Seal a copy of a release that has one file more."""
    shutil.copytree(release, folder)
    write_text(folder / "number.txt", f"{number}" * 100)
    facts = {key: value for key, value in read_json(folder / MANIFEST).items() if key not in ("files", "version")}
    seal(folder, {**facts, **told, "model": "films", "count": number})


def make_release(root: Path, which: int | str) -> str:
    """Let the line make one of the releases, and commit that."""
    write_text(root / "which", f"{which}\n")
    dvc(root, "repro", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "--allow-empty", "-m", f"release {which}")
    return git(root, "rev-parse", "HEAD")


def write_params(root: Path) -> None:
    """One model, films, with the flows of the shipped one. JSON is YAML."""
    from ruamel.yaml import YAML

    shipped: dict[str, Any] = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())["flows"]
    # What a machine that has other work is slow at is not what these tests are about.
    gate = {"gate": {**shipped["models"]["reviews"]["gate"], "max_latency_ms": 10_000}, "retrain": None}
    params = tiny_params().model_dump(mode="json", by_alias=True, serialize_as_any=True)
    write_json(root / "params.yaml", {"models": {"films": params}, "flows": {**shipped, "models": {"films": gate}}})


def dvc(root: Path, *arguments: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["dvc", *arguments], cwd=root, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
