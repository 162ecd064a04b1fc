"""A run of the line on the page that Prefect's own server shows, in a real browser."""

import pytest

from tests import line_toy as toy
from tests.browser import browser

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("served")]


def test_the_page_of_the_flow_run_shows_the_stages_by_name(tmp_path, served):
    root = toy.make_branches(tmp_path / "toy")
    (root / "broken-one").touch()
    toy.line(root)
    seen = toy.Seen(6)
    with browser(tmp_path / "profile") as page:
        page.goto(f"{served.removesuffix('/api')}/runs/flow-run/{seen.run.id}")
        page.wait_for(["Task Runs", "Failed", "rows of one"])
        page.click("Task Runs")
        page.wait_for([f"{stage}@{model}" for stage in ("collect", "clean", "deploy") for model in ("one", "two")])
        page.wait_for(["NotRun"])
