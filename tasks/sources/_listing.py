"""From a listing of files or objects to partitions: what is known first, then what is new.

A table is a partition of its own. Pictures and sounds are many and small: those that are new together are one
partition.
"""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.errors import SourceError
from tasks.params import FileFormat
from tasks.sources import Partition
from tasks.sources._formats import MEDIA, changed, one_format

# What proves that a file is the same: a hash or an ETag, and its `size`.
Proof = dict[str, Any]


def partitions_of(found: Mapping[str, Proof], known: Sequence[Partition], declared: FileFormat) -> list[Partition]:
    """The known partitions, whether or not their files are still found, and the new ones in order of name.

    Raises SourceError where a known file is found with another proof.
    """
    pinned = {name: proof for partition in known for name, proof in files_of(partition).items()}
    for name in sorted(pinned.keys() & found.keys()):
        if found[name] != pinned[name]:
            raise SourceError(changed(name))
    new = sorted(found.keys() - pinned.keys())
    if not new:
        return list(known)
    if one_format(new, declared) in MEDIA:
        proofs = {name: found[name] for name in new}
        pin = {"files": proofs, "size": sum(proof["size"] for proof in proofs.values())}
        return [*known, Partition(f"files-{len(known):05d}", pin)]
    return [*known, *(Partition(name, found[name]) for name in new)]


def files_of(partition: Partition) -> dict[str, Proof]:
    """The files of a partition, each with its proof."""
    files: dict[str, Proof] = partition.pin.get("files", {partition.name: partition.pin})
    return files


def may_hold_many(path: str) -> bool:
    """Whether the path is a folder or a glob, so that another file may come before those it has now."""
    place = Path(path)
    return place.is_dir() or (glob.has_magic(path) and not place.exists())
