"""A file inside an installed Python package, which is found without importing it."""

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from tasks.errors import SourceError
from tasks.params import CollectPackage
from tasks.shards import sha256_of
from tasks.sources import Partition, Source
from tasks.sources._formats import read_table


class Package:
    """One partition; the pin is the file's SHA-256 and the distribution's version."""

    def partitions(self, options: CollectPackage, known: Sequence[Partition]) -> list[Partition]:
        path = _file(options)
        version = _version(options.package)
        pin = {"sha256": sha256_of(path), "size": path.stat().st_size, "version": version}
        for partition in known:
            # Another version with the same file is the same data.
            if partition.pin["sha256"] != pin["sha256"]:
                raise SourceError(_another(options, partition, version))
        return list(known) or [Partition(f"{options.package}/{options.file}", pin)]

    def read(self, options: CollectPackage, partition: Partition, rows_per_batch: int) -> Iterator[pl.DataFrame]:
        path = _file(options)
        if sha256_of(path) != partition.pin["sha256"]:
            raise SourceError(_another(options, partition, _version(options.package)))
        yield from read_table(path, partition.name, options.format, rows_per_batch)


def _file(options: CollectPackage) -> Path:
    top, *inside = options.package.split(".")
    try:
        # Only the top package's name is asked for: finding a package inside of another would import the outer one.
        spec = importlib.util.find_spec(top)
    except ValueError:
        spec = None
    folders = [Path(folder, *inside) for folder in (spec and spec.submodule_search_locations) or ()]
    if not folders:
        raise SourceError(
            f"params.yaml: collect.package is {options.package!r}, and no such package is installed here. Please "
            "install it into this environment, and name it in pyproject.toml."
        )
    for folder in folders:
        path = folder / options.file
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            return path
    raise SourceError(
        f"params.yaml: collect.file is {options.file!r}, and the package {options.package} has no such file."
    )


def _version(package: str) -> str:
    """The version of the distribution that brings the package, or of all of them."""
    names = importlib.metadata.packages_distributions().get(package.split(".")[0], [])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names))) or "unknown"


def _another(options: CollectPackage, partition: Partition, version: str) -> str:
    return (
        f"{options.package}/{options.file} is not the file that was pinned: that came from {partition.pin['version']}, "
        f"and {version} is installed. Install the pinned one; or, if the new data is meant to take its place, delete "
        "source.json and run `mill pull`."
    )


SOURCE: Source[CollectPackage] = Package()
