"""Taking rows out of all that holds them: DVC's cache and remotes, working outputs, kept files, and the journal.

First collect is run again without the rows, in the working tree and on `live`, so that partitions which have left
their source are not lost with the objects that go. Then what `flows/erasure.py` has found is deleted. What was found is
written down before anything goes: a purge that is cut short is finished by the same command, also of what can no longer
be found by then.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from flows.child import path_of_commands
from flows.erasure import Erasure
from flows.git import LIVE, attempt, git, main_branch, tip
from flows.landing import put_on_live
from flows.lineage import Wanted, keep_fates, known_fates, outputs_at, outputs_in, without
from flows.merge import LOCK, merge_by_model
from flows.objects import Objects, StoreAway
from flows.publish import owe
from flows.store import changing, read_live
from flows.worktree import check_out_data, worktree
from tasks.database import LogNotEmptied
from tasks.errors import MillError
from tasks.journal import Journal
from tasks.paths import Paths
from tasks.release import GOLDEN
from tasks.shards import read_json, write_json, write_parquet


class PurgeError(MillError):
    """Rows cannot be purged as things stand; nothing has been deleted."""


def remember(home: Path, model: str, erasure: Erasure) -> Erasure:
    """Write down what has to go, together with what an earlier purge that was cut short had still to delete."""
    erasure.add(remembered(home, model))
    write_json(_plan(home, model), erasure.as_json())
    return erasure


def remembered(home: Path, model: str) -> Erasure:
    """What an earlier purge of the model was cut short in; empty where none was."""
    file = _plan(home, model)
    return Erasure.of_json(read_json(file)) if file.exists() else Erasure()


def collect_again(home: Path, model: str, objects: Objects) -> None:
    """Run collect in the working tree and on `live`, and commit what came of it to main and to live.

    A dvc.lock in which something else has changed is left to be committed by whoever changed it. Raises PurgeError
    where collect fails.
    """
    _collect_here(home, model, objects)
    if tip(home, f"refs/heads/{LIVE}"):
        _collect_on_live(home, model, objects)


def check_needed(home: Path, model: str, erasure: Erasure, objects: Objects) -> None:
    """Raise PurgeError where collect's output of main, live or the working tree still lies in what is to be deleted."""
    path = Paths(model).collected.as_posix()
    states = {name: outputs_at(home, name, model) for name in (main_branch(home), LIVE) if tip(home, name)}
    lock = home / LOCK
    if lock.exists():
        states["the working tree"] = outputs_in(lock.read_text(encoding="utf-8")).get(model, {})
    for name, outputs in states.items():
        files = objects.files(outputs[path]) if path in outputs else None
        if set((files or {}).values()) & erasure.objects:
            raise PurgeError(
                f"{LOCK} of {name} still names a {path} that holds the rows, and deleting that would lose it. Nothing "
                f"was deleted. `dvc repro collect@{model}`, commit {LOCK}, and run this again."
            )


def purge(
    home: Path, model: str, erasure: Erasure, wanted: Wanted, objects: Objects, journal: Journal | None
) -> list[str]:
    """Delete what was found, and give a sentence for each thing that could not be. What is gone already, is gone."""
    left: list[str] = []
    if journal is not None:
        try:
            journal.forget(sorted(erasure.predictions))
        except LogNotEmptied as error:
            left.append(str(error))
    keep_fates(known_fates(home, model), objects, erasure.objects, wanted)
    kept = set(_delete_files(home, model, erasure, wanted, left))
    with objects.locked():
        for place in objects.remotes:
            try:
                place.remove(sorted(erasure.objects - kept))
            except StoreAway as error:
                objects.away[place.name] = str(error)
        objects.cache.remove(sorted(erasure.objects - kept))
    left = [*left, *(why for why in objects.away.values() if why not in left)]
    if not left:
        _plan(home, model).unlink(missing_ok=True)
    return left


def _plan(home: Path, model: str) -> Path:
    return home / ".mill" / "forget" / f"{model}.json"


