"""The versions in use, loaded, and replaced while requests go on.

A new version's hashes are checked, it is loaded and answers its golden rows, and only then takes over; the one before
answers what it has taken, and then goes. A version that fails stays out, and the one before goes on.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tasks.answers import Answerer, open_answerer
from tasks.errors import DataError, ReleaseError, did_you_mean
from tasks.golden import differences
from tasks.problems import Problem
from tasks.release import GOLDEN, Release, open_release
from tasks.serving.batcher import Batcher
from tasks.serving.settings import Serving
from tasks.shards import MANIFEST, read_json, sha256_of

log = logging.getLogger(__name__)

# How often live.json is looked at: a rollback is to be in use within two seconds.
_LOOK_SECONDS = 0.25

# A row costs something beyond its characters.
_ROW_COST = 20.0


class UnknownModel(Exception):
    """No model of that name is in use."""


@dataclass(frozen=True)
class Served:
    """One version of one model, ready to answer."""

    model: str
    release: Release
    answerer: Answerer
    batcher: Batcher
    entry: Mapping[str, Any]

    @property
    def version(self) -> str:
        """What the answers carry."""
        return self.release.version

    @property
    def problem(self) -> Problem:
        return self.answerer.runtime.problem


class Live:
    """The models of live.json below `root`, by name."""

    def __init__(self, root: Path, serving: Serving) -> None:
        self._root = root
        self._serving = serving
        self._served: dict[str, Served] = {}
        self._failures: dict[str, str] = {}
        self._refused: dict[str, Mapping[str, Any]] = {}  # entries that failed; tried again when they change
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="live", daemon=True)
        self.num_swaps = 0

    @property
    def models(self) -> list[str]:
        return sorted(self._served)

    @property
    def failures(self) -> dict[str, str]:
        """The versions that were to take over and could not: model, reason."""
        return dict(self._failures)

    @property
    def served(self) -> list[Served]:
        return [served for _, served in sorted(self._served.items())]

    def get(self, model: str) -> Served:
        """The version that answers now. Raises UnknownModel with a sentence."""
        served = self._served.get(model)
        if served is None:
            known = ", ".join(self.models) or "none"
            raise UnknownModel(f"No model {model!r} is in use.{did_you_mean(model, self.models)} In use: {known}.")
        return served

    def start(self) -> None:
        """Load what is in use, then follow live.json from a thread."""
        self.refresh()
        self._watcher.start()

    def close(self) -> None:
        """Answer what waits, and stop."""
        self._stopping.set()
        if self._watcher.ident is not None:
            self._watcher.join()
        for served in self._served.values():
            served.batcher.close()

    def refresh(self) -> None:
        """Make what is served what live.json says."""
        try:
            entries = _read(self._root / ".mill" / "live.json")
        except DataError as error:
            self._failures["live.json"] = str(error)
            return
        self._failures.pop("live.json", None)
        for model in set(self._served) - set(entries):
            log.info("out of use", extra={"model": model})
            self._retire(self._served.pop(model))
        for model, entry in sorted(entries.items()):
            if model in self._served and self._served[model].entry == entry:
                self._failures.pop(model, None)
                self._refused.pop(model, None)
            elif self._refused.get(model) != entry:
                self._replace(model, entry)

    def _replace(self, model: str, entry: Mapping[str, Any]) -> None:
        try:
            served = _open(self._root, model, entry, self._serving)
        except (ReleaseError, DataError) as error:
            self._failures[model], self._refused[model] = str(error), entry
            log.error("stays out", extra={"model": model, "reason": str(error)})
            return
        before = self._served.get(model)
        self._served[model] = served
        self._failures.pop(model, None)
        self._refused.pop(model, None)
        self.num_swaps += 1
        log.info("in use", extra={"model": model, "version": served.version})
        if before is not None:
            self._retire(before)

    @staticmethod
    def _retire(served: Served) -> None:
        # Beside the watcher: the next swap does not wait for a long queue.
        threading.Thread(target=served.batcher.close, name=f"retire-{served.version}", daemon=True).start()

    def _watch(self) -> None:
        seen = _state(self._root / ".mill" / "live.json")
        while not self._stopping.wait(_LOOK_SECONDS):
            now = _state(self._root / ".mill" / "live.json")
            if now != seen:
                seen = now
                self.refresh()


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.exists() else {}


def _open(root: Path, model: str, entry: Mapping[str, Any], serving: Serving) -> Served:
    """Load one version. Raises ReleaseError or DataError where it is not whole, or does not compute what it should."""
    try:
        folder, manifest_sha256 = root / str(entry["folder"]), str(entry["manifest_sha256"])
    except (KeyError, TypeError):
        raise ReleaseError(
            f"{root / '.mill' / 'live.json'}: the entry of {model} is damaged. Run `mill rollback`."
        ) from None
    release = open_release(folder, mend=f"`mill rollback {model}` puts another version in use.")
    if sha256_of(folder / MANIFEST) != manifest_sha256:
        raise ReleaseError(f"{folder / MANIFEST} is not the one that was put in use. Run `mill rollback {model}`.")
    answerer = open_answerer(release, threads=serving.threads or os.cpu_count() or 1)
    _check_canaries(release, answerer, serving.swap_seconds)
    inputs = answerer.runtime.problem.inputs

    def lengths(rows: pl.DataFrame) -> list[float]:
        chars = pl.sum_horizontal(pl.col(name).cast(pl.String).str.len_chars() for name in inputs)
        # What is longer than the model reads costs no more.
        return (
            rows.select((chars.clip(upper_bound=8 * answerer.runtime.max_tokens) + _ROW_COST).cast(pl.Float64))
            .to_series()
            .to_list()
        )

    batcher = Batcher(
        lambda rows: answerer.traced(rows, serving.batch_rows),
        lengths,
        batch_rows=serving.batch_rows,
        wait_seconds=serving.batch_wait_ms / 1000,
        queue_rows=serving.queue_rows,
        queue_seconds=serving.queue_seconds,
        name=f"{model}-{release.version}",
    )
    return Served(model, release, answerer, batcher, entry)


def _check_canaries(release: Release, answerer: Answerer, swap_seconds: float) -> None:
    started = time.monotonic()
    found = differences(read_json(release.folder / GOLDEN), answerer.runtime, answerer.runtime.problem)
    seconds = time.monotonic() - started
    if found:
        raise ReleaseError(f"{release.folder} does not answer as it did where it was made. {found[0]}")
    if seconds > swap_seconds:
        raise ReleaseError(
            f"{release.folder} took {seconds:.1f} s for its golden rows; flows.serve.swap_seconds allows "
            f"{swap_seconds:g}."
        )
