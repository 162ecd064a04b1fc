"""What the HTML pages under reports/ share: Jinja with escaping, words and figures, and SVG charts.

A page is a template in tasks/templates/ that extends `base.html`: plain HTML with the style inside, no script, nothing
from the network, readable on a phone, light and dark. `base.html` has the blocks `title`, `crumbs` (links upwards),
`main` and `footer`, and the classes `lead` (the first sentence), `figure-large`, `good` and `bad` (a verdict), `note`,
`scroll` (round a wide table), `number` (a cell), `charts` (a grid of `figure`) and `quote`.

Templates may call, besides Jinja's own: the filters `words`, `capitalised`, `figure`, `with_sign` and `p_value`, and
the functions `interval_bar`, `axis_over` and `line_chart`. Whatever a template prints is escaped; only the charts made
here are not, and they escape what is written in them.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment

# A value with the ends of its confidence interval, as reports hold it: {"value": …, "low": …, "high": …}.
Interval = Mapping[str, float | None]

_SPELLINGS = {
    "f1": "F1",
    "roc auc": "ROC AUC",
    "tfidf logistic regression": "TF-IDF + logistic regression",
}

_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 44
_BAR_WIDTH, _BAR_HEIGHT = 160, 14
_MANY_POINTS = 120  # with more, a line is drawn thin


@dataclass(frozen=True)
class Line:
    """One line of a chart: points in their order of x. With `sizes` each has a dot, whose area goes with its size."""

    name: str
    points: Sequence[tuple[float, float]]
    sizes: Sequence[float] = ()


def render(template: str, **context: Any) -> str:
    """The page. A name that the template uses and `context` does not have raises jinja2.UndefinedError."""
    return environment().get_template(template).render(**context)


def environment() -> "Environment":
    """Jinja as every page uses it: what is printed is escaped, and what is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(words=words, capitalised=capitalised, figure=figure, with_sign=with_sign, p_value=p_value)
    made.globals.update(interval_bar=interval_bar, axis_over=axis_over, line_chart=line_chart)
    return made


def words(name: str) -> str:
    """A key, or a sentence with keys in it, as people read it: f1_macro is "F1 macro", and roc_auc "ROC AUC"."""
    spaced = name.replace("_", " ")
    for key, spelling in _SPELLINGS.items():
        spaced = re.sub(rf"\b{key}\b", spelling, spaced, flags=re.IGNORECASE)
    return spaced


def capitalised(phrase: str) -> str:
    """The first letter large, and the others as they are."""
    return phrase[:1].upper() + phrase[1:]


