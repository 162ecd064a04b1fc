"""reports/index.html: every model and what became of it, from whatever there is."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flows import store
from flows.index import build_index
from tasks import problems
from tasks.deploy import deploy
from tasks.paths import STAGES
from tasks.shards import write_json
from tests.conftest import Line, tiny_params, write_params


class Seen(HTMLParser):
    """The links of a page, its words, and whether every element is closed."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.words: list[str] = []
        self.sources: list[str] = []
        self._page = page
        self._open: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if tag == "a" and name == "href"]
        self.sources += [
            value or "" for name, value in attrs if name in ("src", "srcset") or (tag, name) == ("link", "href")
        ]
        if tag not in ("meta", "br", "line", "circle"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture
def line(released: Line, copied: Callable[[Line], Line]) -> Line:
    line = copied(released)
    write_json(line.paths.report("collect"), {"read": 700, "rows": 600})
    for stage in STAGES:
        write_json(line.paths.measured(stage), {"wall_seconds": 1.25, "cpu_seconds": 2.0, "peak_memory_mb": 100.0})
    return line


def test_the_page_shows_verdict_version_figures_and_where_rows_went(line: Line) -> None:
    version = store.put_in_use("tiny", line.paths.root).version
    seen = Seen(build_index(line.paths.root))
    assert f"Accepted · {version}" in seen.text
    assert f"In use: {version}" in seen.text
    found = json.loads(line.paths.report("evaluate").read_text())["metrics"]["accuracy"]
    assert f"{found['value']:.3f}" in seen.text
    assert f"{found['low']:.3f} to {found['high']:.3f}" in seen.text
    assert (
        "600 collected 600 valid 0 in quarantine 600 clean 3 dropped 300 to train 100 to validate, 200 to test"
        in seen.text
    )
    assert re.search(r"Last made \d+ [A-Z][a-z]+ \d{4}, \d\d:\d\d", seen.text)


def test_a_refusal_is_shown_with_its_reasons_and_the_floors(line: Line) -> None:
    params = tiny_params(floors={"accuracy": 0.99, "log_loss": 0.9}, must_beat_baselines=False)
    paths = line.paths
    deploy(paths, paths.release, paths.report("deploy"), params=params, problem=problems.load(params.problem))
    text = Seen(build_index(paths.root)).text
    assert "Refused · sha-" in text
    assert "below its floor of 0.99" in text
    assert "1 model: 1 refused." in text
    assert "≥ 0.99" in text
    assert "Log loss" in text
    assert "≤ 0.9" in text
    assert "No version is in use." in text


def test_every_link_leads_to_a_file_and_nothing_comes_from_the_network(line: Line) -> None:
    docs = line.paths.reports / "data_docs" / "index.html"
    docs.parent.mkdir(parents=True)
    docs.write_text("<!doctype html>")
    page = build_index(line.paths.root)
    for file in (page, line.paths.page("card")):
        seen = Seen(file)
        assert seen.links
        for link in seen.links:
            assert (file.parent / link).exists(), link
        assert not seen.sources
    assert {"tiny/evaluate.html", "tiny/data_docs/index.html", "tiny/card.html"} <= set(Seen(page).links)


def test_a_model_that_was_never_run_gets_a_sentence(line: Line) -> None:
    write_params(Line(line.paths, line.params))
    content = json.loads((line.paths.root / "params.yaml").read_text())
    content["models"]["later"] = content["models"]["tiny"]
    write_json(line.paths.root / "params.yaml", content)
    text = Seen(build_index(line.paths.root)).text
    assert "2 models: 1 accepted, 1 without a release." in text
    assert "Nothing has been made yet: mill run later does it." in text


@pytest.mark.parametrize("stage", STAGES)
def test_a_line_that_stopped_anywhere_has_a_page(line: Line, stage: str) -> None:
    for later in STAGES[STAGES.index(stage) :]:
        line.paths.report(later).unlink(missing_ok=True)
        line.paths.measured(later).unlink(missing_ok=True)
    if stage != "deploy":
        line.paths.measured("serving").unlink(missing_ok=True)
    shutil.rmtree(line.paths.release)
    text = Seen(build_index(line.paths.root)).text
    assert ("Nothing has been made yet" if stage == "collect" else f"has not come past {stage} yet") in text


def test_a_data_contract_that_stopped_the_line_is_named(line: Line) -> None:
    stopped = ["3 of 600 (0.50%) of all rows are in quarantine; <b>that is too many</b>."]
    rows = {"collected": 600, "valid": 597, "quarantined": 3}
    write_json(line.paths.report("validate"), {"rows": rows, "stopped": stopped})
    assert stopped[0] in Seen(build_index(line.paths.root)).text


def test_a_damaged_release_is_named_and_the_page_is_still_made(line: Line) -> None:
    (line.paths.release / "model.onnx").write_bytes(b"short")
    text = Seen(build_index(line.paths.root)).text
    assert "model.onnx is not the file that the release was made with" in text


def test_markup_in_a_card_is_shown_and_not_run(line: Line) -> None:
    card = line.paths.release / "README.md"
    card.write_text(card.read_text() + "\n<script>alert(1)</script>\n")
    build_index(line.paths.root)
    page = line.paths.page("card").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<table>" in page
