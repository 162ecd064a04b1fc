"""A folder of their own for scheduled runs: a Git worktree beside the person's, that shares DVC's cache by links.

It stands in `.mill/worktrees/` of the main checkout and has a branch, an index and a DVC lock of its own. What the line
keeps for going on after a kill is shared among the worktrees, and apart from the person's.
"""

import contextlib
import fcntl
import glob
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from flows.git import GitError, attempt, git, tip
from flows.merge import LOCK, model_of_stage
from tasks.errors import MillError
from tasks.params import load_model, read_yaml


class Busy(MillError):
    """Another process is at the same work, since then where that is known."""

    def __init__(self, message: str, since: datetime | None = None) -> None:
        super().__init__(message)
        self.since = since


@dataclass(frozen=True)
class Worktree:
    """A worktree and the branch in it, which starts at the commit `base`."""

    folder: Path
    branch: str
    base: str
    lock: int  # the descriptor that says it is in use; who works in it after this process inherits it


def home_of(root: Path) -> Path:
    """The main checkout, from itself or any of its worktrees: `.mill/` is there."""
    return Path(git(root, "rev-parse", "--path-format=absolute", "--git-common-dir")).parent


@contextlib.contextmanager
def worktree(root: Path, model: str, branch: str, base: str) -> Iterator[Worktree]:
    """A worktree with `branch` made at the commit `base` and checked out, taken away afterwards; the branch stays.

    A branch that was given no commit goes too. DVC's outputs are not in it yet: see `check_out_data`.
    """
    home, base = home_of(root), git(root, "rev-parse", f"{base}^{{commit}}")
    folder, lock = _free_folder(home, model)
    try:
        git(home, "worktree", "add", "--quiet", "-b", branch, str(folder), base)
        _share(home, folder, model)
        yield Worktree(folder, branch, base, lock.fileno())
    finally:
        _remove(home, folder)
        lock.close()
        if tip(home, f"refs/heads/{branch}") == base:
            attempt(home, "update-ref", "-d", f"refs/heads/{branch}", base)


def clean_up(root: Path) -> list[str]:
    """Take away the worktrees that processes left behind when they were killed, and give back their names.

    Their branches stay where there is something of the run on them.
    """
    home = home_of(root)
    gone = []
    for file in sorted(_worktrees(home).glob("*.lock")):
        with file.open("r+") as lock:
            if not _take(lock):
                continue
            folder = file.with_suffix("")
            if not folder.exists():
                continue
            branch = attempt(folder, "symbolic-ref", "--short", "HEAD").stdout.strip()
            _remove(home, folder)
            if branch.startswith("retrain/") and not is_decided(home, branch) and _has_nothing(home, branch):
                attempt(home, "branch", "-D", branch)
            gone.append(folder.name)
    return gone


def is_decided(home: Path, branch: str) -> bool:
    """Whether a retrain has decided on the commit that a branch of it ends with."""
    return bool(git(home, "tag", "--points-at", f"refs/heads/{branch}", "--list", "decision/*"))


def check_out_data(tree: Worktree, model: str) -> None:
    """Link what the cache has of a model's line, and of what belongs to no model, so that it is not made again."""
    from dvc.exceptions import CheckoutError
    from dvc.repo import Repo

    with Repo(str(tree.folder)) as repo:
        known = [stage for stage in repo.index.stages if stage.outs and all(out.hash_info for out in stage.outs)]
        named = [(stage.path, getattr(stage, "name", None)) for stage in known]
        targets = [
            f"{path}:{name}" if name else path
            for path, name in named
            if model_of_stage(name or "", [model]) in (model, None)
        ]
        if targets:
            with contextlib.suppress(CheckoutError):
                repo.checkout(targets=targets, force=True, allow_missing=True)


def _worktrees(home: Path) -> Path:
    return home / ".mill" / "worktrees"


def _free_folder(home: Path, model: str) -> tuple[Path, IO[str]]:
    """A folder that nobody has, and the lock on it."""
    _worktrees(home).mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        folder = _worktrees(home) / f"{model}-{number}"
        lock = folder.with_name(f"{folder.name}.lock").open("a+")
        if _take(lock):
            _remove(home, folder)
            return folder, lock
        lock.close()
    raise GitError(f"{_worktrees(home)} is full of worktrees in use. End the processes that hold them.")


