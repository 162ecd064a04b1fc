"""What became of a model's rows, stage by stage, as its reports have it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.paths import STAGES, Paths
from tasks.shards import read_json

# A stage's rows in and out by its report; None where a stage has no rows to speak of.
Rows = tuple[int | None, int | None]


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
    return [_step(paths, stage) for stage in STAGES]


def reports(paths: Paths) -> dict[str, Any]:
    """The stages' reports that are there, by stage."""
    return {stage: read_json(paths.report(stage)) for stage in STAGES if paths.report(stage).exists()}


def _step(paths: Paths, stage: str) -> Step:
    measured, report = paths.measured(stage), paths.report(stage)
    rows_in, rows_out = _ROWS[stage](read_json(report)) if report.exists() else (None, None)
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


def _tokenize_rows(report: Mapping[str, Any]) -> Rows:
    num_rows = sum(split["rows"] for split in report["splits"].values())
    return num_rows, num_rows


_ROWS: dict[str, Callable[[Mapping[str, Any]], Rows]] = {
    "collect": lambda report: (report["read"], report["rows"]),
    "validate": lambda report: (report["rows"]["collected"], report["rows"]["valid"]),
    "clean": lambda report: (report["rows_in"], report["rows_kept"]),
    "tokenize": _tokenize_rows,
    "train": lambda report: (None, None),
    "export": lambda report: (report["checked_rows"], None),
    "evaluate": lambda report: (report["rows"]["test"], None),
    "deploy": lambda report: (None, None),
}
