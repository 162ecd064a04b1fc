"""What stages leave in Prefect: links that a browser can follow from there."""

import json
import re
import shutil
from pathlib import Path

import httpx
import pytest

from flows.addresses import Portal, address_of
from flows.portal import add_portal
from tasks.params import read_yaml
from tests import line_toy as toy
from tests.conftest import REPOSITORY
from tests.line_toy import Seen
from tests.model_server import running
from tests.test_retrain_prefect import up

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning")]

REPORTING = """
stages:
  clean:
    foreach: [one]
    do:
      cmd: cp input clean.txt; cp shipped/clean.json shipped/clean.html reports/one
      deps: [input]
      outs: [clean.txt]
  count:
    cmd: echo 3 > rows.txt; wc -l < clean.txt | sed 's/.*/{"rows":&}/' > count.json
    deps: [clean.txt]
    outs: [rows.txt]
    metrics: [count.json: {cache: false}]
"""


@pytest.fixture
def reporting(tmp_path: Path) -> Path:
    """A model whose only stage writes a report and a page, for people, of it."""
    root = toy.make(tmp_path / "toy", {"dvc.yaml": REPORTING, "input": "1\n"})
    (root / "shipped").mkdir()
    (root / "reports/one").mkdir(parents=True)
    shutil.copy(REPOSITORY / "reports/reviews/clean.json", root / "shipped")
    (root / "shipped/clean.html").write_text("<p>what clean did</p>", encoding="utf-8")
    return root


def test_a_link_to_a_report_opens_it_on_the_portal_of_a_running_mill_up(reporting, served):
    with (
        running(reporting, also=lambda app: add_portal(app, reporting, app.state.service)) as portal,
        up(reporting, served, portal.url),
    ):
        assert not toy.line(reporting).failed
        artifacts = Seen(2).artifacts
        (page,) = re.findall(r"\((.*)\)", str(artifacts["one-clean-page"].data))
        (report,) = re.findall(r"\((.*)\)", str(artifacts["one-clean-report"].data))
        assert httpx.get(page).text == "<p>what clean did</p>"
        assert httpx.get(report).content == (reporting / "reports/one/clean.json").read_bytes()


def test_a_stage_that_somebody_has_added_leaves_its_outputs_as_dvc_has_recorded_them(reporting, served):
    assert not toy.line(reporting).failed
    recorded = read_yaml(reporting / "dvc.lock")["stages"]["count"]["outs"]
    said = {out["path"]: (out["size"], out["md5"]) for out in recorded}
    table = json.loads(str(Seen(2).artifacts["count-outputs"].data))
    assert {row["path"]: (row["bytes"], row["hash"]) for row in table} == said
    assert {row["path"]: row["is"] for row in table} == {"rows.txt": "output", "count.json": "metric"}


def test_stages_that_are_up_to_date_leave_together_what_they_left_when_they_ran(reporting, served):
    assert not toy.line(reporting).failed
    ran = Seen(2).artifacts
    assert set(ran) == {"clean-one-outputs", "one-clean-rows", "one-clean-page", "one-clean-report", "count-outputs"}
    assert not toy.line(reporting).failed
    seen = Seen(2)
    assert set(seen.states.values()) == {"Cached"}
    assert set(seen.artifacts) == {"line-up-to-date"}
    text = str(seen.artifacts["line-up-to-date"].data)
    for key in ("clean-one-outputs", "one-clean-rows", "count-outputs"):
        for row in json.loads(str(ran[key].data)):
            assert "| " + " | ".join(map(str, row.values())) + " |" in text
    assert str(ran["one-clean-report"].data) in text
    assert text.index("## clean@one") < text.index("| clean.txt |") < text.index("## count") < text.index("count.json")


def test_what_the_portal_does_not_show_is_linked_to_as_a_file(tmp_path):
    portal = Portal("http://127.0.0.1:8000", tmp_path / "home")
    shown = tmp_path / "home/reports/one/a page.html"
    elsewhere = tmp_path / "worktree/reports/one/page.html"
    assert address_of(shown, portal) == "http://127.0.0.1:8000/reports/one/a%20page.html"
    assert address_of(shown, None) == shown.as_uri()
    assert address_of(elsewhere, portal) == elsewhere.as_uri()
