"""The versions that may be used, apart from the workspace: DVC deletes an output before it makes it anew.

`.mill/versions/<model>/<version>/` holds a version's files, and `.mill/live.json` says which version of each model is
in use. That file is replaced atomically, so whoever reads it sees one version or the other.
"""

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.tags import standing
from tasks.errors import ReleaseError
from tasks.paths import Paths
from tasks.release import Release, open_release, read_release, refusal
from tasks.shards import MANIFEST, atomic_folder, read_json, sha256_of, write_json


def live_file(root: Path) -> Path:
    return root / ".mill" / "live.json"


def version_folder(root: Path, model: str, version: str) -> Path:
    return root / ".mill" / "versions" / model / version


def put_in_use(model: str, root: Path = Path()) -> Release | None:
    """Put the workspace's accepted release in use, unless the model has a champion; give the one that is in use now.

    What was promoted only a promotion replaces; None where it is not on this machine yet. Raises ReleaseError where the
    workspace's release is refused, is damaged, or computes something else on this machine.
    """
    release = open_release(Paths(model, root).release)
    if standing(root, model):
        return current(model, root)
    with changing(root):
        held = hold(model, release.version, root, lambda folder: _copy(release, folder), str(release.folder))
        set_live(model, held, root)
    return held


def hold(model: str, version: str, root: Path, bring: Callable[[Path], object], source: str) -> Release:
    """The files of a version in the store, whole; where they are not, `bring` fills an empty folder with them.

    They are checked by hash and by what they compute here before they stand there. `source` is where they come from, in
    words. Within `changing`. Raises ReleaseError.
    """
    folder = version_folder(root, model, version)
    try:
        return read_release(folder)
    except ReleaseError:
        pass
    with atomic_folder(folder) as unfinished:
        bring(unfinished)
        release = read_release(unfinished, mend=f"They came from {source}.")
        if release.version != version:
            raise ReleaseError(f"{source} holds {release.version}, and not {version}.")
        _check_golden(release, source)
    return read_release(folder)


def set_live(model: str, release: Release, root: Path, **told: Any) -> None:
    """Put a version of the store in use, with `told` beside what the server needs. Within `changing`.

    Where it is in use already, nothing is written.
    """
    entry = {
        "version": release.version,
        "folder": release.folder.relative_to(root).as_posix(),
        "manifest_sha256": sha256_of(release.folder / MANIFEST),
        **told,
    }
    live = read_live(root)
    if live.get(model) != entry:
        write_json(live_file(root), {**live, model: entry})


def current(model: str, root: Path = Path()) -> Release | None:
    """The version in use, whole; None where there is none yet. Raises ReleaseError where its files were changed."""
    entry = read_live(root).get(model)
    if entry is None:
        return None
    mend = _mend(model, entry)
    release = open_release(root / entry["folder"], mend=mend, forced=bool(entry.get("forced")))
    if sha256_of(release.folder / MANIFEST) != entry["manifest_sha256"]:
        raise ReleaseError(f"{release.folder / MANIFEST} is not the one that was put in use. {mend}")
    return release


def _mend(model: str, entry: Mapping[str, Any]) -> str:
    if "tag" in entry:
        return f"It is the version in use: `mill promote {entry['tag']} --why '…'` brings its files again."
    return f"It is the version in use: `mill run {model}` puts an accepted release in its place."


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
        return live, f"{folder} holds {newest.version}. {_until(model, newest, root)}"
    return live, None


def _until(model: str, newest: Release, root: Path) -> str:
    """What is in use instead of the newest release, and what would change that."""
    entry = read_live(root)[model]
    if "tag" in entry:
        return f"In use is {entry['tag']}, until another version is promoted: `mill retrain {model}` looks for one."
    return f"In use is {entry['version']}, until `mill run {model}` replaces it."


def read_live(root: Path) -> dict[str, Any]:
    """What live.json says of each model."""
    file = live_file(root)
    return dict(read_json(file)) if file.exists() else {}


def _copy(release: Release, folder: Path) -> None:
    # Copies and not links: a file edited in the workspace would change what is in use.
    for name in release.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(release.folder / name, folder / name)


def _check_golden(release: Release, source: str) -> None:
    from tasks.golden import differences
    from tasks.problems import load
    from tasks.release import GOLDEN
    from tasks.runtime import load_runtime

    parameters = release.manifest["parameters"]
    runtime = load_runtime(release.folder, parameters["threads"])
    found = differences(read_json(release.folder / GOLDEN), runtime, load(parameters["problem"]))
    if found:
        raise ReleaseError(
            f"{source} does not compute on this machine what it did where it was made. {found[0]} Run "
            "`dvc repro --force` here, or write [fp32] as export.variants."
        )


@contextlib.contextmanager
def changing(root: Path) -> Iterator[None]:
    """Hold the store and live.json alone. Not to be taken twice: the second waits for the first."""
    live_file(root).parent.mkdir(parents=True, exist_ok=True)
    with (live_file(root).parent / "live.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
