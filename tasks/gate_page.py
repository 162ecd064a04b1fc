"""The gate's decision as a page and as a note: what was compared, what it shows, and what that has cost."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tasks.gate import Gate
from tasks.pages import axis_over, figure, p_value, render, with_sign, words

VERDICTS = {"promote": "Promote", "keep": "Keep the champion", "ask": "Ask a person"}

_WIDTH, _HEIGHT, _SIDE, _ABOVE = 640, 118, 16, 10
_BAR_WIDTH, _BAR_HEIGHT = 160, 18


def gate_page(
    report: Mapping[str, Any],
    measured: Mapping[str, Any],
    rules: Gate,
    changed: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """The page of one decision. `changed` are rows that got better and worse, with their texts."""
    return render(
        "gate.html",
        report=report,
        measured=measured,
        rules=rules,
        changed={"improved": [], "worsened": [], **changed},
        verdict=VERDICTS[report["verdict"]],
        difference_chart=difference_chart,
        difference_bar=difference_bar,
        p_text=p_text,
        slices_axis=slices_axis,
        uses_strip=uses_strip,
    )


def artifact(report: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """The decision in Markdown, as short as a dashboard wants it."""
    lines = [f"## {VERDICTS[report['verdict']]}", "", str(report["sentence"]), ""]
    found = report["comparison"]
    if found:
        difference = found["difference"]
        interval = f"{with_sign(difference['low'])} to {with_sign(difference['high'])}"
        metric = words(report["metric"])
        lines += [
            "| | |",
            "|---|---|",
            f"| Challenger | {report['challenger']['version']}, {metric} {figure(found['challenger'])} |",
            f"| Champion | {report['champion']['tag']}, {metric} {figure(found['champion'])} |",
            f"| Difference | {with_sign(difference['value'])} ({found['confidence']:.2%} interval {interval}) |",
            f"| Better | p {p_value(found['superiority']['p_value'])}, {found['level']:g} is needed |",
            f"| Within the margin | p {p_value(found['margin']['p_value'])}, {found['level']:g} is needed |",
            f"| Test set | {report['test_set']['name']}, use {report['test_set']['uses_before'] + 1} of "
            f"{report['test_set']['uses']}, {found['rows']:,} rows |",
        ]
    for name, latency in measured["latency_ms"].items():
        lines += ["", f"The {name} takes {latency['p50']:.1f} ms for one row (p99 {latency['p99']:.1f} ms)."]
    return "\n".join(lines)


def difference_chart(difference: Mapping[str, float], margin: float, smallest_gain: float) -> Markup:
    """The difference with its interval, where no difference lies, and where the margin ends."""
    low, high = _ends([difference["low"], difference["high"], 0.0, -margin, smallest_gain])

    def x(number: float) -> float:
        return round(_SIDE + (number - low) / (high - low) * (_WIDTH - 2 * _SIDE), 1)

    labels = [(-margin, f"margin {figure(-margin, 2)}", 30), (0.0, "no difference", 14)]
    marks = Markup("").join(
        Markup(
            '<line class="mark" x1="{x}" x2="{x}" y1="{top}" y2="92"/>'
            '<text x="{at}" y="{y}" class="{side}">{text}</text>'
        ).format(x=x(number), at=_inside(x(number)), side=_side_of(x(number)), y=y, top=y + 5, text=text)
        for number, text, y in labels
    )
    dot = x(difference["value"])
    return Markup(
        '<svg class="difference" viewBox="0 -{above} {w} {h}" role="img" aria-label="{spoken}">'
        '<rect class="beyond" x="0" y="36" width="{edge}" height="56"/>{marks}'
        '<line class="track" x1="0" x2="{w}" y1="64" y2="64"/>'
        '<line class="band" x1="{low}" x2="{high}" y1="64" y2="64"/><circle class="dot" cx="{dot}" cy="64" r="6"/>'
        '<text x="{at}" y="86" class="{side} value">{value}</text>'
        '<text x="0" y="110">← worse</text><text x="{w}" y="110" class="end">better →</text></svg>'
    ).format(
        w=_WIDTH,
        h=_HEIGHT + _ABOVE,
        above=_ABOVE,
        spoken=f"{figure(difference['value'])}, interval {figure(difference['low'])} to {figure(difference['high'])}",
        edge=max(x(-margin), 0),
        marks=marks,
        low=x(difference["low"]),
        high=x(difference["high"]),
        dot=dot,
        at=_inside(dot),
        side=_side_of(dot),
        value=with_sign(difference["value"]),
    )


def difference_bar(difference: Mapping[str, float | None], axis: tuple[float, float], margin: float) -> Markup:
    """A small chart for a table: the interval, the line of no difference, and the margin's."""
    value, low, high = difference["value"], difference["low"], difference["high"]
    if value is None or low is None or high is None:
        return Markup("")

    def x(number: float) -> float:
        share = min(max((number - axis[0]) / (axis[1] - axis[0]), 0.0), 1.0)
        return round(5 + share * (_BAR_WIDTH - 10), 1)

    return Markup(
        '<svg class="bar" viewBox="0 0 {w} {h}" role="img" aria-label="{spoken}">'
        '<line class="limit" x1="{margin}" x2="{margin}" y1="0" y2="{h}"/>'
        '<line class="zero" x1="{zero}" x2="{zero}" y1="0" y2="{h}"/>'
        '<line class="band" x1="{low}" x2="{high}" y1="9" y2="9"/>'
        '<circle class="dot" cx="{value}" cy="9" r="3.6"/></svg>'
    ).format(
        w=_BAR_WIDTH,
        h=_BAR_HEIGHT,
        spoken=f"{figure(value)}, interval {figure(low)} to {figure(high)}",
        margin=x(-margin),
        zero=x(0.0),
        low=x(low),
        high=max(x(high), x(low) + 1),
        value=x(value),
    )


def slices_axis(slices: Sequence[Mapping[str, Any]], margin: float) -> tuple[float, float]:
    """One axis for all slices, with the margin on it."""
    known = [part["difference"] for part in slices if part["difference"]]
    return axis_over([*known, {"value": -margin}, {"value": margin}])


def p_text(value: float | None) -> str:
    """A p-value in a table."""
    return "" if value is None else p_value(value).removeprefix("= ")


def uses_strip(test_set: Mapping[str, Any]) -> Markup:
    """A mark for each use of the test set: those before, this one, and those that are left."""
    uses, before, spent = test_set["uses"], test_set["uses_before"], bool(test_set["spent"])
    if uses > 100:
        return Markup("")
    kinds = ["before"] * min(before, uses) + ["now"] * spent
    kinds = (kinds + ["left"] * uses)[: max(uses, len(kinds))]
    marks = Markup("").join(Markup('<span class="{}"></span>').format(kind) for kind in kinds)
    return Markup('<div class="uses" role="img" aria-label="{} of {} uses">{}</div>').format(
        before + spent, uses, marks
    )


def _ends(numbers: Sequence[float | None]) -> tuple[float, float]:
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    span = max(max(known) - min(known), 1e-6)
    return min(known) - 0.06 * span, max(known) + 0.06 * span


def _inside(x: float) -> float:
    return min(max(x, 0.0), float(_WIDTH))


def _side_of(x: float) -> str:
    """A label's anchor, so that it stays within the chart."""
    return "start" if x < 90 else "end" if x > _WIDTH - 90 else "middle"
