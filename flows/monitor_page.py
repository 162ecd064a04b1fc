"""reports/<model>/monitor.html: how a model in use fares, for people; and the same for programs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.follow_up import Followed
from flows.monitor_findings import Findings
from flows.monitored import Watched
from flows.params import Monitor
from tasks.descriptors import ANSWERS, CONFIDENCE, EMBEDDING, INPUTS
from tasks.monitor import Subject
from tasks.monitor_report import HTML
from tasks.pages import Line, render
from tasks.paths import Paths
from tasks.shards import write_json, write_text
from tasks.windows import Windows

# The lines of the chart, and what each is the furthest moved of.
_LINES = {"inputs": (INPUTS,), "embedding": (EMBEDDING,), "answers": (ANSWERS, CONFIDENCE)}


def write_page(
    root: Path,
    model: str,
    params: Monitor,
    watched: Watched,
    journal: Windows,
    subject: Subject,
    said: str,
    history: Sequence[Mapping[str, Any]],
    waiting: int,
    findings: Findings,
    followed: Followed,
) -> Path:
    """Write both, and give the page's place. `history` are the last windows, the oldest first."""
    own = [record for record in history if record["version"] == subject.version]
    last = own[-1] if own else None
    page = Paths(model, root).page("monitor")
    watched_page = watched.window(last["number"]) / HTML if last else None
    write_json(
        watched.summary,
        {
            "model": model,
            "version": subject.version,
            "verdict": last["verdict"] if last else "waiting",
            "sentence": said,
            "waiting": waiting,
            "window": params.window,
            "windows": [_brief(record) for record in history],
            "labels": findings.num_labels,
            "quality": findings.quality,
            "selection": findings.selection,
            "shadow": findings.shadow,
            "failures": findings.failures,
            "last": last,
            "to_label": str(followed.wanted) if followed.wanted else None,
        },
    )
    write_text(
        page,
        render(
            "monitor.html",
            model=model,
            version=subject.version,
            params=params,
            said=said,
            sentences=followed.sentences,
            last=last,
            waiting=waiting,
            began=_moment(last["first"]["at_us"]) if last else "",
            ended=_moment(last["last"]["at_us"]) if last else "",
            examples=_examples(last, journal, subject) if last else [],
            drift=_drift_lines(own),
            accuracy=_accuracy_lines(own),
            windows=[{**_brief(record), "ended": _moment(record["last"]["at_us"])} for record in own[::-1][:20]],
            findings=asdict(findings),
            wanted=_relative(followed.wanted, page),
            num_wanted=followed.num_wanted,
            targets=subject.targets,
            evidently=_relative(watched_page, page) if watched_page and watched_page.exists() else None,
        ),
    )
    return page


def _brief(record: Mapping[str, Any]) -> dict[str, Any]:
    """A window in a line: `drift` is by how much the figure that stands out most is past its threshold."""
    return {
        "number": record["number"],
        "version": record["version"],
        "rows": record["rows"],
        "at_us": record["last"]["at_us"],
        "verdict": record["verdict"],
        "drift": round(max((_excess(test) for test in record["tests"]), default=0.0), 3),
        "moved": [test["name"] for test in record["tests"] if test["drifted"]],
        "estimate": record["estimate"],
        "p99_ms": record["latency_ms"].get("p99"),
    }


def _excess(test: Mapping[str, Any]) -> float:
    return float(test["figure"] / max(test["threshold"], 1e-9))


def _drift_lines(records: Sequence[Mapping[str, Any]]) -> list[Line]:
    """How far each kind of thing has moved, window by window, in thresholds."""
    lines = []
    for name, families in _LINES.items():
        points = [
            (float(record["number"]), max(_excess(test) for test in record["tests"] if test["family"] in families))
            for record in records
            if any(test["family"] in families for test in record["tests"])
        ]
        if len(points) > 1:
            lines.append(Line(name, points))
    return lines


def _accuracy_lines(records: Sequence[Mapping[str, Any]]) -> list[Line]:
    estimated = [(float(record["number"]), record["estimate"]) for record in records if record["estimate"]]
    if len(estimated) < 2:
        return []
    return [
        Line(name, [(number, found[key]) for number, found in estimated])
        for name, key in (("estimated", "value"), ("lower end", "low"), ("upper end", "high"))
    ]


def _examples(last: Mapping[str, Any], journal: Windows, subject: Subject) -> list[dict[str, Any]]:
    """The rows that drive the drift, with what the journal still has of them."""
    ids = [example["id"] for example in last["examples"]]
    if not ids:
        return []
    texts = journal.texts(ids, subject.inputs).rows_by_key("id", named=True, unique=True)
    return [
        {**example, "inputs": [str(value) for value in texts[example["id"]].values()]}
        for example in last["examples"]
        if example["id"] in texts
    ]


def _moment(at_us: int) -> str:
    return f"{datetime.fromtimestamp(at_us / 1e6, tz=UTC):%Y-%m-%d %H:%M} UTC"


def _relative(file: Path | None, page: Path) -> str | None:
    return None if file is None else Path(os.path.relpath(file, page.parent)).as_posix()
