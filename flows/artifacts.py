"""What a stage leaves in Prefect: its outputs, its rows, its metrics with intervals, links to its reports."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.addresses import Portal, address_of
from flows.stages import Node
from flows.tally import Reports, reports, steps
from tasks.paths import STAGES, Paths

Table = list[dict[str, Any]]

# Where `mill retrain` keeps the reports of its model, which it makes in a folder that goes: …/<model>/<time>.
KEPT_REPORTS = "MILL_KEPT_REPORTS"


@dataclass(frozen=True)
class Artifact:
    """A table, or a link where there is none. Those of a stage have one key at every run: Prefect keeps its history."""

    key: str
    text: str
    table: Table = field(default_factory=list)
    link: str = ""


def artifacts_of(root: Path, node: Node, model: str | None, outputs: Table, portal: Portal | None) -> list[Artifact]:
    """The artifacts of a stage that has succeeded: its outputs, and what the reports say where it is one of a model's.

    `outputs` are what it has made, as DVC has recorded it; links lead to the portal where there is one.
    """
    stage, found = node.word, []
    if outputs:
        found.append(Artifact(_key(node.address, "outputs"), f"What {node.address} has made", outputs))
    if model is None or stage not in STAGES:
        return found
    paths = Paths(model, root.resolve())
    said = reports(paths)
    if rows := tally(paths, stage, said):
        found.append(Artifact(_key(model, stage, "rows"), f"What became of {model}'s rows", rows))
    if stage == "evaluate" and stage in said:
        found.append(Artifact(_key(model, stage, "metrics"), f"{model} on the held-out rows", metrics(said[stage])))
    for name, place in _places(paths, stage):
        if lasting := _lasting(paths, place):
            text = place.relative_to(paths.root).as_posix()
            found.append(Artifact(_key(model, stage, name), text, link=address_of(lasting, portal)))
    return found


def leave(artifacts: Iterable[Artifact]) -> None:
    """Make them in the task run that this thread is in."""
    from prefect.artifacts import create_link_artifact, create_table_artifact

    for one in artifacts:
        if one.link:
            create_link_artifact(one.link, link_text=one.text, key=one.key)
        else:
            create_table_artifact(one.table, key=one.key, description=one.text)


def leave_together(artifacts: Mapping[str, Sequence[Artifact]], models: Sequence[str]) -> None:
    """Make a single one of those of many stages, by their addresses, in the flow run that this thread is in.

    For stages that were up to date: one call for each artifact would take longer than the rest of such a run.
    """
    from prefect.artifacts import create_markdown_artifact

    lines = [line for address, found in artifacts.items() for line in (f"## {address}", *map(_as_markdown, found))]
    description = f"What the {len(artifacts)} stages that were up to date had made before"
    create_markdown_artifact("\n\n".join(lines), key=_key("line", *models, "up-to-date"), description=description)


def _as_markdown(artifact: Artifact) -> str:
    if artifact.link:
        return f"[{artifact.text}]({artifact.link})"
    rows = [list(artifact.table[0]), ["---"] * len(artifact.table[0]), *(row.values() for row in artifact.table)]
    cells = (" | ".join("" if value is None else str(value).replace("|", r"\|") for value in row) for row in rows)
    return "\n".join([f"{artifact.text}:\n", *(f"| {row} |" for row in cells)])


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
