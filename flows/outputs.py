"""The files of a DVC output as a commit has them, from the cache or else the remote, each checked by its hash.

DVC's lock is not taken: objects are named by their content and appear whole, so nobody's running command is in the way.
"""

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import MillError

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo


class OutputError(MillError):
    """A commit has no such output, or its files are nowhere to be had."""


def bring(root: Path, commit: str, path: str, folder: Path) -> None:
    """Write the files of an output into `folder`: those of a directory below it, a single file by its name.

    Raises OutputError where the commit has no output of that path, or where neither cache nor remote has its bytes.
    """
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        store = _Store(repo, _output(repo, commit, path), f"{path} of {commit[:10]}")
        for place, oid in store.files().items():
            store.bring(oid, folder / place)


def _output(repo: "Repo", commit: str, path: str) -> "Output":
    from dvc.exceptions import DvcException, OutputNotFoundError

    try:
        with repo.switch(commit):
            out = repo.find_outs_by_path(f"{repo.root_dir.rstrip('/')}/{path}")[0]
    except OutputNotFoundError:
        raise OutputError(f"No stage and no .dvc file of the commit {commit[:10]} has {path} as its output.") from None
    except DvcException as error:
        raise OutputError(f"DVC cannot read the commit {commit[:10]}: {error}") from None
    if not out.hash_info:
        raise OutputError(f"{path} was never made where {commit[:10]} was committed: dvc.lock has no hash of it.")
    return out


class _Store:
    """The cache of one output, and the remote behind it."""

    def __init__(self, repo: "Repo", out: "Output", name: str) -> None:
        self._repo = repo
        self._hash_info = out.hash_info
        self._remote = out.remote
        self._file = Path(out.def_path).name
        # What DVC 2 hashed lies beside what DVC 3 hashes.
        self._cache = repo.cache.legacy if out.hash_info.name == "md5-dos2unix" else repo.cache.local
        self._name = name

    def files(self) -> Mapping[str, str]:
        """Each file's place below the output, and its hash. What the cache lacks of them is asked of the remote."""
        from dvc_data.hashfile.tree import Tree

        wanted = self._hash_info
        if not wanted.isdir:
            return {self._file: wanted.value}
        if not self._is_listing(wanted.value):
            self._pull([wanted.value])
        if not self._is_listing(wanted.value):
            raise OutputError(self._nowhere())
        found = {"/".join(key): str(oid.value) for key, _, oid in Tree.load(self._cache, wanted)}
        # All at once: a remote is slow by the question, not by the byte.
        self._pull(oid for oid in set(found.values()) if not self._path(oid).is_file())
        return found

    def bring(self, oid: str, target: Path) -> None:
        """Copy one file out of the cache, and see that it is what its name says."""
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in (1, 2):
            if self._path(oid).is_file():
                shutil.copyfile(self._path(oid), target)
                if self._hash_of(target) == oid:
                    return
                # As DVC does with what is damaged: the remote may have it whole.
                self._path(oid).unlink()
            if attempt == 1:
                self._pull([oid])
        raise OutputError(self._nowhere(target.name))

    def _hash_of(self, path: Path) -> str:
        from dvc.fs import LocalFileSystem
        from dvc_data.hashfile.hash import hash_file

        return str(hash_file(str(path), LocalFileSystem(), self._hash_info.name)[1].value)

    def _path(self, oid: str) -> Path:
        return Path(self._cache.oid_to_path(oid))

    def _is_listing(self, oid: str) -> bool:
        path = self._path(oid)
        if not path.is_file():
            return False
        if f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}.dir" == oid:
            return True
        path.unlink()
        return False

    def _pull(self, oids: Iterable[str]) -> None:
        """Bring objects from the remote into the cache. What the remote does not have is missed later."""
        from dvc.config import NoRemoteError
        from dvc_data.hashfile.hash_info import HashInfo

        wanted = [HashInfo(self._hash_info.name, oid) for oid in oids]
        try:
            if wanted:
                self._repo.cloud.pull(wanted, remote=self._remote)
        except NoRemoteError:
            raise OutputError(self._nowhere()) from None
        except Exception as error:  # what a storage's own library raises where it is away or refuses
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise OutputError(f"{self._nowhere()} The remote says: {lines[0]}") from None

    def _nowhere(self, file: str = "") -> str:
        remote = self._remote or self._repo.config["core"].get("remote")
        where = f"nor in the DVC remote {remote}" if remote else "and no default DVC remote is set to get it from"
        return f"{f'{file} in ' if file else ''}{self._name} is not in DVC's cache, not whole at least, {where}."
