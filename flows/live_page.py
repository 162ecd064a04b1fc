"""What the page of the running server adds to reports/index.html: versions over time, traffic, drift, and a trial."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from flows.git import git
from flows.landing import PROMOTE
from flows.monitored import Watched
from flows.registry import Version, champion, decisions, told_at, versions
from flows.tags import Tag, promotions
from flows.worktree import home_of
from tasks.attribution import Part
from tasks.paths import Paths
from tasks.shards import read_json
from tasks.timeline import Bar, Event, bars, timeline
from tasks.traffic import Stretch, stretches

if TYPE_CHECKING:
    from tasks.journal import Journal

_STRETCH_US = 30 * 60 * 1_000_000
_NUM_STRETCHES = 48
_MOST_EVENTS = 24
_MOST_ROWS = 8
_MOST_WINDOWS = 48
_MOST_SLICES = 4

_WORDS = {
    "promoted": "promoted",
    "keep": "kept out",
    "refused": "refused",
    "ask": "asks a person",
    "registered": "registered",
    "rollback": "back in use",
}


@dataclass(frozen=True)
class Happened:
    """One decision, a version that no decision stands behind, or a rollback: when, what came of it, the gate's page."""

    when: datetime
    outcome: str  # a key of _WORDS
    name: str
    sentence: str
    found: Mapping[str, Any] | None  # metric, value, low, high
    page: str | None

    @property
    def word(self) -> str:
        return _WORDS[self.outcome]


@dataclass(frozen=True)
class Tried:
    """What a person asked on the page, and what came back: the answer with its words, or why there is none."""

    inputs: Mapping[str, str]
    answer: Mapping[str, Any] | None = None
    parts: Sequence[Part] = ()
    reason: str = ""
    unexplained: str = ""  # why there are no parts

    @property
    def weights(self) -> list[tuple[str, int, bool]]:
        """Each part with how strongly it counts, 0 to 100 of the strongest, and whether for the answer."""
        strongest = max((abs(part.effect) for part in self.parts), default=0.0) or 1.0
        return [(part.text, round(100 * abs(part.effect) / strongest), part.effect >= 0) for part in self.parts]


@dataclass(frozen=True)
class Drift:
    """What the monitor has found last, with its windows over time; pages are below /reports/."""

    verdict: str
    sentence: str
    windows: Markup
    num_windows: int
    quality: Mapping[str, Any]  # as labels say it, and of how many; tasks/quality.py
    page: str


@dataclass(frozen=True)
class Compared:
    """The newest challenger that was compared with a champion, on held-out rows that neither had learned from."""

    name: str  # as in Happened
    champion: str  # its tag
    metric: str
    higher_is_better: bool
    parts: Sequence[Mapping[str, Any]]  # all rows, then the slices that changed most, as tasks/gate_report.py has them


@dataclass(frozen=True)
class LiveModel:
    """One model as it is served now."""

    champion: Version | None
    trouble: str
    history: Markup
    happened: Sequence[Happened]
    compared: Compared | None
    num_answers: int
    traffic: Markup
    latency: Markup
    latency_said: str
    drift: Drift | None
    inputs: Sequence[str]
    explains: bool


def live_model(
    root: Path, model: str, journal: "Journal", *, inputs: Sequence[str], explains: bool, trouble: str
) -> LiveModel:
    """All that the page says of a model besides its line. `trouble` is why its newest version is not in use, if so."""
    home = home_of(root)
    now, every = champion(home, model), _happened(home, model)
    found = _traffic(journal, model)
    return LiveModel(
        champion=now,
        trouble=trouble,
        history=_history(every[-_MOST_EVENTS:]),
        happened=every[::-1][:_MOST_ROWS],
        compared=newest_comparison(home, model),
        num_answers=sum(one.num_answers for one in found),
        traffic=bars([Bar(one.num_answers, _told(one, "answers")) for one in found], "Answers each half hour"),
        latency=bars([Bar(one.p99_ms or 0.0, _told(one, "latency")) for one in found], "Latency, p99 in ms"),
        latency_said=_latency_said(found),
        drift=_drift(root, model),
        inputs=inputs,
        explains=explains,
    )


def newest_comparison(home: Path, model: str) -> Compared | None:
    """What the gate saw when it last held two versions beside each other; None where it never did."""
    numbers = {version.commit: version.number for version in versions(home, model)}
    for decision in reversed(decisions(home, model)):
        report = told_at(home, decision["commit"], model, by="gate")
        found = report.get("comparison")
        # A release that its floors refuse never comes to the gate: its commit has the report of one before it.
        if not found or report["challenger"]["version"] != decision.get("challenger"):
            continue
        known = [part for part in found["slices"] if (part["difference"] or {}).get("value") is not None]
        most = sorted(known, key=lambda part: -abs(part["difference"]["value"]))[:_MOST_SLICES]
        return Compared(
            numbers.get(decision["commit"], str(decision["challenger"])),
            report["champion"]["tag"],
            report["metric"],
            report["higher_is_better"],
            [{**found, "slice": "all", "value": "rows"}, *most],
        )
    return None


def _drift(root: Path, model: str) -> Drift | None:
    """None where no monitor has looked yet."""
    page, summary = Paths(model, root).page("monitor"), Watched(root, model).summary
    if not (page.exists() and summary.exists()):
        return None
    told = read_json(summary)
    windows = told["windows"][-_MOST_WINDOWS:]
    shown = [Bar(window["drift"], _window_told(window), window["verdict"]) for window in windows]
    return Drift(
        told["verdict"],
        told["sentence"],
        bars(shown, "Drift, window by window, in thresholds", limit=1.0),
        len(windows),
        told["quality"],
        page.relative_to(root / "reports").as_posix(),
    )


