"""reports/index.html: one page over all models, and each model's card as a page.

They tell when things were made, so they are no stage's outputs and not in Git.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from flows.store import current
from flows.tally import Step, reports, steps
from tasks import problems
from tasks.deploy import higher_is_better
from tasks.errors import ReleaseError
from tasks.pages import render
from tasks.params import Model, load
from tasks.paths import STAGES, Paths
from tasks.release import CARD, Release, read_release
from tasks.shards import read_json, write_text


@dataclass(frozen=True)
class Figure:
    """A figure with its interval, and the limit that it has to keep, if there is one."""

    name: str
    found: Mapping[str, float | None]
    limit: str = ""


@dataclass(frozen=True)
class Entry:
    """What the page says of one model. What is not there yet is None, or empty."""

    name: str
    purpose: str
    release: Release | None
    notes: Sequence[Markup]
    in_use: str | None
    made: str | None
    headline: str | None
    figures: Sequence[Figure]
    baselines: Sequence[Figure]
    flow: Sequence[tuple[str, int, str]]
    splits: Mapping[str, int]
    serving: Mapping[str, Any] | None
    steps: Sequence[tuple[Step, str | None, str | None]]
    links: Mapping[str, str]


def build_index(root: Path) -> Path:
    """Write the pages from whatever there is; give the index's path. Raises ParamsError where params.yaml is wrong."""
    page = root / "reports" / "index.html"
    write_text(page, render("index.html", entries=entries_of(root), live={}, tried={}, outside={}))
    return page


def entries_of(root: Path) -> list[Entry]:
    """What the page says of every model of params.yaml. Raises ParamsError where that is wrong."""
    models = load(root / "params.yaml").models
    return [_entry(Paths(name, root), params, root / "reports") for name, params in models.items()]


def _entry(paths: Paths, params: Model, folder: Path) -> Entry:
    found, told = reports(paths), steps(paths)
    release, in_use, notes = None, None, _progress_notes(paths, found)
    try:
        release = read_release(paths.release) if paths.release.exists() else None
        in_use = current(paths.model, paths.root)
    except ReleaseError as error:
        notes.append(str(error))
    headline, figures, baselines = _figures(release, found.get("evaluate"), params)
    ran_at = [step.ran_at for step in told if step.ran_at is not None]
    serving = paths.measured("serving")
    return Entry(
        name=paths.model,
        purpose=params.deploy.card.purpose,
        release=release,
        notes=[_with_code(note) for note in notes],
        in_use=in_use.version if in_use else None,
        made=_moment(max(ran_at, default=None)),
        headline=headline,
        figures=figures,
        baselines=baselines,
        flow=_flow(found),
        splits=found.get("evaluate", {}).get("rows", {}),
        serving=read_json(serving) if serving.exists() else None,
        steps=[(step, _moment(step.ran_at), _link(step.look, folder)) for step in told],
        links=_links(paths, folder),
    )


def _progress_notes(paths: Paths, found: Mapping[str, Any]) -> list[str]:
    """What stands in the way of a release: nothing was run yet, or a stage stopped the line."""
    if not found:
        return [f"Nothing has been made yet: `mill run {paths.model}` does it."]
    stopped = list(found.get("validate", {}).get("stopped", []))
    missing = [stage for stage in STAGES if stage not in found]
    if missing and not stopped:
        return [f"The line has not come past {missing[0]} yet: `mill run {paths.model}` goes on."]
    return stopped


def _figures(
    release: Release | None, evaluation: Mapping[str, Any] | None, params: Model
) -> tuple[str | None, list[Figure], list[Figure]]:
    """The headline metric's name, the figures that the gate looks at with it, and the baselines' headline figures."""
    if evaluation is None:
        return None, [], []
    headline = str(evaluation["headline_metric"])
    floors = release.manifest["parameters"]["deploy"]["floors"] if release else params.deploy.floors
    names = [headline, *(name for name in sorted(floors) if name != headline and name in evaluation["metrics"])]
    figures = [Figure(name, evaluation["metrics"][name], _limit(name, floors, params)) for name in names]
    baselines = [
        Figure(name, baseline["metrics"][headline]) for name, baseline in sorted(evaluation["baselines"].items())
    ]
    return headline, figures, baselines


def _limit(name: str, floors: Mapping[str, float], params: Model) -> str:
    if name not in floors:
        return ""
    return f"{'≥' if higher_is_better(name, problems.load(params.problem)) else '≤'} {floors[name]:g}"


def _flow(found: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """The rows from stage to stage: a word for them, how many, and what became of the others."""
    flow = []
    if "collect" in found:
        flow.append(("collected", found["collect"]["rows"], ""))
    if "validate" in found:
        rows = found["validate"]["rows"]
        flow.append(("valid", rows["valid"], f"{rows['quarantined']:,} in quarantine"))
    if "clean" in found:
        kept = found["clean"]["rows_kept"]
        flow.append(("clean", kept, f"{found['clean']['rows_in'] - kept:,} dropped"))
    return flow


def _links(paths: Paths, folder: Path) -> dict[str, str]:
    """Pages to go on to, by what they are; the card is rendered here, because browsers show no Markdown."""
    places = {
        "Evaluation": paths.page("evaluate"),
        "Data contract": paths.reports / "data_docs" / "index.html",
        "Model card": _card_page(paths),
    }
    links = {name: _link(place, folder) for name, place in places.items() if place is not None and place.exists()}
    return {name: link for name, link in links.items() if link}


def _card_page(paths: Paths) -> Path | None:
    from markdown_it import MarkdownIt

    card = paths.release / CARD
    if not card.exists():
        return None
    _, _, text = card.read_text(encoding="utf-8").removeprefix("---\n").partition("\n---\n")
    # Markup in the card's own words is shown as it is written.
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    write_text(paths.page("card"), render("card.html", model=paths.model, body=Markup(body)))  # noqa: S704
    return paths.page("card")


def _link(place: Path | None, folder: Path) -> str | None:
    """A link that works from file:// as well, wherever the repository stands."""
    return None if place is None else Path(os.path.relpath(place, folder)).as_posix()


def _with_code(message: str) -> Markup:
    """A message as a page shows it: what stands between backticks is code."""
    parts = message.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def _moment(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    moment = datetime.fromtimestamp(seconds).astimezone()
    return f"{moment.day} {moment:%B %Y, %H:%M}"
