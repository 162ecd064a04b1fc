"""What a retrain would learn from, as one hash: the same again is nothing to learn, and spends no error rate."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.git import git
from flows.merge import LOCK, model_of_stage
from flows.params import flows_of
from tasks.params import load_model
from tasks.paths import Paths
from tasks.shards import sha256_of

_ALWAYS = ("tasks", "dvc.yaml", "requirements.lock")


def inputs_of(folder: Path, model: str) -> dict[str, Any]:
    """All that decides what the line of a model makes, and whether it is promoted; without the champion.

    `folder` is a worktree whose pin has been moved. What the line reads out of Git stands in the lock as dependencies
    that no stage makes, stages that people have added included.
    """
    paths, params_file = Paths(model, folder), folder / "params.yaml"
    params = load_model(model, params_file)
    read = {*_ALWAYS, *_read_by(folder / LOCK, model), params.pin}
    written = (paths.source_pin, paths.feedback_pin, paths.admissions, paths.forgotten)
    places = {path.relative_to(folder).as_posix(): path for path in written}
    places[params.pin] = folder / params.pin
    # By their bytes: what pull has just written is in no commit yet, and will be in the next one.
    pulled = {name: sha256_of(path) for name, path in sorted(places.items()) if path.is_file()}
    return {
        "files": {name: found for name in sorted(read - set(pulled)) if (found := _in_git(folder, name))},
        "pulled": pulled,
        "params": params.model_dump(mode="json", by_alias=True, serialize_as_any=True),
        "gate": flows_of(model, params_file).gate.model_dump(mode="json"),
    }


def digest(inputs: Mapping[str, Any], champion: str | None) -> str:
    """The inputs together with the release that they would have to beat."""
    canonical = json.dumps({**inputs, "champion": champion}, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read_by(lock: Path, model: str) -> set[str]:
    """What the stages of a model, and those of no model, depend on and no stage makes."""
    from dvc.utils.serialize import loads_yaml

    stages = (loads_yaml(lock.read_text(encoding="utf-8")) if lock.exists() else {}).get("stages", {})
    made = {out["path"] for stage in stages.values() for out in stage.get("outs", [])}
    own = [stage for name, stage in stages.items() if model_of_stage(name, [model]) in (model, None)]
    read = {dep["path"] for stage in own for dep in stage.get("deps", [])}
    return {path for path in read if not any(path == out or path.startswith(f"{out}/") for out in made)}


def _in_git(folder: Path, name: str) -> str:
    """The object of a file or folder in the commit, or of the .dvc file that stands for it; empty without."""
    for candidate in (name, f"{name}.dvc"):
        found = git(folder, "ls-tree", "HEAD", "--", candidate)
        if found:
            return found.split("\t")[0]
    return ""