def _collect_here(home: Path, model: str, objects: Objects) -> None:
    """Collect in the person's working tree, where the model was collected before."""
    lock, paths = home / LOCK, Paths(model, home)
    outputs = outputs_in(lock.read_text(encoding="utf-8")).get(model, {}) if lock.exists() else {}
    if Paths(model).collected.as_posix() not in outputs:
        return
    made = [LOCK, paths.report("collect").relative_to(home).as_posix()]
    was_clean = not git(home, "status", "--porcelain", "--", *made)
    if not paths.collected.exists():
        _bring(home, model, outputs, objects)
        _dvc(home, "checkout", "--quiet", "--allow-missing", Paths(model).collected.as_posix())
    _dvc(home, "repro", f"collect@{model}")
    if was_clean and git(home, "status", "--porcelain", "--", *made):
        git(home, "add", "--", *made)
        git(home, "commit", "--quiet", "-m", f"{model}: collected again, without forgotten rows", "--", *made)
        owe(home, git(home, "rev-parse", "HEAD"))


def _collect_on_live(home: Path, model: str, objects: Objects) -> None:
    base = merge_by_model(home, LIVE, main_branch(home), f"Merge {main_branch(home)} to forget rows of {model}")
    branch = f"retrain/{model}/forget-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    with worktree(home, model, branch, base) as tree:
        _bring(tree.folder, model, outputs_at(home, base, model), objects)
        check_out_data(tree, model)
        _dvc(tree.folder, "repro", f"collect@{model}")
        git(tree.folder, "add", "--update")
        git(tree.folder, "add", "--", *_there(tree.folder, LOCK, Paths(model).report("collect").as_posix()))
        commit = base
        if attempt(tree.folder, "diff", "--cached", "--quiet").returncode:
            wrote = git(tree.folder, "write-tree")
            message = f"{model}: collected again, without forgotten rows"
            commit = git(tree.folder, "commit-tree", wrote, "-p", base, stdin=message)
        owe(home, commit)
        put_on_live(home, model, commit)


def _bring(folder: Path, model: str, outputs: Mapping[str, str], objects: Objects) -> None:
    """Bring what was collected from the remote, where the cache lacks it: it may be all that is left of its source."""
    path = Paths(model).collected.as_posix()
    files = objects.files(outputs[path]) if path in outputs else None
    places = [objects.places_of(oid) for oid in (files or {}).values()]
    if any(found and objects.cache not in found for found in places):
        _dvc(folder, "fetch", "--quiet", path)
    elif objects.away and not all(places):
        why = " ".join(objects.away.values())
        raise PurgeError(f"What was collected is not in DVC's cache, and a remote cannot be asked for it: {why}")


def _there(folder: Path, *names: str) -> list[str]:
    return [name for name in names if (folder / name).exists()]


def _dvc(folder: Path, *arguments: str) -> None:
    env = {**os.environ, "PATH": path_of_commands()}
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, env=env, check=False)
    if done.returncode:
        raise PurgeError(
            f"`dvc {' '.join(arguments)}` failed in {folder}; the reason stands above. Nothing was deleted. Mend it, "
            "and run this again."
        )


def _delete_files(home: Path, model: str, erasure: Erasure, wanted: Wanted, left: list[str]) -> Iterator[str]:
    """Delete files, releases whole; give the objects that have to stay because a version in use needs them."""
    with changing(home):
        entry = read_live(home).get(model, {})
        in_use = home / str(entry.get("folder", ".mill/none"))
        for name in sorted(erasure.files):
            file = home / name
            if file.name == GOLDEN and file.parent == in_use:
                version = entry.get("tag", entry["version"])
                left.append(
                    f"{version} is in use, and a row is among its golden rows ({name}). Put another version in use, "
                    "and run this again."
                )
                yield _md5_of(file)
            elif file.parent == known_fates(home, model):
                if file.exists():
                    write_parquet(file, without(pl.read_parquet(file), wanted))
            elif file.name == GOLDEN:
                shutil.rmtree(file.parent, ignore_errors=True)  # without it the release would be damaged
            else:
                file.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    file.parent.rmdir()


def _md5_of(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() if file.exists() else ""
