"""Git by its own command line: without prompts, hooks or a pager, and with its failures as explained ones."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.errors import MillError

LIVE = "live"

# What a hook that started this process says about its own repository.
_OF_A_HOOK = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR")

_NO_GIT = "Git is not installed, or not on PATH. On Debian: apt-get install git"


class GitError(MillError):
    """Git cannot do what is asked, in this repository as it stands."""


def attempt(
    root: Path, *arguments: str, stdin: str = "", env: Mapping[str, str] | None = None, hooks: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run Git below `root`, and give back what it said and its exit code."""
    command, around = _command(arguments, env, hooks=hooks)
    try:
        return subprocess.run(
            command, cwd=root, env=around, input=stdin, capture_output=True, text=True, encoding="utf-8", check=False
        )
    except FileNotFoundError:
        raise GitError(_NO_GIT) from None


def blob(root: Path, name: str) -> bytes | None:
    """A file's own bytes as Git holds them, by `commit:path`; None where there is none."""
    command, around = _command(("cat-file", "blob", name), None, hooks=False)
    try:
        done = subprocess.run(command, cwd=root, env=around, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError:
        raise GitError(_NO_GIT) from None
    return None if done.returncode else done.stdout


def _command(
    arguments: Sequence[str], env: Mapping[str, str] | None, *, hooks: bool
) -> tuple[list[str], dict[str, str]]:
    quiet = [] if hooks else ["-c", f"core.hooksPath={os.devnull}"]
    around = {name: value for name, value in os.environ.items() if name not in _OF_A_HOOK}
    # Reading refreshes no index that somebody else works with, and a missing password is an answer, not a question.
    around |= {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", **(env or {})}
    return ["git", *quiet, *arguments], around


def git(root: Path, *arguments: str, stdin: str = "", env: Mapping[str, str] | None = None) -> str:
    """What Git printed, without the last line's end. Raises GitError where it failed."""
    done = attempt(root, *arguments, stdin=stdin, env=env)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).removeprefix("fatal: ")
        raise GitError(f"git {arguments[0]} failed in {root.resolve()}: {said}")
    return done.stdout.removesuffix("\n")


def tip(root: Path, name: str) -> str | None:
    """The commit that a branch, tag or commit's name stands for; None where there is none."""
    done = attempt(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    return done.stdout.strip() or None


def holds(root: Path, commit: str, earlier: str) -> bool:
    """Whether `earlier` is in the history of `commit`."""
    return attempt(root, "merge-base", "--is-ancestor", earlier, commit).returncode == 0


def live_of(root: Path) -> str | None:
    """What there is of `live`: the branch here, or origin's where that has gone on from it or there is none here."""
    here, there = tip(root, f"refs/heads/{LIVE}"), tip(root, f"refs/remotes/origin/{LIVE}")
    if there and (here is None or holds(root, there, here)):
        return f"origin/{LIVE}"
    return LIVE if here else None


def main_branch(root: Path) -> str:
    """The branch on which people work: `main`, else `master`, else what the remote calls its own."""
    named = attempt(root, "symbolic-ref", "--quiet", "--short", "refs/remotes/origin/HEAD").stdout.strip()
    for name in ("main", "master", named.removeprefix("origin/")):
        if name and tip(root, f"refs/heads/{name}"):
            return name
    raise GitError(
        f"{root.resolve()} has no branch `main` (nor `master`) with a commit, so there is nothing to work from. "
        + (
            "The remote has one: git branch main origin/main"
            if tip(root, "refs/remotes/origin/main")
            else "Commit what there is, and name the branch: git branch -m main"
        )
    )


def checked_out(root: Path, branch: str) -> Path | None:
    """The working tree in which a branch is checked out; None where it is in none."""
    tree: Path | None = None
    for line in git(root, "worktree", "list", "--porcelain").splitlines():
        if line.startswith("worktree "):
            tree = Path(line.removeprefix("worktree "))
        elif line == f"branch refs/heads/{branch}":
            return tree
    return None


def check_repository(root: Path) -> None:
    """Raise GitError, with what to do, where this is no repository in which a flow can commit."""
    if attempt(root, "rev-parse", "--git-dir").returncode:
        raise GitError(f"{root.resolve()} is no Git repository. `git init`, and commit what there is.")
    check_history(root)
    main_branch(root)
    for who in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
        if attempt(root, "var", who).returncode:
            raise GitError(
                "Git does not know in whose name to commit. Tell it: git config user.name 'Retraining' && "
                "git config user.email retraining@example.org"
            )


def check_history(root: Path) -> None:
    """Raise GitError, with what to do, where this clone has the last commits alone, and few of the tags."""
    if git(root, "rev-parse", "--is-shallow-repository") == "true":
        raise GitError(
            "This clone is shallow, so Git cannot tell what was merged and which versions there are. "
            "Fetch the rest: git fetch --unshallow --tags"
        )


def check_live_is_free(root: Path) -> None:
    """Raise GitError where somebody has `live` checked out: their files would no longer be their branch's."""
    tree = checked_out(root, LIVE)
    if tree is not None:
        raise GitError(
            f"The branch `{LIVE}` is checked out in {tree}. Retraining moves it, so nobody works on it: "
            f"git -C {tree} switch --detach"
        )