def _window_told(window: Mapping[str, Any]) -> str:
    ended, moved = datetime.fromtimestamp(window["at_us"] / 1e6, UTC), ", ".join(window["moved"]) or "nothing"
    return (
        f"Window {window['number']}, {window['rows']:,} predictions of {window['version']} up to "
        f"{ended:%d %B, %H:%M} UTC: {window['verdict']}. Drifted: {moved}."
    )


def _traffic(journal: "Journal", model: str) -> list[Stretch]:
    """The last day, by half hours that begin at whole ones."""
    now_us = time.time_ns() // 1000
    since_us = (now_us // _STRETCH_US + 1 - _NUM_STRETCHES) * _STRETCH_US
    counts = journal.traffic(model, since_us=since_us, width_us=_STRETCH_US)
    latencies = journal.latencies(model, since_us=since_us)
    return stretches(counts, latencies, since_us=since_us, width_us=_STRETCH_US, num=_NUM_STRETCHES)


def _happened(home: Path, model: str) -> list[Happened]:
    """What was decided about the model's challengers, what was put in use, and versions made by hand, in order.

    A decision that a promotion followed is told as that promotion, whoever promoted and whatever the gate had said.
    """
    pages, made = _gate_pages(home, model), []
    known = {version.commit: version for version in versions(home, model)}
    decided, moves = decisions(home, model), promotions(home, model)
    followed = _promotions_of(decided, moves)
    for decision in decided:
        commit, version, move = decision["commit"], known.get(decision["commit"]), followed.get(decision["tag"])
        told = told_at(home, commit, model)
        outcome = "refused" if told.get("verdict") == "refused" else str(decision["verdict"])
        name = version.number if version else decision["when"].strftime("%d %b")
        one = Happened(
            decision["when"],
            outcome if outcome in _WORDS else "registered",
            name,
            str(decision["sentence"]),
            version.metric if version else told.get("headline"),
            pages.get(commit),
        )
        if move is not None and decision["verdict"] == PROMOTE and "overrides" not in move.facts:
            one = replace(one, outcome="promoted")  # by the gate, whose sentence says more than the tag
        elif move is not None:
            one = replace(one, when=move.when, outcome="promoted", sentence=_why(move))
        made.append(one)
    for move in moves:
        if move not in followed.values():
            version = known.get(move.commit)
            name, metric = (version.number, version.metric) if version else (move.commit[:10], None)
            outcome = "rollback" if move.facts.get("rollback") else "promoted"
            made.append(Happened(move.when, outcome, name, _why(move), metric, None))
    told_of = {decision["commit"] for decision in decided} | {move.commit for move in moves}
    made += [
        Happened(version.when, "registered", version.number, version.why, version.metric, None)
        for version in known.values()
        if version.commit not in told_of
    ]
    return sorted(made, key=lambda one: one.when)


def _promotions_of(decided: Sequence[Mapping[str, Any]], moves: Sequence[Tag]) -> dict[str, Tag]:
    """The first promotion after a decision, by the decision's tag: of several about a commit the last one before it."""
    found: dict[str, Tag] = {}
    for move in moves:
        before = [one for one in decided if one["commit"] == move.commit and one["when"] <= move.when]
        if before and not move.facts.get("rollback"):
            found.setdefault(before[-1]["tag"], move)
    return found


def _why(move: Tag) -> str:
    how = "forced: " if move.facts.get("overrides") else ""
    return f"{how}{move.facts.get('why') or move.sentence}"


def _gate_pages(home: Path, model: str) -> dict[str, str]:
    """The gate's pages that are kept, by the commit that they decided about."""
    said = git(home, "for-each-ref", "--format=%(objectname) %(refname:strip=3)", f"refs/heads/retrain/{model}/")
    folder, found = home / ".mill" / "retrain" / "reports", {}
    for commit, _, name in (line.partition(" ") for line in said.splitlines()):
        if (folder / name / "gate.html").is_file():
            found[commit] = f"{name}/gate.html"
    return found


def _history(every: Sequence[Happened]) -> Markup:
    if not every:
        return Markup("")
    events = [
        Event(one.name, one.outcome, f"{one.when:%d %B %Y, %H:%M}, {one.word}. {one.sentence}", _interval(one.found))
        for one in every
    ]
    return timeline(events, "The metric of each version with its interval, in their order")


def _interval(found: Mapping[str, Any] | None) -> dict[str, float | None] | None:
    return None if found is None else {name: found.get(name) for name in ("value", "low", "high")}


def _told(one: Stretch, what: str) -> str:
    began = datetime.fromtimestamp(one.began_us / 1e6, UTC)
    if what == "answers" or one.p99_ms is None:
        return f"{began:%d %B, %H:%M} UTC: {one.num_answers:,} answers"
    return f"{began:%d %B, %H:%M} UTC: p50 {one.p50_ms:.1f} ms, p99 {one.p99_ms:.1f} ms"


def _latency_said(found: Sequence[Stretch]) -> str:
    last = next((one for one in reversed(found) if one.p99_ms is not None), None)
    if last is None:
        return ""
    return f"Last: p50 {last.p50_ms:.1f} ms, p99 {last.p99_ms:.1f} ms over {last.num_answers:,} answers."
