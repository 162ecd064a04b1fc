"""A release on disk: what its manifest promises, and whether the folder keeps it.

The manifest names every file with its size and SHA-256, and whether the release may be used. Its version is a hash of
all that it says, so neither a file nor a verdict changes without another version.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.errors import DataError, ReleaseError
from tasks.shards import MANIFEST, read_json, sha256_of, write_json

CARD = "README.md"
GOLDEN = "golden.json"
REFERENCE = "reference.parquet"

ACCEPTED = "accepted"
REFUSED = "refused"

MEND_WORKSPACE = "`mill run` packs it again; `dvc checkout --force {folder}` restores it."


@dataclass(frozen=True)
class Release:
    """A release whose files are the ones that its manifest names."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def version(self) -> str:
        return str(self.manifest["version"])

    @property
    def accepted(self) -> bool:
        return bool(self.manifest["verdict"] == ACCEPTED)

    @property
    def reasons(self) -> list[str]:
        """Why it was refused: a sentence each, none where it was accepted."""
        return list(self.manifest["reasons"])

    @property
    def files(self) -> list[str]:
        """Every file, the manifest included."""
        return [MANIFEST, *self.manifest["files"]]


def seal(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a folder that is complete, with `facts` (verdict and reasons among them); give it back."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    manifest = {**facts, "files": files}
    manifest["version"] = _version_of(manifest)
    write_json(folder / MANIFEST, manifest)
    return manifest


def read_release(folder: Path, *, mend: str = MEND_WORKSPACE) -> Release:
    """A whole release, accepted or not. Raises ReleaseError with the file that is not what the manifest says.

    `mend` ends the message: what to do about this folder.
    """
    mend = mend.format(folder=folder.as_posix())
    if not folder.is_dir():
        raise ReleaseError(f"{folder} is not here. {mend}")
    if not (folder / MANIFEST).is_file():
        raise ReleaseError(f"{folder} has no {MANIFEST}, so nothing says which files belong to it. {mend}")
    try:
        manifest = read_json(folder / MANIFEST)
        release = Release(folder, manifest)
        told = (release.version, release.accepted, release.reasons, manifest["files"])
    except (DataError, KeyError, TypeError):
        raise ReleaseError(f"{folder / MANIFEST} is damaged: it is not the manifest of a release. {mend}") from None
    if told[0] != _version_of({key: value for key, value in manifest.items() if key != "version"}):
        raise ReleaseError(f"{folder / MANIFEST} was changed after the release was made. {mend}")
    _check_files(folder, told[3], mend)
    return release


def open_release(folder: Path, *, mend: str = MEND_WORKSPACE, forced: bool = False) -> Release:
    """A release that may be used: whole, and accepted. Raises ReleaseError otherwise.

    `forced` takes a refused one as well: a person has said so, and why, where it was promoted.
    """
    release = read_release(folder, mend=mend)
    if not release.accepted and not forced:
        raise ReleaseError(refusal(release))
    return release


def refusal(release: Release) -> str:
    """Why this release must not be used, in a sentence."""
    return f"{release.folder} ({release.version}) was refused: {' '.join(release.reasons)}"


def _check_files(folder: Path, files: Mapping[str, Any], mend: str) -> None:
    for name, entry in files.items():
        # A manifest comes along with a release: a name in it must not lead out of the folder.
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ReleaseError(f"{folder / MANIFEST} names {name!r}, which is outside of the release. {mend}")
        path = folder / name
        if not path.is_file():
            raise ReleaseError(f"{path} is missing; the manifest names it. {mend}")
        if path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
            raise ReleaseError(f"{path} is not the file that the release was made with: its hash is another. {mend}")
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    unknown = sorted(present - set(files) - {MANIFEST})
    if unknown:
        raise ReleaseError(
            f"{folder / unknown[0]} does not belong to the release: the manifest does not name it. {mend}"
        )


def _version_of(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return f"sha-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"
