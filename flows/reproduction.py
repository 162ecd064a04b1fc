"""A commit's line, run again from nothing: a clean clone, its own packages, raw data by its hash, and every stage.

Raw is what no stage makes, and what `collect` made where it read something that is not in the commit: sources move on.
"""

import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.child import run
from flows.git import git, tip
from flows.merge import LOCK, model_of_stage
from flows.outputs import bring
from tasks.errors import MillError
from tasks.params import read_yaml
from tasks.paths import Paths
from tasks.shards import read_json

if TYPE_CHECKING:
    from dvc.stage import Stage

REQUIREMENTS = "requirements.lock"

_PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?==([^\s;#]+)")

# What a shell or an editor says of its own environment, and would lead out of the one that is verified.
_OF_ANOTHER = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "DVC_ROOT", "DVCLIVE_RESUME", "GIT_DIR", "GIT_WORK_TREE")


class VerifyError(MillError):
    """A version cannot be made again here, whatever would come of it."""


@dataclass(frozen=True)
class Out:
    """A file or folder that a stage makes. `oid` is its hash; reports are in Git, and not in DVC's cache."""

    path: str
    oid: str | None
    is_cached: bool


@dataclass(frozen=True)
class Step:
    """A stage of the line. `taken` says why its outputs are raw data here; empty where it is run."""

    name: str
    address: str
    outs: tuple[Out, ...]
    reads: frozenset[str]  # the names of the stages right before it
    taken: str


def clone(home: Path, commit: str, folder: Path) -> None:
    """A repository of its own at the commit, that shares neither DVC's cache nor its state with any other."""
    from dvc.config import Config

    git(home, "clone", "--quiet", "--no-checkout", str(home), str(folder))
    if tip(folder, commit) is None:  # on no branch, and without a tag
        git(folder, "fetch", "--quiet", str(home), commit)
    git(folder, "checkout", "--quiet", "--detach", commit)
    with Config(dvc_dir=str(folder / ".dvc"), validate=False).edit("local") as config:
        config["core"] = {"site_cache_dir": str(folder / ".dvc" / "tmp" / "site"), "autostage": False}
        config["cache"] = {"dir": str(folder / ".dvc" / "cache")}


def steps(folder: Path, model: str) -> list[Step]:
    """A model's stages and all that they stand on, in an order in which they can run. Raises VerifyError for none."""
    import networkx as nx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    models = list(_models(folder))
    try:
        with Repo(str(folder)) as repo:
            graph = repo.index.graph
            own = [stage for stage in graph if model_of_stage(_name(stage, folder), models) == model]
            needed = graph.subgraph({*own, *(one for stage in own for one in nx.descendants(graph, stage))})
            order = nx.lexicographical_topological_sort(needed.reverse(), key=lambda stage: _name(stage, folder))
            found = [_step(stage, folder, model, [_name(one, folder) for one in graph[stage]]) for stage in order]
    except DvcException as error:
        raise VerifyError(f"DVC cannot read the line of the commit: {error}") from None
    if not any(not step.taken for step in found):
        raise VerifyError(f"The commit's dvc.yaml has no stage of {model} to run.")
    return found


def prepare(home: Path, commit: str, folder: Path, line: list[Step]) -> None:
    """Put the raw data in its place, and take away all that the stages are to make, with what says that it is made."""
    for step in line:
        for out in step.outs:
            place = folder / out.path
            if not step.taken:
                shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
            elif out.is_cached:
                bring(home, commit, out.path, place if str(out.oid).endswith(".dir") else place.parent)
    for lock in folder.rglob(LOCK):
        lock.unlink()


def run_again(folder: Path, line: list[Step], python: Path, say: Callable[[str], None]) -> tuple[int, str]:
    """Run the stages one after the other; the exit code, and the end of what was printed."""
    options = ("--force", "--no-run-cache", "--no-commit", "--single-item")
    addresses = [step.address for step in line if not step.taken]
    command = [str(python), "-m", "dvc", "repro", *options, *addresses]
    return run(folder, command, env=environment(python), say=say)


def made(folder: Path, model: str) -> dict[str, str | None]:
    """The hashes of what the stages that ran have made, by path."""
    return {out.path: out.oid for step in steps(folder, model) for out in step.outs}


def install(folder: Path, place: Path, say: Callable[[str], None]) -> Path:
    """A fresh environment with the packages of the commit's lock; its Python. Raises VerifyError with pip's words."""
    lock = _lock(folder)
    python = place / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    commands = [[sys.executable, "-m", "venv", str(place)], [*pip, "--requirement", str(lock)]]
    if (folder / "pyproject.toml").exists():
        commands.append([*pip, "--no-deps", "--editable", "."])
    for command in commands:
        code, said = run(folder, command, env=environment(Path(sys.executable)), say=say)
        if code:
            raise VerifyError(
                f"The packages of {REQUIREMENTS} cannot be installed here. It ended with:\n{said.strip()}"
            )
    return python


def check_here(folder: Path) -> Path:
    """The Python of this environment. Raises VerifyError where its packages are not the ones of the commit's lock."""
    wrong = []
    for line in _lock(folder).read_text(encoding="utf-8").splitlines():
        if found := _PINNED.match(line.strip()):
            name, wanted = found.groups()
            have = _version_here(name)
            # A build for the processor alone, 2.13.0+cpu, is the same version.
            if have is None or have.partition("+")[0] != wanted.partition("+")[0]:
                wrong.append(f"{name} is {have or 'not there'}, and not {wanted}")
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise VerifyError(
            f"This environment is not the one of the commit's {REQUIREMENTS}: {'; '.join(wrong[:3])}{more}. Without "
            "--here a fresh one is made."
        )
    return Path(sys.executable)


def environment(python: Path) -> dict[str, str]:
    """The variables around, but for those that speak of another Python or repository, and with this Python first."""
    around = {name: value for name, value in os.environ.items() if name not in _OF_ANOTHER}
    path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**around, "PATH": path, "DVC_NO_ANALYTICS": "1"}


