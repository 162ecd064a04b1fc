"""Two branches made one by model, in the object store alone: no working tree and no index is touched.

What the line made (dvc.lock, reports/<model>/*.json) and what pull made (data/<model>/source.json, feedback.json) is
never merged line by line: a lock half from one run and half from another describes neither. For each model the side
that changed it since the branches parted is taken, whole. Where both did, it is live's: its rows are the newer ones,
and may be gone from their source by now. Where main's parameters or code are newer the stages are stale then, and DVC
makes them again or takes them from its run cache. Parameters and code merge as Git merges them; a conflict there is a
person's to solve.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from flows.git import GitError, attempt, git, tip

LOCK = "dvc.lock"
PARAMS = "params.yaml"

# What pull writes for each model, and which keys of its parameters say what that is a pin of.
_PINS = {"source.json": ("source", "pin", "collect"), "feedback.json": ("feedback",)}

# A file in a tree of Git: its mode and its object's name.
Blob = tuple[str, str]


class MergeConflict(GitError):
    """Both branches changed something that only a person can bring together."""

    def __init__(self, files: list[str], live: str, other: str, then: str = "") -> None:
        self.files = files
        names = ", ".join(files)
        super().__init__(
            f"{other} and {live} have both changed {names}, and differently. "
            f"A person has to say what holds, on {other}:\n"
            f"  git switch {other} && git merge --no-commit {live}\n"
            f"  git checkout {live} -- {LOCK} reports    # the line's own files; mend {names} by hand\n"
            f"  git add {' '.join(files)} && git commit{then}"
        )


@dataclass(frozen=True)
class Side:
    """One commit: its files, and the locks in it as data."""

    files: Mapping[str, Blob]
    locks: Mapping[str, Mapping[str, Any]]

    def made_for(self, model: str, models: set[str]) -> tuple[Any, ...]:
        """All that the line made for a model."""
        entries = {
            (path, name): entry
            for path, lock in self.locks.items()
            for name, entry in lock.get("stages", {}).items()
            if model_of_stage(name, models) == model
        }
        return entries, {path: blob for path, blob in self.files.items() if _model_of_report(path) == model}


def merge_by_model(root: Path, live: str, other: str, message: str) -> str:
    """The commit that holds both: one of the two where it holds the other, else a new merge, `live` its first parent.

    No branch is moved. Raises MergeConflict where both changed the same of what people write.
    """
    ours, theirs = tip(root, live), tip(root, other)
    if ours is None or theirs is None:
        raise GitError(f"There is no commit called {live if ours is None else other} in {root.resolve()}.")
    base = attempt(root, "merge-base", ours, theirs).stdout.strip()
    if not base:
        raise GitError(f"{live} and {other} have no commit in common, so nothing says what each has changed.")
    if base == theirs:
        return ours
    if base == ours:
        return theirs
    tree, conflicts = _merged_by_git(root, ours, theirs)
    left = sorted(path for path in conflicts if not is_owned(path))
    if left:
        raise MergeConflict(left, live, other)
    changes = _by_model(root, *(_side(root, commit) for commit in (base, ours, theirs)))
    tree = _with(root, tree, changes)
    return git(root, "commit-tree", tree, "-p", ours, "-p", theirs, stdin=message)


def is_owned(path: str) -> bool:
    """Whether the merge by model decides about a file."""
    return PurePosixPath(path).name == LOCK or _model_of_report(path) is not None or _is_pin(path)


def model_of_stage(name: str, models: Iterable[str]) -> str | None:
    """The model of a lock's entry: clean@reviews, and train@reviews-3 of a matrix. None for a stage of no model."""
    _, at, key = name.partition("@")
    fitting = [model for model in models if key == model or key.startswith(f"{model}-")]
    return (max(fitting, key=len) if fitting else key) if at else None


def _model_of_report(path: str) -> str | None:
    parts = path.split("/")
    return parts[1] if len(parts) > 2 and parts[0] == "reports" and path.endswith(".json") else None


def _is_pin(path: str) -> bool:
    parts = path.split("/")
    return len(parts) == 3 and parts[0] == "data" and parts[2] in _PINS


def _merged_by_git(root: Path, ours: str, theirs: str) -> tuple[str, list[str]]:
    """Git's own merge: a tree, and which files are in conflict."""
    done = attempt(root, "merge-tree", "--write-tree", "-z", "--name-only", "--no-messages", ours, theirs)
    if done.returncode not in (0, 1):
        said = done.stderr.strip().splitlines()
        raise GitError(f"git merge-tree failed: {said[0] if said else ''} Git 2.38 or newer is needed.")
    tree, *conflicts = done.stdout.rstrip("\0").split("\0")
    return tree, conflicts


