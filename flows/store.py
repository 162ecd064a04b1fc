"""The versions that may be used, apart from the workspace: DVC deletes an output before it makes it anew.

`.mill/versions/<model>/<version>/` holds a version's files, and `.mill/live.json` says which version of each model is
in use. That file is replaced atomically, so whoever reads it sees one version or the other.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.errors import ReleaseError
from tasks.paths import Paths
from tasks.release import Release, open_release, read_release, refusal
from tasks.shards import MANIFEST, atomic_folder, read_json, sha256_of, write_json

_MEND = "It is the version in use: `mill run {model}` puts an accepted release in its place."


def live_file(root: Path) -> Path:
    return root / ".mill" / "live.json"


def put_in_use(model: str, root: Path = Path()) -> Release:
    """Put the workspace's accepted release in use; where it is in use already, change nothing.

    Raises ReleaseError where it is refused, is damaged, or computes something else on this machine.
    """
    release = open_release(Paths(model, root).release)
    with _one_at_a_time(root):
        folder = root / ".mill" / "versions" / model / release.version
        if not _is_whole(folder):
            _check_golden(release)
            _copy(release, folder)
        entry = {
            "version": release.version,
            "folder": folder.relative_to(root).as_posix(),
            "manifest_sha256": sha256_of(folder / MANIFEST),
        }
        live = _read_live(root)
        if live.get(model) != entry:
            write_json(live_file(root), {**live, model: entry})
    return read_release(folder)


def current(model: str, root: Path = Path()) -> Release | None:
    """The version in use, whole; None where there is none yet. Raises ReleaseError where its files were changed."""
    entry = _read_live(root).get(model)
    if entry is None:
        return None
    mend = _MEND.format(model=model)
    release = open_release(root / entry["folder"], mend=mend)
    if sha256_of(release.folder / MANIFEST) != entry["manifest_sha256"]:
        raise ReleaseError(f"{release.folder / MANIFEST} is not the one that was put in use. {mend}")
    return release


def usable(model: str, root: Path = Path()) -> tuple[Release, str | None]:
    """The release that answers, and what has to be said about the newest one.

    The version in use answers; the workspace's release does where there is none yet. A refused release never does.
    Raises ReleaseError where nothing may answer, or where the workspace's release is damaged.
    """
    live = current(model, root)
    folder = Paths(model, root).release
    if not folder.exists():
        if live is None:
            raise ReleaseError(f"There is no release of {model} yet. `mill run {model}` makes one.")
        return live, None
    try:
        newest = read_release(folder)
    except ReleaseError as error:
        in_use = "" if live is None else f" The version in use, {live.version}, is whole."
        raise ReleaseError(f"{error}{in_use}") from None
    if live is None:
        if not newest.accepted:
            raise ReleaseError(f"{refusal(newest)} No version was accepted before it, so none is in use.")
        return newest, None
    if not newest.accepted:
        return live, f"{refusal(newest)} The version in use is {live.version}."
    if newest.version != live.version:
        return live, f"{folder} holds {newest.version}. In use is {live.version}, until `mill run {model}` replaces it."
    return live, None


def _read_live(root: Path) -> dict[str, Any]:
    file = live_file(root)
    return dict(read_json(file)) if file.exists() else {}


def _is_whole(folder: Path) -> bool:
    try:
        read_release(folder)
    except ReleaseError:
        return False
    return True


def _copy(release: Release, folder: Path) -> None:
    # Copies and not links: a file edited in the workspace would change what is in use.
    with atomic_folder(folder) as unfinished:
        for name in release.files:
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(release.folder / name, unfinished / name)
        read_release(unfinished)


def _check_golden(release: Release) -> None:
    from tasks.golden import differences
    from tasks.problems import load
    from tasks.release import GOLDEN
    from tasks.runtime import load_runtime

    parameters = release.manifest["parameters"]
    runtime = load_runtime(release.folder, parameters["threads"])
    found = differences(read_json(release.folder / GOLDEN), runtime, load(parameters["problem"]))
    if found:
        raise ReleaseError(
            f"{release.folder} does not compute on this machine what it did where it was made. {found[0]} Run "
            "`dvc repro --force` here, or leave int8 out of export.variants."
        )


@contextlib.contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    import fcntl

    live_file(root).parent.mkdir(parents=True, exist_ok=True)
    with (live_file(root).parent / "live.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
