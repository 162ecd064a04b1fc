"""The charts and words of the pages: what they show, and that whatever is written into them stays text."""

from xml.etree import ElementTree

import pytest
from jinja2 import UndefinedError

from tasks import pages
from tasks.pages import Line


def drawing(markup: str) -> ElementTree.Element:
    """The first svg of the markup, read by an XML parser, which takes nothing that is not well formed."""
    return ElementTree.fromstring(markup[: markup.index("</svg>") + len("</svg>")])


def test_keys_become_words_also_inside_a_sentence() -> None:
    assert pages.words("f1_macro") == "F1 macro"
    assert pages.words("roc_auc") == "ROC AUC"
    assert pages.words("Better than tfidf_logistic_regression.") == "Better than TF-IDF + logistic regression."
    assert pages.words("accuracy") == "accuracy"
    assert pages.capitalised("F1 of each") == "F1 of each"
    assert pages.capitalised("ünder") == "Ünder"


def test_figures_have_three_decimals_real_minus_signs_and_a_dash_for_nothing() -> None:
    assert pages.figure(0.83549) == "0.835"
    assert pages.figure(-1234.5) == "−1,234.500"
    assert pages.figure(None) == pages.figure(float("nan")) == "–"
    assert (pages.with_sign(0.5), pages.with_sign(-0.5), pages.with_sign(0.0)) == ("+0.500", "−0.500", "0.000")
    assert (pages.p_value(3e-19), pages.p_value(0.0421), pages.p_value(1.0)) == ("< 0.0001", "= 0.042", "= 1")


@pytest.mark.parametrize(
    ("ends", "axis"),
    [
        ([(0.821, 0.849)], (0.82, 0.85)),
        ([(0.5, 0.5), (0.82, 0.91)], (0.4, 1.0)),
        ([(-0.02, 0.013)], (-0.02, 0.02)),
        ([(0.8, 0.9)], (0.8, 0.9)),
        ([], (0.0, 1.0)),
    ],
)
def test_an_axis_ends_in_round_numbers_about_all_its_intervals(
    ends: list[tuple[float, float]], axis: tuple[float, float]
) -> None:
    assert pages.axis_over({"value": low, "low": low, "high": high} for low, high in ends) == axis


def test_an_axis_over_one_value_is_not_empty() -> None:
    low, high = pages.axis_over(
        [{"value": 0.88, "low": 0.88, "high": 0.88}, {"value": None, "low": None, "high": None}]
    )
    assert low <= 0.88 < high


def test_an_interval_bar_puts_its_value_and_its_ends_where_the_axis_has_them() -> None:
    bar = drawing(pages.interval_bar({"value": 0.5, "low": 0.25, "high": 1.0}, (0.0, 1.0)))
    _, band = bar.findall("line")
    dot = bar.find("circle")
    assert dot is not None
    assert (float(band.attrib["x1"]), float(dot.attrib["cx"]), float(band.attrib["x2"])) == (42.5, 80.0, 155.0)
    assert bar.attrib["aria-label"] == "0.500, interval 0.250 to 1.000"


def test_a_metric_without_a_value_has_no_bar() -> None:
    assert pages.interval_bar({"value": None, "low": None, "high": None}, (0.0, 1.0)) == ""


def test_a_chart_places_its_points_between_its_axes_and_names_several_lines() -> None:
    rising = Line("rising", [(0.0, 0.0), (10.0, 1.0)])
    other = Line("level", [(0.0, 0.5), (10.0, 0.5)], sizes=[1, 4])
    markup = pages.line_chart([rising, other], "step", "loss", diagonal=True)
    chart = drawing(markup)
    first, last = (
        tuple(map(float, place.split(","))) for place in chart.findall("polyline")[1].attrib["points"].split()
    )
    assert first[0] < last[0]
    assert first[1] > last[1], "up is up"
    small, large = (float(dot.attrib["r"]) for dot in chart.findall("circle"))
    assert small < large
    assert "rising" in markup
    assert "level" in markup
    assert "<ul" not in pages.line_chart([rising], "step", "loss")


def test_ticks_are_round_and_inside_the_axis() -> None:
    chart = drawing(pages.line_chart([Line("loss", [(1.0, 0.693), (214.0, 0.11)])], "step", "loss"))
    written = [text.text for text in chart.findall("text")]
    assert {"50", "100", "150", "200"} <= set(written)
    assert {"0", "0.2", "0.4", "0.6"} <= set(written)


def test_what_is_written_into_a_chart_stays_text() -> None:
    hostile = '"><script>alert(1)</script>'
    markup = pages.line_chart([Line(hostile, [(0, 0), (1, 1)]), Line("b", [(0, 1)])], hostile, hostile)
    assert "<script" not in markup
    assert markup.count("&lt;script&gt;") >= 3


def test_a_page_that_lacks_a_value_is_an_error_and_not_a_gap() -> None:
    with pytest.raises(UndefinedError, match="'model' is undefined"):
        pages.environment().from_string("<h1>{{ model }}</h1>").render(result={})


def test_the_base_page_takes_nothing_from_the_network_and_runs_nothing() -> None:
    page = pages.render("base.html")
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
