"""The objects of DVC's cache that nothing names which has to be kept: found, measured, and taken away.

What a commit or a working tree needs is read from the text of its dvc.lock and .dvc files alone, so that neither a
dvc.yaml that does not load nor a stage that was dropped since makes anything look unused.
"""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.git import git
from flows.merge import LOCK
from tasks.errors import MillError

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc_data.hashfile.db import HashFileDB

# What is running writes to the cache before anything names it, and may run in a checkout that nobody here knows of.
YOUNG_SECONDS = 24 * 3600


class RetentionError(MillError):
    """Nobody can say what is needed, so nothing is taken away."""


@dataclass(frozen=True)
class Unused:
    """Objects that may go: the listings of folders before the files in them."""

    files: tuple[Path, ...]
    num_bytes: int
    num_young: int

    def remove(self) -> None:
        """Take them away. Stopped in between, no listing is left whose files are gone."""
        for file in self.files:
            file.unlink(missing_ok=True)


def named_in_commits(root: Path, commits: Iterable[str]) -> set[str]:
    """The objects that dvc.lock and the .dvc files of these commits name."""
    blobs = set()
    for commit in set(commits):
        for line in git(root, "ls-tree", "-r", "-z", commit).split("\0"):
            facts, _, path = line.partition("\t")
            if _is_of_dvc(path):
                blobs.add(facts.split(" ")[2])
    return {oid for blob in blobs for oid in _named_in(git(root, "cat-file", "blob", blob), f"the blob {blob}")}


def named_in_tree(tree: Path) -> set[str]:
    """The same of the files as they stand in a working tree, committed or not."""
    listed = git(tree, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", f"*{LOCK}", "*.dvc")
    files = [tree / name for name in set(listed.split("\0")) if _is_of_dvc(name) and (tree / name).is_file()]
    return {oid for file in files for oid in _named_in(file.read_text(encoding="utf-8"), str(file))}


def unused(repo: "Repo", named: Iterable[str]) -> Unused:
    """What of the cache neither is named nor stands in a folder that is. What is younger than a day stays.

    Raises RetentionError where a folder's listing is missing that may be needed.
    """
    needed = set(named)
    needed |= {oid for listing in sorted(needed) if listing.endswith(".dir") for oid in _listed(repo, listing)}
    since, found, num_bytes, num_young = time.time() - YOUNG_SECONDS, [], 0, 0
    for odb in _caches(repo):
        for oid in odb.all():  # type: ignore[no-untyped-call]
            file = Path(odb.oid_to_path(oid))
            if oid in needed or not file.is_file():
                continue
            state = file.stat()
            if state.st_mtime > since:
                num_young += 1
                continue
            found.append((not oid.endswith(".dir"), file))
            # A file that the workspace holds by a hard link takes no less room once its name in the cache is gone.
            num_bytes += state.st_size if state.st_nlink == 1 else 0
    return Unused(tuple(file for _, file in sorted(found)), num_bytes, num_young)


def is_shared(repo: "Repo") -> bool:
    """Whether the cache lies elsewhere than in this repository, where others may use it as well."""
    return Path(repo.dvc_dir).resolve() not in Path(repo.cache.local.path).resolve().parents


def _is_of_dvc(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name == LOCK or (name.endswith(".dvc") and name != ".dvc")


def _named_in(text: str, where: str) -> Iterator[str]:
    from dvc.utils.serialize import loads_yaml
    from ruamel.yaml.error import YAMLError

    try:
        found = loads_yaml(text) or {}
        stages: list[Any] = [found, *found.get("stages", {}).values()]
        for stage in stages:
            for out in stage.get("outs", []):
                if out.get("md5"):
                    yield str(out["md5"])
    except (YAMLError, AttributeError, TypeError):
        raise RetentionError(
            f"{where} is no dvc.lock or .dvc file that can be read, so nobody can say what it needs. Nothing was freed."
        ) from None


def _listed(repo: "Repo", oid: str) -> list[str]:
    """The files of a folder, by its listing."""
    for odb in _caches(repo):
        file = Path(odb.oid_to_path(oid))
        if file.is_file():
            return _entries(file.read_bytes(), oid)
    for name in repo.config["remote"]:
        try:
            remote = repo.cloud.get_remote_odb(name, "gc")
            # To ask whether it is there would be answered with no by a remote that is away.
            with remote.fs.open(remote.oid_to_path(oid), mode="rb") as listing:
                return _entries(listing.read(), oid)
        except FileNotFoundError:
            continue
        except RetentionError:
            raise
        except Exception as error:  # what a storage's own library raises where it is away
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise RetentionError(
                f"The listing {oid} is not in DVC's cache, and the remote {name} cannot be asked for it, so nobody can "
                f"say which files it needs. Nothing was freed. The remote says: {lines[0]}"
            ) from None
    return []  # without it its files are of no use, wherever they are


def _entries(content: bytes, oid: str) -> list[str]:
    try:
        return [str(entry.get("md5") or entry["md5-dos2unix"]) for entry in json.loads(content)]
    except (ValueError, KeyError, AttributeError):
        raise RetentionError(
            f"The listing {oid} in DVC's cache is damaged. `dvc fetch` brings it again. Nothing was freed."
        ) from None


def _caches(repo: "Repo") -> list["HashFileDB"]:
    found: list[HashFileDB] = []
    for _, odb in repo.cache.by_scheme():
        if odb is not None and odb not in found:
            found.append(odb)
    return found
