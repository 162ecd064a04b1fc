"""One version of one model, brought up so that it may answer: whole, loaded, warm, and proved on its golden rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.answers import Answerer, Traced, open_answerer
from tasks.errors import ReleaseError
from tasks.golden import differences
from tasks.problems import Problem
from tasks.release import GOLDEN, Release, open_release
from tasks.serving.batcher import Batcher
from tasks.serving.lanes import Row, cores, lanes_of, spread
from tasks.serving.settings import Serving
from tasks.shards import MANIFEST, read_json, sha256_of

# A row costs something beyond its characters. Those behind what the model reads are split into tokens and looked
# through for personal data, which took a thirtieth of reading them; of digits alone much more, two seconds a text.
_ROW_COST = 20.0
_CHARS_PER_TOKEN = 8
_COST_BEHIND = 1 / 30

# How much nicer a challenger in the shadow is to the version that people wait for.
_SHADOW_NICENESS = 10


@dataclass(frozen=True)
class Served:
    """One version of one model, ready to answer."""

    model: str
    release: Release
    answerer: Answerer
    batcher: Batcher[Row, Traced]
    entry: Mapping[str, Any]

    @property
    def version(self) -> str:
        """What the answers carry."""
        return self.release.version

    @property
    def problem(self) -> Problem:
        return self.answerer.runtime.problem


def open_served(
    root: Path,
    model: str,
    entry: Mapping[str, Any],
    serving: Serving,
    *,
    in_shadow: bool = False,
    before: Served | None = None,
) -> Served:
    """Load a version. Raises ReleaseError or DataError where it is not whole, or does not compute what it should.

    Where it is the one that answered `before`, that one is still loaded and was proved: a rollback is there at once.
    """
    release = _whole(root, model, entry)
    num_lanes, num_threads = spread(serving.threads or cores())
    if before is not None and before.version == release.version:  # the version is a hash over all its files
        answerer = before.answerer
    else:
        answerer = open_answerer(release, num_threads)
        _check_canaries(release, answerer)
    batcher = Batcher(
        lanes_of(answerer, 1 if in_shadow else num_lanes, serving.batch_rows),
        _cost_of(answerer),
        batch_rows=serving.batch_rows,
        wait_seconds=serving.batch_wait_ms / 1000,
        queue_rows=serving.queue_rows,
        queue_seconds=serving.queue_seconds,
        name=f"{model}-{release.version}",
        niceness=_SHADOW_NICENESS if in_shadow else 0,
    )
    return Served(model, release, answerer, batcher, entry)


def _whole(root: Path, model: str, entry: Mapping[str, Any]) -> Release:
    try:
        folder, manifest_sha256 = root / str(entry["folder"]), str(entry["manifest_sha256"])
    except (KeyError, TypeError):
        raise ReleaseError(f"{root / '.mill'}: the entry of {model} is damaged. Run `mill rollback {model}`.") from None
    mend = f"`mill rollback {model}` puts another version in use."
    release = open_release(folder, mend=mend, forced=bool(entry.get("forced")))
    if sha256_of(folder / MANIFEST) != manifest_sha256:
        raise ReleaseError(f"{folder / MANIFEST} is not the one that was put in use. Run `mill rollback {model}`.")
    return release


def _cost_of(answerer: Answerer) -> Callable[[Row], float]:
    """About what a row costs to compute, beside other rows of the same model."""
    inputs = answerer.runtime.problem.inputs
    most = float(_CHARS_PER_TOKEN * answerer.runtime.max_tokens)

    def cost(row: Row) -> float:
        size = sum(len(value) if isinstance(value, str) else 1 for value in map(row.get, inputs))
        return _ROW_COST + min(most, size) + _COST_BEHIND * max(0.0, size - most)

    return cost


def _check_canaries(release: Release, answerer: Answerer) -> None:
    found = differences(read_json(release.folder / GOLDEN), answerer.runtime, answerer.runtime.problem)
    if found:
        raise ReleaseError(f"{release.folder} does not answer as it did where it was made. {found[0]}")
