"""The files of running stages, held in DVC's own file of readers and writers, so that nobody's `dvc` writes to them."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage


class Held:
    """The files of the running stages, in DVC's file of readers and writers. Several stages may read the same."""

    def __init__(self, repo: "Repo") -> None:
        self._repo = repo
        self._users: dict[tuple[str, bool], set[str]] = {}
        self._entries: dict[tuple[str, bool], contextlib.ExitStack] = {}

    def take(self, address: str, stage: "Stage") -> None:
        """Hold a stage's files. Raises DVC's LockError, and holds none, where others are at them."""
        try:
            for file in _files(stage):
                if file not in self._users:
                    self._entries[file] = self._enter(*file)
                self._users.setdefault(file, set()).add(address)
        except BaseException:
            self.release(address)
            raise

    def release(self, address: str) -> None:
        """Hold a stage's files no longer."""
        from dvc.lock import LockError

        for file in [file for file, users in self._users.items() if address in users]:
            self._users[file].discard(address)
            if not self._users[file]:
                del self._users[file]
                # What stays in DVC's file stands there for this process, and is ignored when that has ended.
                with contextlib.suppress(LockError):
                    self._entries.pop(file).close()

    def release_all(self) -> None:
        for address in set().union(*self._users.values()):
            self.release(address)

    def _enter(self, path: str, is_output: bool) -> contextlib.ExitStack:
        from dvc.rwlock import rwlock

        entry, repo = contextlib.ExitStack(), self._repo
        reads, writes = ([], [path]) if is_output else ([path], [])
        hard_links = repo.config["core"].get("hardlink_lock", False)
        # DVC's own steps within this process take what a command of this name holds for their own.
        entry.enter_context(rwlock(repo.tmp_dir, repo.fs, " ".join(sys.argv), reads, writes, hard_links))
        return entry


def _files(stage: "Stage") -> Iterator[tuple[str, bool]]:
    """What a stage reads and what it writes, as far as others could write to it."""
    from dvc.dependency.db import AbstractDependency
    from dvc.dependency.repo import RepoDependency

    for is_output, items in ((False, stage.deps), (True, stage.outs)):
        for item in items:
            if not isinstance(item, (RepoDependency, AbstractDependency)):
                yield item.fs_path, is_output
