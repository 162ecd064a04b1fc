"""A decided challenger becomes the version in use: on `live`, registered, promoted, in this order.

The decision's tag comes first, and every step is known from Git alone. So a run that was killed between any two of them
is finished by the next, and what is finished is not done again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.git import LIVE, GitError, attempt, check_live_is_free, git, holds, live_of, tip
from flows.merge import MergeConflict, merge_by_model
from flows.publish import owe
from flows.registry import Version, champion, decisions, promote, register, release_at
from flows.tags import promotions

if TYPE_CHECKING:
    from tasks.release import Release

PROMOTE, ASK = "promote", "ask"


def put_on_live(root: Path, model: str, commit: str) -> None:
    """Bring a commit into `live`, whatever else lands at the same time. Raises MergeConflict where a person has to.

    Of two that land at once one finds `live` moved, merges by model and tries again.
    """
    while True:
        check_live_is_free(root)
        before = tip(root, f"refs/heads/{LIVE}")
        if before is not None and holds(root, before, commit):
            return
        live = live_of(root)
        after = _with_live(root, model, commit, live) if live else commit
        command = ("update-ref", "-m", f"retrain {model}", f"refs/heads/{LIVE}", after, before or "0" * 40)
        done = attempt(root, *command)
        if not done.returncode:
            return
        if tip(root, f"refs/heads/{LIVE}") == before:
            raise GitError(f"Git does not move the branch `{LIVE}`: {done.stderr.strip().removeprefix('fatal: ')}")


def _with_live(root: Path, model: str, commit: str, live: str) -> str:
    try:
        return merge_by_model(root, live, commit, f"Merge the retraining of {model}")
    except MergeConflict as error:
        found = git(root, "for-each-ref", "--points-at", commit, "--format=%(refname:short)", "refs/heads/retrain/")
        branch = found or commit
        raise MergeConflict(error.files, live, branch, f" && git branch -f {LIVE} {branch}") from None


def land(root: Path, decision: Mapping[str, Any], commit: str, release: "Release", why: str) -> Version:
    """Make a decided challenger the champion. Each step changes nothing where it has been done before."""
    model = str(decision["model"])
    owe(root, commit)
    put_on_live(root, model, commit)
    version = register(root, model, commit, release=release, why=why)
    promote(root, version, why=why, decision=decision)
    return version


def finish(root: Path, model: str) -> Version | None:
    """Land what was decided and then cut short; None where nothing was.

    Where the champion has changed since, by a promotion or a rollback of somebody, the decision was about another
    comparison, and is left.
    """
    made = decisions(root, model)
    if not made or made[-1]["verdict"] != PROMOTE:
        return None
    last = made[-1]
    now = champion(root, model)
    if (now.tag if now else None) != last["champion"] or _was_promoted(root, model, last["commit"]):
        return None
    release = release_at(root, model, last["commit"], last["challenger"])
    return land(root, last, last["commit"], release, last.get("why", ""))


def _was_promoted(root: Path, model: str, commit: str) -> bool:
    return any(tag.commit == commit for tag in promotions(root, model))
