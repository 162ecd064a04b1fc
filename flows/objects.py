"""DVC's objects where they are: in its cache or in a remote, read there without a copy, and taken away.

An object is named by the hash of its content, so one that is found is the right one, and several outputs of several
commits may share it.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tasks.errors import MillError

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc_data.hashfile.db import HashFileDB

CACHE = "DVC's cache"

# Opens one file for reading.
Opener = Callable[[], AbstractContextManager[IO[bytes]]]


class StoreAway(MillError):
    """A DVC remote cannot be asked at the moment, or not by this program."""


class Place:
    """The cache, or a remote."""

    def __init__(self, name: str, odb: "HashFileDB") -> None:
        self.name = name
        self._odb = odb

    def has(self, oid: str) -> bool:
        with self._explained():
            return bool(self._odb.exists(oid))

    def size(self, oid: str) -> int:
        """In bytes. Raises StoreAway where it cannot be had, also because the object is not there."""
        with self._explained():
            return int(self._odb.fs.size(self._odb.oid_to_path(oid)) or 0)

    @contextlib.contextmanager
    def open(self, oid: str) -> Iterator[IO[bytes]]:
        with self._explained():
            file = self._odb.fs.open(self._odb.oid_to_path(oid), mode="rb")
        with file:
            yield file

    def all(self) -> list[str]:
        """Every object's name."""
        with self._explained():
            return sorted(self._odb.all())  # type: ignore[no-untyped-call]

    def remove(self, oids: Iterable[str]) -> int:
        """Take objects away; how many of them were there. DVC's memory of what the remote has goes with them."""
        from dvc_data.hashfile.db import get_index

        num_gone = 0
        with self._explained():
            for oid in oids:
                if self._odb.exists(oid):
                    self._odb.fs.remove(self._odb.oid_to_path(oid))
                    num_gone += 1
            if num_gone:
                get_index(self._odb).clear()
        return num_gone

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # what a storage's own library raises where it is away or refuses
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise StoreAway(f"{self.name} cannot be reached: {lines[0]}") from None


class Objects:
    """The cache and every remote of a repository. What is away is skipped in reading, and told in `away`."""

    def __init__(self, repo: "Repo") -> None:
        self.cache = Place(CACHE, repo.cache.local)
        self.away: dict[str, str] = {}
        self._repo = repo
        self._remotes: list[Place] | None = None
        self._listings: dict[str, Mapping[str, str] | None] = {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold DVC's own lock on the repository. Raises StoreAway where another dvc command does."""
        from dvc.lock import LockError

        try:
            self._repo.lock.lock()
        except LockError as error:
            said = str(error).strip().splitlines()[0]
            raise StoreAway(f"Another dvc command runs in this repository; wait for it. DVC says: {said}") from None
        try:
            yield
        finally:
            self._repo.lock.unlock()

    @property
    def runs(self) -> Path:
        """The folder in which DVC remembers what commands have made."""
        return Path(self._repo.stage_cache.cache_dir)

    @property
    def remotes(self) -> list[Place]:
        """Those that could be opened."""
        if self._remotes is None:
            self._remotes = []
            for name in self._repo.config["remote"]:
                place = f"the DVC remote {name}"
                try:
                    remote, odb = self._repo.cloud.get_remote(name), self._repo.cloud.get_remote_odb(name, "mill")
                except Exception as error:  # a package that is missing, or a remote that keeps versions of its own
                    self.away[place] = f"{place} cannot be used here: {str(error).strip().splitlines()[0]}"
                    continue
                if remote.fs.protocol == "local" and not Path(remote.path).is_dir():  # a disk that is not mounted
                    self.away[place] = f"{place} cannot be reached: {remote.path} is not here."
                else:
                    self._remotes.append(Place(place, odb))
        return self._remotes

    def places_of(self, oid: str) -> list[Place]:
        """Where an object is."""
        return [place for place in (self.cache, *self.remotes) if self._has(place, oid)]

    def opener(self, oid: str) -> Opener | None:
        """How to read an object, from the cache rather than a remote; None where it is nowhere to be had."""
        for place in (self.cache, *self._behind()):
            if self._has(place, oid):
                return partial(place.open, oid)
        return None

    def read(self, oid: str) -> bytes | None:
        """A small object whole, as long as its content is what its name says; None where it is nowhere to be had."""
        opener = self.opener(oid)
        if opener is None:
            return None
        with opener() as file:
            content = file.read()
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return content if found == oid.removesuffix(".dir") else None

    def files(self, oid: str) -> Mapping[str, str] | None:
        """The objects of a folder by their place in it; None where its listing is nowhere to be had."""
        if oid not in self._listings:
            content = self.read(oid)
            entries: list[dict[str, Any]] | None = None if content is None else json.loads(content)
            self._listings[oid] = None if entries is None else {one["relpath"]: one["md5"] for one in entries}
        return self._listings[oid]

    def _behind(self) -> Iterator[Place]:
        # A generator: without need no remote is opened.
        yield from self.remotes

    def _has(self, place: Place, oid: str) -> bool:
        try:
            return place.has(oid)
        except StoreAway as error:
            self.away[place.name] = str(error)
            return False


@contextlib.contextmanager
def objects_of(root: Path) -> Iterator[Objects]:
    """The objects of the repository at `root`."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        yield Objects(repo)