def figure(value: float | None, digits: int = 3) -> str:
    """Three decimals, or a dash where there is no value. Minus signs are minus signs."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.{digits}f}".replace("-", "−")


def with_sign(value: float | None, digits: int = 3) -> str:
    """A difference: + or − in front."""
    written = figure(value, digits)
    return f"+{written}" if value is not None and value > 0 else written


def p_value(value: float) -> str:
    """The probability with its sign: two digits, and below 0.0001 only that."""
    return "< 0.0001" if value < 0.0001 else f"= {value:.2g}"


def axis_over(intervals: Iterable[Interval]) -> tuple[float, float]:
    """The two ends, in round numbers, of one axis that shows all these intervals."""
    ends = [end for interval in intervals for end in interval.values() if end is not None]
    if not ends:
        return 0.0, 1.0
    step = _round_step(max(max(ends) - min(ends), 0.02 * abs(max(ends)), 1e-6), 4)
    low, high = math.floor(min(ends) / step + 1e-9) * step, math.ceil(max(ends) / step - 1e-9) * step
    return round(low, 10), round(high if high > low else low + step, 10)


def interval_bar(interval: Interval, axis: tuple[float, float]) -> Markup:
    """A small chart for a table: the interval as a band, the value as a dot, on an axis that its column shares."""
    value, low, high = interval["value"], interval["low"], interval["high"]
    if value is None or low is None or high is None:
        return Markup("")

    def x(number: float) -> float:
        share = min(max((number - axis[0]) / (axis[1] - axis[0]), 0.0), 1.0)
        return round(5 + share * (_BAR_WIDTH - 10), 1)

    spoken = f"{figure(value)}, interval {figure(low)} to {figure(high)}"
    middle = _BAR_HEIGHT / 2
    return Markup(
        '<svg class="bar" viewBox="0 0 {w} {h}" role="img" aria-label="{spoken}">'
        '<line class="track" x1="5" x2="{right}" y1="{y}" y2="{y}"/>'
        '<line class="band" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>'
        '<circle class="dot" cx="{value}" cy="{y}" r="3.6"/></svg>'
    ).format(
        w=_BAR_WIDTH,
        h=_BAR_HEIGHT,
        spoken=spoken,
        right=_BAR_WIDTH - 5,
        y=middle,
        low=x(low),
        high=max(x(high), x(low) + 1),
        value=x(value),
    )


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    x_ends: tuple[float, float] | None = None,
    y_ends: tuple[float, float] | None = None,
    diagonal: bool = False,
) -> Markup:
    """Lines over a grid, with a key where there are several. `diagonal` draws y = x, dashed.

    Without given ends the chart is as wide as its points, and as high as round numbers about them.
    """
    x_low, x_high = x_ends or _widest([x for line in lines for x, _ in line.points])
    y_low, y_high = y_ends or axis_over([{"value": y} for line in lines for _, y in line.points])

    def place(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        down = _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
        return round(right, 1), round(down, 1)

    parts = [_grid((x_low, x_high), (y_low, y_high), place), _axis_titles(x_label, y_label)]
    if diagonal:
        start, end = max(x_low, y_low), min(x_high, y_high)
        parts.append(_polyline("diagonal", [place(start, start), place(end, end)]))
    for number, line in enumerate(lines):
        places = [place(x, y) for x, y in line.points]
        parts.append(_polyline(f"line-{number}{' many' if len(places) > _MANY_POINTS else ''}", places))
        parts += [
            Markup('<circle class="line-{n}" cx="{x}" cy="{y}" r="{r}"/>').format(
                n=number, x=x, y=y, r=round(2 + 3.5 * math.sqrt(size / max(line.sizes)), 1)
            )
            for (x, y), size in zip(places, line.sizes, strict=False)
        ]
    drawing = Markup('<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">{parts}</svg>').format(
        w=_WIDTH, h=_HEIGHT, label=f"{y_label} over {x_label}", parts=Markup("").join(parts)
    )
    return drawing + (_key(lines) if len(lines) > 1 else Markup(""))


def _grid(x_ends: tuple[float, float], y_ends: tuple[float, float], place: Any) -> Markup:
    parts = []
    for tick in _ticks(*y_ends):
        _, y = place(x_ends[0], tick)
        parts.append(
            Markup(
                '<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
                '<text x="{before}" y="{base}" class="end">{tick}</text>'
            ).format(left=_LEFT, right=_WIDTH - _RIGHT, y=y, before=_LEFT - 8, base=y + 4, tick=_tick_text(tick))
        )
    for tick in _ticks(*x_ends):
        x, _ = place(tick, y_ends[0])
        parts.append(
            Markup('<text x="{x}" y="{y}" class="middle">{n}</text>').format(
                x=x, y=_HEIGHT - _BOTTOM + 17, n=_tick_text(tick)
            )
        )
    return Markup("").join(parts)


def _axis_titles(x_label: str, y_label: str) -> Markup:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return Markup(
        '<text x="{x}" y="{bottom}" class="middle title">{x_label}</text>'
        '<text x="11" y="{y}" class="middle title" transform="rotate(-90 11 {y})">{y_label}</text>'
    ).format(x=(_LEFT + _WIDTH - _RIGHT) / 2, bottom=_HEIGHT - 6, y=middle, x_label=x_label, y_label=y_label)


def _polyline(css_class: str, places: Sequence[tuple[float, float]]) -> Markup:
    points = " ".join(f"{x:g},{y:g}" for x, y in places)
    return Markup('<polyline class="{css_class}" points="{points}"/>').format(css_class=css_class, points=points)


def _key(lines: Sequence[Line]) -> Markup:
    entries = Markup("").join(
        Markup('<li><span class="swatch line-{n}"></span>{name}</li>').format(n=number, name=line.name)
        for number, line in enumerate(lines)
    )
    return Markup('<ul class="key">{}</ul>').format(entries)


def _widest(numbers: Sequence[float]) -> tuple[float, float]:
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    return low, high if high > low else low + 1


def _ticks(low: float, high: float) -> list[float]:
    step = _round_step(high - low, 5)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _round_step(span: float, parts: int) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that goes at most `parts` times into the span."""
    power = 10.0 ** math.floor(math.log10(span / parts))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * parts >= span * (1 - 1e-9))


def _tick_text(tick: float) -> str:
    return f"{tick:,.10g}".replace("-", "−")