def _take(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(home: Path, folder: Path) -> None:
    """Take a worktree away, also one that was never finished or whose folder is half gone, and no other.

    Pruning would take those of people with it whose disk is not there at the moment, and what is staged in them.
    """
    attempt(home, "worktree", "remove", "--force", "--force", str(folder))
    if folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        attempt(home, "worktree", "remove", "--force", "--force", str(folder))


def _has_nothing(home: Path, branch: str) -> bool:
    """Whether a branch holds no commit of a run: all that is on it is on live or main, or merges them."""
    own = git(home, "rev-list", "--no-merges", f"refs/heads/{branch}", "--not", "--exclude=retrain/*", "--branches")
    return not own


def _share(home: Path, folder: Path, model: str) -> None:
    """Give the worktree the main checkout's cache, its local configuration, and what is not in Git but read by runs."""
    _share_dvc(home, folder)
    kept = home / ".mill" / "retrain" / "work"
    kept.mkdir(parents=True, exist_ok=True)
    (folder / ".mill").mkdir(exist_ok=True)
    (folder / ".mill" / "work").symlink_to(kept)
    # Labels come from the server's journal, which is the main checkout's; SQLite goes by the place that the link names.
    (folder / ".mill" / "journal.sqlite").symlink_to(home / ".mill" / "journal.sqlite")
    _lend(home, folder, model)


def _share_dvc(home: Path, folder: Path) -> None:
    """DVC's local configuration of the main checkout, with what is relative to that one's place made absolute."""
    from dvc.config import Config

    main = Config(dvc_dir=str(home / ".dvc"))
    cache = main.get("cache", {}).get("dir") or ".dvc/cache"
    with Config(dvc_dir=str(folder / ".dvc"), validate=False).edit("local") as config:
        config.update(main.load_one("local"))
        for name, remote in main.get("remote", {}).items():
            if "://" not in remote["url"]:
                config.setdefault("remote", {}).setdefault(name, {})["url"] = str((home / remote["url"]).resolve())
        config.setdefault("cache", {}).update(dir=str((home / cache).resolve()), type=["hardlink", "copy"])
        # In here, so that it goes with the worktree.
        config.setdefault("core", {})["site_cache_dir"] = str(folder / ".dvc" / "tmp" / "site")


def _lend(home: Path, folder: Path, model: str) -> None:
    """Link the data that arrives in the person's checkout and is not in Git, where the source has a relative path."""
    pattern = _files_of(folder / "params.yaml", model)
    if pattern is None or Path(pattern).is_absolute() or _is_of_dvc(folder, pattern):
        return
    wanted = Path(pattern)
    if (home / wanted).is_dir() and not (folder / wanted).exists():
        found = [wanted]
    elif (home / wanted).is_dir():
        found = [file.relative_to(home) for file in (home / wanted).rglob("*") if file.is_file()]
    else:
        # Path.glob's ** means another thing in each version of Python.
        found = [Path(name) for name in glob.glob(pattern, root_dir=home, recursive=True)]  # noqa: PTH207
    for path in found:
        if not (folder / path).exists() and ".mill" not in path.parts:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to((home / path).resolve())


def _files_of(params: Path, model: str) -> str | None:
    """The path of a source that is files, as it is written: what else stands there, the worktree's own code knows."""
    written = read_yaml(params)
    try:
        own = written["models"][model]
        return str(own["collect"]["path"]) if own["source"] == "files" else None
    except (KeyError, TypeError):
        load_model(model, params)  # says what is wrong with it
        raise


def _is_of_dvc(folder: Path, path: str) -> bool:
    """Whether DVC itself puts the data there: a .dvc file's, or a stage's output."""
    from dvc.utils.serialize import loads_yaml

    place = Path(path)
    if any((folder / f"{part}.dvc").exists() for part in (place, *place.parents) if part.name):
        return True
    lock = folder / LOCK
    stages = loads_yaml(lock.read_text(encoding="utf-8")).get("stages", {}) if lock.exists() else {}
    outs = (Path(out["path"]) for stage in stages.values() for out in stage.get("outs", []))
    return any(out == place or out in place.parents for out in outs)
