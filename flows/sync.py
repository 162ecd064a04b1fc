"""`mill sync`: bring what scheduled runs have landed on `live` into the branch that a person is on.

The merge is made by model in Git's object store, and only a result that is whole is brought to the working tree, by a
fast-forward: Git does it, and leaves everything as it was where a change of the person's is in the way.
"""

from pathlib import Path

from flows.git import LIVE, GitError, attempt, check_repository, git, holds, live_of, main_branch
from flows.merge import merge_by_model

_SHOWN = 10


def sync(root: Path) -> str:
    """Merge `live` into the branch that is checked out, and say in a sentence what came and what to do next.

    Raises GitError where that cannot be, with the files that are in the way; then nothing has changed.
    """
    check_repository(root)
    top = Path(git(root, "rev-parse", "--show-toplevel"))
    branch = _branch(top)
    live = live_of(top)
    if live is None:
        return f"There is no branch `{LIVE}` yet: `mill retrain MODEL` makes it. Nothing to sync."
    before = git(top, "rev-parse", "HEAD")
    if holds(top, before, live):
        return f"{branch} has all of `{live}` already."
    after = merge_by_model(top, live, branch, f"Bring {LIVE} into {branch}")
    _check_free(top, before, after)
    done = attempt(top, "merge", "--quiet", "--ff-only", after)
    if done.returncode:
        raise GitError(f"`{LIVE}` was not brought into {branch}; nothing has changed. Git says: {done.stderr.strip()}")
    num_commits = git(top, "rev-list", "--count", "--no-merges", f"{before}..{after}")
    return (
        f"{branch} has what landed on `{LIVE}`: {num_commits} commit{'' if num_commits == '1' else 's'}. "
        "`dvc checkout` brings the data and models that belong to it; `mill run` makes what is stale."
    )


def _branch(top: Path) -> str:
    """The branch that is checked out, which must not be live itself."""
    branch = attempt(top, "symbolic-ref", "--quiet", "--short", "HEAD").stdout.strip()
    if not branch:
        raise GitError(
            f"HEAD is detached in {top}, so there is no branch to bring `{LIVE}` into. Go to yours: "
            f"git switch {main_branch(top)}"
        )
    if branch == LIVE:
        raise GitError(
            f"You are on `{LIVE}` itself, which belongs to the scheduled runs. Go to yours: "
            f"git switch {main_branch(top)}"
        )
    return branch


def _check_free(top: Path, before: str, after: str) -> None:
    """Raise GitError where what comes would go over a change that is not committed, or an untracked file."""
    comes = set(git(top, "diff", "--name-only", "-z", "--no-renames", before, after).split("\0"))
    changed = git(top, "diff", "--name-only", "-z", "--no-renames", "HEAD").split("\0")
    untracked = git(top, "ls-files", "--others", "--exclude-standard", "-z").split("\0")
    overlap = sorted((comes & {*changed, *untracked}) - {""})
    if overlap:
        more = f" and {len(overlap) - _SHOWN} more" if len(overlap) > _SHOWN else ""
        raise GitError(
            f"`{LIVE}` brings other versions of files that you have changed and not committed: "
            f"{', '.join(overlap[:_SHOWN])}{more}. Commit them, or put them away with `git stash`, and run `mill sync` "
            "again. Nothing has changed."
        )
