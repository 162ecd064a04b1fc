"""What a retrain would learn from, as one hash: the same again is nothing to learn, and spends no error rate.

DVC says which stages a model's line is made of, in whichever pipeline file they stand, and what each of them reads.
What no stage makes comes from outside: from Git, from the pins, or from elsewhere. dvc.lock is no input: it says what
came of the inputs before.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from flows.git import git
from flows.params import flows_of
from flows.stages import LineError, address_of, line_of
from tasks.params import load_model
from tasks.paths import Paths
from tasks.shards import sha256_of, write_text

if TYPE_CHECKING:
    from dvc.dependency import Dependency
    from dvc.output import Output
    from dvc.stage import Stage

INPUTS = Path(".mill") / "inputs.json"

_ALWAYS = ("tasks", "requirements.lock")


def inputs_of(folder: Path, model: str) -> dict[str, Any]:
    """All that decides what the line of a model makes, and whether it is promoted; without the champion.

    `folder` is a worktree whose pin has been moved. What a stage fetches without a dependency that says so is not
    seen. Raises LineError where DVC cannot read the pipelines, or cannot look at what one of them reads.
    """
    paths, params_file = Paths(model, folder), folder / "params.yaml"
    params = load_model(model, params_file)
    written = (paths.source_pin, paths.feedback_pin, paths.admissions, paths.forgotten)
    places = {path.relative_to(folder).as_posix(): path for path in written}
    places[params.pin] = folder / params.pin
    with line_of(folder, model) as (repo, stages):
        made = frozenset(_place(out, repo.root_dir) for out in repo.index.outs)
        # By their bytes: what pull has just written is in no commit yet, and will be in the next one. Data that DVC
        # puts there is there only once it is checked out; its .dvc file says what it is.
        own = (name for name, path in sorted(places.items()) if path.is_file() and not _is_made(name, made))
        pulled = {name: sha256_of(places[name]) for name in own}
        outside = _Outside(repo.root_dir, _committed(folder), made, pulled)
        line = {address: _of_stage(stage, outside) for address, stage in sorted(stages.items())}
    return {
        "files": {name: found for always in _ALWAYS for name, found in outside.in_git(always)},
        "line": line,
        "pulled": pulled,
        "params": params.model_dump(mode="json", by_alias=True, serialize_as_any=True),
        "gate": flows_of(model, params_file).gate.model_dump(mode="json"),
    }


def note_inputs(folder: Path, model: str) -> None:
    """Leave the inputs of a worktree for whoever runs the line there, whose code may be another."""
    write_text(folder / INPUTS, json.dumps(inputs_of(folder, model), default=str))


def digest(inputs: Mapping[str, Any], champion: str | None) -> str:
    """The inputs together with the release that they would have to beat."""
    content = {**inputs, "champion": champion}
    # Parameters of people's own stages may be dates.
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class _Outside:
    """What the stages find there and none of them makes."""

    root: str
    committed: Mapping[str, str]  # the object of each file in Git
    made: Collection[str]
    pulled: Collection[str]

    def in_git(self, place: str) -> Iterator[tuple[str, str]]:
        """The files that a place is or holds, without those that stages make or pull writes."""
        for name, found in self.committed.items():
            if _is_within(name, place) and not self.is_known(name):
                yield name, found

    def is_known(self, place: str) -> bool:
        """Whether what is there is told elsewhere: by the stage that makes it, or as a pin."""
        return place in self.pulled or _is_made(place, self.made)


def _of_stage(stage: "Stage", outside: _Outside) -> dict[str, Any]:
    """What decides about a stage: what it is, as its file and all variables in it say, and what it reads."""
    if stage.frozen or not (stage.cmd or stage.deps):
        # It is taken as it is: all that counts is what it has made.
        taken = {_place(out, outside.root): out.hash_info.value if out.hash_info else None for out in stage.outs}
        return {"taken": taken}
    return {
        "cmd": stage.cmd,
        "in": os.path.relpath(stage.wdir, outside.root),
        "makes": {_place(out, outside.root): {"persist": bool(out.persist)} for out in stage.outs},
        "params": {dep.def_path: dep.read_params() for dep in stage.deps if _is_params(dep)},
        "reads": {
            dep.def_path: found
            for dep in stage.deps
            if not _is_params(dep) and (found := _read(dep, address_of(stage), outside)) is not None
        },
    }


def _is_params(dep: "Dependency") -> bool:
    from dvc.dependency import ParamsDependency

    return isinstance(dep, ParamsDependency)


def _read(dep: "Dependency", address: str, outside: _Outside) -> Any:
    """What a dependency holds; None of what another stage makes, or pull pins."""
    place = _place(dep, outside.root)
    if dep.protocol == "local":
        if outside.is_known(place):
            return None
        if found := dict(outside.in_git(place)):
            return found
        if not dep.exists:
            return "nothing"
    try:
        return str(dep.get_hash().value)
    except Exception as error:  # what a storage's own library raises where it is away or refuses
        raise LineError(f"{address} reads {dep.def_path}, which cannot be looked at: {error}") from error


def _place(of: "Output", root: str) -> str:
    return Path(os.path.relpath(of.fs_path, root)).as_posix() if of.protocol == "local" else str(of)


def _is_made(place: str, made: Collection[str]) -> bool:
    return place in made or any(str(parent) in made for parent in PurePosixPath(place).parents)


def _is_within(name: str, place: str) -> bool:
    return place in (name, ".") or name.startswith(f"{place}/")


def _committed(folder: Path) -> dict[str, str]:
    """The mode and the object of each file in the commit."""
    lines = git(folder, "ls-tree", "-r", "-z", "--full-tree", "HEAD").rstrip("\0").split("\0")
    return {name: facts for facts, _, name in (line.partition("\t") for line in lines)}