def _side(root: Path, commit: str) -> Side:
    from dvc.utils.serialize import loads_yaml

    files = {}
    for line in git(root, "ls-tree", "-r", "-z", commit).rstrip("\0").split("\0"):
        facts, _, path = line.partition("\t")
        mode, _, name = facts.split(" ")
        if is_owned(path) or path == PARAMS:
            files[path] = (mode, name)
    locks = {
        path: loads_yaml(_text(root, blob)) or {} for path, blob in files.items() if PurePosixPath(path).name == LOCK
    }
    return Side(files, locks)


def _text(root: Path, blob: Blob) -> str:
    return attempt(root, "cat-file", "blob", blob[1]).stdout


def _by_model(root: Path, base: Side, live: Side, other: Side) -> dict[str, Blob | None]:
    """What each owned file becomes; None where it goes."""
    models = set().union(*(_models(root, side) for side in (base, live, other)))
    takes_live: dict[str | None, bool] = {}

    def from_live(model: str | None) -> bool:
        if model not in takes_live:
            made = [side.made_for(model or "", models) for side in (base, live, other)]
            is_gone = model in _params(root, base) and model not in _params(root, other)
            takes_live[model] = made[1] != made[0] and not is_gone
        return takes_live[model]

    changes: dict[str, Blob | None] = {}
    for path in sorted({*base.files, *live.files, *other.files} - {PARAMS}):
        found = [side.files.get(path) for side in (base, live, other)]
        if PurePosixPath(path).name == LOCK:
            changes[path] = _merge_lock(root, path, (base, live, other), models, from_live)
        elif _is_pin(path):
            moved = _reads_elsewhere(root, path, base, other)
            changes[path] = found[2] if found[1] == found[0] or (moved and found[2] != found[0]) else found[1]
        else:
            changes[path] = found[1] if from_live(_model_of_report(path)) else found[2]
    return changes


def _models(root: Path, side: Side) -> set[str]:
    """The models of a commit's params.yaml, and those with reports."""
    named = {model for path in side.files if (model := _model_of_report(path)) is not None}
    return named | set(_params(root, side))


def _params(root: Path, side: Side) -> Mapping[str, Any]:
    from dvc.utils.serialize import loads_yaml
    from ruamel.yaml.error import YAMLError

    try:
        models = loads_yaml(_text(root, side.files[PARAMS]))["models"]
    except (KeyError, TypeError, YAMLError):
        return {}
    return models if isinstance(models, Mapping) else {}


def _reads_elsewhere(root: Path, pin: str, base: Side, other: Side) -> bool:
    """Whether `other` gave the model another source: a pin of the former one says nothing about it."""
    _, model, name = pin.split("/")
    before, after = (_params(root, side).get(model) or {} for side in (base, other))
    return any(before.get(key) != after.get(key) for key in _PINS[name])


def _merge_lock(
    root: Path, path: str, sides: tuple[Side, Side, Side], models: set[str], from_live: Callable[[str | None], bool]
) -> Blob | None:
    from dvc.utils.serialize import dumps_yaml

    base, live, other = (side.locks.get(path) for side in sides)
    if live is None or other is None:
        kept = sides[2] if live == base else sides[1]
        return kept.files.get(path)
    merged = {**live, "stages": {}}
    for key in {**other, **live}:
        if key != "stages":
            merged[key] = _pick((base or {}).get(key), live.get(key), other.get(key))
    before, ours, theirs = (lock.get("stages", {}) for lock in (base or {}, live, other))
    for name in {**ours, **theirs}:
        model = model_of_stage(name, models)
        if model is None:
            # A stage over all models, as the list of code: it says what main's files are.
            entry = _pick(before.get(name), theirs.get(name), ours.get(name))
        else:
            entry = ours.get(name) if from_live(model) else theirs.get(name)
        if entry is not None:
            merged["stages"][name] = entry
    for side in sides[1:]:
        if side.locks[path] == merged and list(side.locks[path].get("stages", {})) == list(merged["stages"]):
            return side.files[path]  # its very bytes
    text = dumps_yaml({key: value for key, value in merged.items() if value is not None})
    return sides[1].files[path][0], git(root, "hash-object", "-w", "--stdin", stdin=text)


def _pick(base: Any, preferred: Any, other: Any) -> Any:
    """The side that changed since the base; the preferred one where both did."""
    return other if preferred == base else preferred


def _with(root: Path, tree: str, changes: Mapping[str, Blob | None]) -> str:
    """The tree with these files in it, by an index of its own."""
    lines = [
        f"{blob[0]} {blob[1]}\t{path}" if blob else f"0 {'0' * 40}\t{path}" for path, blob in sorted(changes.items())
    ]
    with tempfile.TemporaryDirectory() as folder:
        env = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git(root, "read-tree", tree, env=env)
        git(root, "update-index", "-z", "--index-info", stdin="\0".join([*lines, ""]), env=env)
        return git(root, "write-tree", env=env)
