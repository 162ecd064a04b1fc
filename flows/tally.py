"""What became of a model's rows, stage by stage, as its reports have it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.paths import STAGES, Paths
from tasks.shards import read_json

# A stage's rows in and out; None where it has none to speak of.
Rows = tuple[int | None, int | None]

# The stages' reports that are there, by stage.
Reports = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One stage: when it last ran (seconds since the epoch), how long it took, its rows, and where to look.

    None stands for what is not known, on a machine where the stage did not run for instance.
    """

    stage: str
    ran_at: float | None
    seconds: float | None
    rows_in: int | None
    rows_out: int | None
    look: Path | None


def steps(paths: Paths) -> list[Step]:
    """Every stage in its order, those that have not run among them."""
    found = reports(paths)
    return [_step(paths, stage, found) for stage in STAGES]


def reports(paths: Paths) -> Reports:
    """The stages' reports that are there, by stage."""
    return {stage: read_json(paths.report(stage)) for stage in STAGES if paths.report(stage).exists()}


def _step(paths: Paths, stage: str, found: Reports) -> Step:
    measured = paths.measured(stage)
    rows_in, rows_out = _ROWS[stage](found) if stage in found else (None, None)
    ran = measured.exists()
    return Step(
        stage,
        measured.stat().st_mtime if ran else None,
        read_json(measured)["wall_seconds"] if ran else None,
        rows_in,
        rows_out,
        next((place for place in _places(paths, stage) if place.exists()), None),
    )


def _places(paths: Paths, stage: str) -> list[Path]:
    """Where to look at what a stage did, the best for people first."""
    best = {"validate": paths.reports / "data_docs" / "index.html", "deploy": paths.page("card")}
    return [best.get(stage, paths.page(stage)), paths.report(stage)]


def _collect(found: Reports) -> Rows:
    return found["collect"]["read"], found["collect"]["rows"]


def _validate(found: Reports) -> Rows:
    return found["validate"]["rows"]["collected"], found["validate"]["rows"]["valid"]


def _clean(found: Reports) -> Rows:
    return found["clean"]["rows_in"], found["clean"]["rows_kept"]


def _tokenize(found: Reports) -> Rows:
    num_rows = sum(split["rows"] for split in found["tokenize"]["splits"].values())
    return num_rows, num_rows


def _train(found: Reports) -> Rows:
    return (found["tokenize"]["splits"]["train"]["rows"] if "tokenize" in found else None), None


def _export(found: Reports) -> Rows:
    return found["export"]["checked_rows"], None


def _evaluate(found: Reports) -> Rows:
    return found["evaluate"]["rows"]["test"], None


def _deploy(found: Reports) -> Rows:
    return None, None


_ROWS: Mapping[str, Callable[[Reports], Rows]] = {
    "collect": _collect,
    "validate": _validate,
    "clean": _clean,
    "tokenize": _tokenize,
    "train": _train,
    "export": _export,
    "evaluate": _evaluate,
    "deploy": _deploy,
}
