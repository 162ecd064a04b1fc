"""What a stage leaves in Prefect beside its task run: its rows, its metrics with intervals, links to its reports."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.addresses import Portal, address_of
from flows.tally import Reports, reports, steps
from tasks.paths import STAGES, Paths

Table = list[dict[str, Any]]

# Where `mill retrain` keeps the reports of its model, which it makes in a folder that goes: …/<model>/<time>.
KEPT_REPORTS = "MILL_KEPT_REPORTS"


def leave_artifacts(root: Path, model: str, stage: str) -> None:
    """Make the artifacts of a model's stage in the task run that this thread is in; none for a stage without reports.

    Those of one stage have one key at every run, so that Prefect keeps their history.
    """
    from prefect.artifacts import create_link_artifact, create_table_artifact

    if stage not in STAGES:
        return
    paths = Paths(model, root.resolve())
    found = reports(paths)
    if rows := tally(paths, stage, found):
        create_table_artifact(rows, key=_key(model, stage, "rows"), description=f"What became of {model}'s rows")
    if stage == "evaluate" and stage in found:
        create_table_artifact(
            metrics(found[stage]), key=_key(model, stage, "metrics"), description=f"{model} on the held-out rows"
        )
    portal = Portal.of(root)
    for name, place in _places(paths, stage):
        if lasting := _lasting(paths, place):
            text = str(place.relative_to(paths.root))
            create_link_artifact(address_of(lasting, portal), link_text=text, key=_key(model, stage, name))


def tally(paths: Paths, stage: str, found: Reports) -> Table:
    """A stage's rows: in, out, and what became of the others."""
    step = next(step for step in steps(paths) if step.stage == stage)
    table: Table = [
        {"what": what, "rows": rows}
        for what, rows in (("rows in", step.rows_in), ("rows out", step.rows_out))
        if rows is not None
    ]
    return table + [{"what": what, "rows": rows} for what, rows in _lost(stage, found).items() if rows]


def metrics(evaluation: Mapping[str, Any]) -> Table:
    """Each metric with its confidence interval, and the headline metric of each baseline."""
    headline = evaluation["headline_metric"]
    table = [_row(name, figures) for name, figures in sorted(evaluation["metrics"].items())]
    for name, baseline in sorted(evaluation["baselines"].items()):
        table.append(_row(f"{headline} of the baseline {name}", baseline["metrics"][headline]))
    return table


def _row(name: str, figures: Mapping[str, float | None]) -> dict[str, Any]:
    return {"metric": name, **{key: figures[key] for key in ("value", "low", "high")}}


def _lost(stage: str, found: Reports) -> Mapping[str, int]:
    if stage == "validate" and stage in found:
        return {"in quarantine": found[stage]["rows"]["quarantined"]}
    if stage == "clean" and stage in found:
        return {f"dropped: {reason}": rows for reason, rows in found[stage]["dropped"].items()}
    return {}


def _places(paths: Paths, stage: str) -> Iterator[tuple[str, Path]]:
    """The stage's reports that are there, each with a word for its artifact's key."""
    candidates: Sequence[tuple[str, Path]] = [("page", paths.page(stage)), ("report", paths.report(stage))]
    if stage == "validate":
        candidates = [("data-docs", paths.reports / "data_docs" / "index.html"), *candidates]
    return ((name, place) for name, place in candidates if place.exists())


def _lasting(paths: Paths, place: Path) -> Path | None:
    """Where a report will stand when the run is over; None where it goes with the folder."""
    kept = os.environ.get(KEPT_REPORTS)
    if not kept:
        return place
    return Path(kept) / place.relative_to(paths.reports) if Path(kept).parent.name == paths.model else None


def _key(*words: str) -> str:
    """A key as Prefect wants it: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")