def _lock(folder: Path) -> Path:
    lock = folder / REQUIREMENTS
    if not lock.is_file():
        raise VerifyError(f"The commit has no {REQUIREMENTS}, so nobody knows which packages it was made with.")
    return lock


def _version_here(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _models(folder: Path) -> Mapping[str, Any]:
    found = read_yaml(folder / "params.yaml")
    models = found.get("models") if isinstance(found, dict) else None
    return models if isinstance(models, dict) else {}


def _name(stage: "Stage", folder: Path) -> str:
    """As the lock names it: train@reviews; a .dvc file by its path."""
    return str(getattr(stage, "name", None) or Path(stage.path).resolve().relative_to(folder.resolve()).as_posix())


def _step(stage: "Stage", folder: Path, model: str, reads: list[str]) -> Step:
    file, name = Path(stage.path).resolve().relative_to(folder.resolve()).as_posix(), _name(stage, folder)
    outs = tuple(
        Out(
            Path(out.fs_path).resolve().relative_to(folder.resolve()).as_posix(),
            str(out.hash_info.value) if out.hash_info else None,
            bool(out.use_cache),
        )
        for out in stage.outs
    )
    address = name if file in ("dvc.yaml", name) else f"{file}:{name}"
    return Step(name, address, outs, frozenset(reads), _why_taken(stage, name, folder, model))


def _why_taken(stage: "Stage", name: str, folder: Path, model: str) -> str:
    if not stage.cmd:
        return "raw data: no stage makes it"
    if stage.frozen:
        return "frozen: DVC does not run it"
    if name == f"collect@{model}":
        return _why_not_collected(folder, model)
    return ""


def _why_not_collected(folder: Path, model: str) -> str:
    """Why collect cannot be run from the commit alone; empty where it can."""
    params, paths = _models(folder).get(model) or {}, Paths(model, folder)
    # A package is in the lock; every other source that is pinned by a list stands outside of the commit.
    if Path(str(params.get("pin"))).name == paths.source_pin.name and params.get("source") != "package":
        return "raw data: its source is not in the commit, and may have moved on"
    if paths.feedback_pin.exists() and read_json(paths.feedback_pin).get("partitions"):
        return "raw data: it holds labels of the journal, which is not in the commit"
    return ""
