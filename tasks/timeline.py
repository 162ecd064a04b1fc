"""Charts of what happened one after another, as SVG: versions with their intervals, and bars over time.

Like those of tasks/pages.py they take their colours from base.html, and escape what is written in them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tasks.pages import Interval, axis_over

_WIDE, _NARROW = 640, 400
_LEFT, _RIGHT = 52, 12
_TOP, _BOTTOM = 12, 34
_NUM_GRID_LINES = 4


@dataclass(frozen=True)
class Event:
    """Something that happened: its name below the axis, what came of it (a CSS class), and its figure."""

    name: str
    outcome: str
    told: str
    found: Interval | None


@dataclass(frozen=True)
class Bar:
    """A stretch of time: its height, what is said of it, and what it came to (a CSS class)."""

    value: float
    told: str
    outcome: str = ""


def timeline(events: Sequence[Event], label: str, height: int = 220) -> Markup:
    """Each event's figure with its interval, side by side in their order; a cross at the foot where it has none."""
    found = [event.found for event in events if event.found is not None]
    low, high = axis_over(found)
    step = (_WIDE - _LEFT - _RIGHT) / max(len(events), 1)

    def y(value: float) -> float:
        return round(height - _BOTTOM - (value - low) / (high - low) * (height - _TOP - _BOTTOM), 1)

    parts = [_grid(low, high, _WIDE, height)]
    last_named = float("-inf")
    for number, event in enumerate(events):
        x = round(_LEFT + (number + 0.5) * step, 1)
        parts.append(_mark(event, x, y, height))
        if x - last_named >= 52:  # names that would run into each other are left to the title
            last_named = x
            parts.append(Markup('<text x="{}" y="{}" class="middle">{}</text>').format(x, height - 14, event.name))
    return _svg(parts, _WIDE, height, label)


def bars(values: Sequence[Bar], label: str, height: int = 150, limit: float | None = None) -> Markup:
    """A bar for each value from zero up, and a dashed line at the limit where there is one."""
    top = max([bar.value for bar in values] + ([limit] if limit is not None else []), default=0.0)
    _, high = axis_over([{"value": 0.0}, {"value": top or 1.0}])
    step = (_NARROW - _LEFT - _RIGHT) / max(len(values), 1)
    room = height - _TOP - _BOTTOM
    parts = [_grid(0.0, high, _NARROW, height)]
    for number, bar in enumerate(values):
        tall = round(bar.value / high * room, 1)
        parts.append(
            Markup('<rect class="line-0 {}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                bar.outcome,
                round(_LEFT + number * step + 0.1 * step, 1),
                round(height - _BOTTOM - tall, 1),
                round(0.8 * step, 1),
                tall,
                bar.told,
            )
        )
    if limit is not None:
        y = round(height - _BOTTOM - limit / high * room, 1)
        parts.append(
            Markup('<line class="diagonal" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, _NARROW - _RIGHT, y, y)
        )
    return _svg(parts, _NARROW, height, label)


def _mark(event: Event, x: float, y: Callable[[float], float], height: int) -> Markup:
    inside = [Markup("<title>{}</title>").format(event.told)]
    found = event.found
    value = found["value"] if found is not None else None
    if found is None or value is None:
        foot = height - _BOTTOM - 6
        inside.append(Markup('<path d="M{x} {y}l8 8m0 -8l-8 8"/>').format(x=x - 4, y=foot - 4))
    else:
        low, high = found["low"], found["high"]
        if low is not None and high is not None:
            inside.append(Markup('<line x1="{x}" x2="{x}" y1="{a}" y2="{b}"/>').format(x=x, a=y(low), b=y(high)))
        inside.append(Markup('<circle cx="{}" cy="{}" r="4.5"/>').format(x, y(value)))
    return Markup('<g class="event {}">{}</g>').format(event.outcome, Markup("").join(inside))


def _grid(low: float, high: float, width: int, height: int) -> Markup:
    parts = []
    for number in range(_NUM_GRID_LINES + 1):
        share = number / _NUM_GRID_LINES
        y = round(height - _BOTTOM - share * (height - _TOP - _BOTTOM), 1)
        value = low + share * (high - low)
        written = f"{value:,.4g}".replace("-", "−")
        parts.append(
            Markup(
                '<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
                '<text x="{before}" y="{base}" class="end">{written}</text>'
            ).format(left=_LEFT, right=width - _RIGHT, y=y, before=_LEFT - 8, base=y + 4, written=written)
        )
    return Markup("").join(parts)


def _svg(parts: Sequence[Markup], width: int, height: int, label: str) -> Markup:
    return Markup('<svg class="chart timeline" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, label, Markup("").join(parts)
    )
