"""What stages leave in Prefect: links that a browser can follow from there."""

import re
import shutil
from pathlib import Path

import httpx
import pytest

from flows.addresses import Portal, address_of
from flows.portal import add_portal
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
        artifacts = Seen(1).artifacts
        (page,) = re.findall(r"\((.*)\)", str(artifacts["one-clean-page"].data))
        (report,) = re.findall(r"\((.*)\)", str(artifacts["one-clean-report"].data))
        assert httpx.get(page).text == "<p>what clean did</p>"
        assert httpx.get(report).content == (reporting / "reports/one/clean.json").read_bytes()


def test_what_the_portal_does_not_show_is_linked_to_as_a_file(tmp_path):
    portal = Portal("http://127.0.0.1:8000", tmp_path / "home")
    shown = tmp_path / "home/reports/one/a page.html"
    elsewhere = tmp_path / "worktree/reports/one/page.html"
    assert address_of(shown, portal) == "http://127.0.0.1:8000/reports/one/a%20page.html"
    assert address_of(shown, None) == shown.as_uri()
    assert address_of(elsewhere, portal) == elsewhere.as_uri()
