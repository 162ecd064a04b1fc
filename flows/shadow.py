"""`.mill/shadow.json`: which challenger gets a copy of what a model is asked, where flows.serve.shadow asks for one.

It is the newest that was decided on since the champion, was not refused by its own floors, and was not promoted. The
server answers nobody with it; its answers stand in the journal, for the monitor to compare.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.landing import PROMOTE
from flows.outputs import bring
from flows.params import load_flows
from flows.registry import champion, decisions, told_at
from flows.store import changing, hold
from flows.worktree import home_of
from tasks.errors import MillError
from tasks.paths import Paths
from tasks.release import ACCEPTED
from tasks.shards import MANIFEST, read_json, sha256_of, write_json


def shadow_file(root: Path) -> Path:
    return root / ".mill" / "shadow.json"


def follow_challenger(root: Path, model: str) -> str | None:
    """Make the file say what the decisions say of a model; a sentence where a challenger came into the shadow.

    Its files come from DVC's cache or remote, and are checked as a champion's are. Where they cannot be had the shadow
    stays as it was, and the sentence says so: nothing that people get hangs on it.
    """
    try:
        return _follow(home_of(root), model)
    except MillError as error:
        return f"The shadow of {model} stays as it was. {error}"


def _follow(home: Path, model: str) -> str | None:
    decision = _newest(home, model) if load_flows(home / "params.yaml").serve.shadow else None
    with changing(home):
        before = dict(read_json(shadow_file(home))) if shadow_file(home).exists() else {}
        if decision is None:
            if model in before:
                write_json(shadow_file(home), {name: entry for name, entry in before.items() if name != model})
            return None
        entry = _entry(home, model, decision)
        if before.get(model) == entry:
            return None
        write_json(shadow_file(home), {**before, model: entry})
    return f"{decision['challenger']} gets a copy of what {model} is asked; nobody is answered with it."


def _newest(home: Path, model: str) -> Mapping[str, Any] | None:
    now = champion(home, model)
    made: list[Mapping[str, Any]] = decisions(home, model)
    for decision in reversed(made):
        if decision["verdict"] == PROMOTE or (now is not None and decision["challenger"] == now.release):
            return None
        if told_at(home, decision["commit"], model).get("verdict") == ACCEPTED:
            return dict(decision)
    return None


def _entry(home: Path, model: str, decision: Mapping[str, Any]) -> dict[str, Any]:
    path, commit, version = Paths(model).release.as_posix(), decision["commit"], decision["challenger"]
    release = hold(model, version, home, lambda folder: bring(home, commit, path, folder), f"{path} of {commit[:10]}")
    return {
        "version": release.version,
        "folder": release.folder.relative_to(home).as_posix(),
        "manifest_sha256": sha256_of(release.folder / MANIFEST),
    }
