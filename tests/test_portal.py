"""The page of the running server, as a browser and as a program see it."""

import base64
import html
import json
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from flows.git import git
from flows.monitor import monitor
from flows.portal import add_portal
from flows.registry import promote, record_decision, register
from tasks.release import read_release
from tasks.serving.keys import add_key
from tasks.serving.logs import JsonFormatter
from tasks.shards import write_text
from tests.browser import browser
from tests.model_server import Running, running
from tests.registered import History
from tests.waiting import wait_until
from tests.watched import MODEL, WINDOW, make_world

pytestmark = [
    pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]

TEXT = "a thoughtful <b>moving</b> film & a joy"


@pytest.fixture(scope="module")
def history(tmp_path_factory, made: History) -> History:
    """Two versions, the second one the champion, and a decision that kept a third out."""
    made = replace(made, root=Path(shutil.copytree(made.root, tmp_path_factory.mktemp("portal") / "repository")))
    for number in (1, 2):
        release = read_release(made.packed / str(number))
        commit = made.commits[number - 1]
        decision = {"model": "films", "verdict": "promote", "sentence": f"Number {number} is better."}
        record_decision(made.root, commit, decision)
        promote(made.root, register(made.root, "films", commit, release=release, why="schedule"), why="schedule")
    kept = {"model": "films", "verdict": "keep", "sentence": "accuracy is <below> its floor."}
    record_decision(made.root, made.commits[2], kept)
    return made


@pytest.fixture(scope="module")
def server(history: History) -> Iterator[Running]:
    with running(history.root, also=lambda app: add_portal(app, history.root, app.state.service)) as found:
        yield found


def test_the_first_page_is_the_models_page(server):
    found = server.client.get("/", follow_redirects=True)
    assert found.url.path == "/reports/"
    assert "films@v1.1.0" in found.text
    assert "default-src 'none'" in found.headers["content-security-policy"]
    assert "<script" not in found.text
    assert not re.search(r"(src|href)=\"(https?:)?//", found.text)


def test_every_version_and_refusal_is_in_the_history_with_its_interval(server, history):
    page = server.client.get("/reports/").text
    outcomes = re.findall(r'<g class="event (\w+)">', page)
    assert outcomes == ["promoted", "promoted", "refused"]  # as they were decided
    assert page.count("<circle cx=") == 3
    release = read_release(history.packed / "2")
    figures = release.manifest["metrics"][release.manifest["headline"]]
    assert f"{figures['value']:.3f}<small>accuracy, {figures['low']:.3f} to {figures['high']:.3f}" in page
    assert "accuracy is &lt;below&gt; its floor." in page


def test_a_text_is_answered_explained_and_written_down(server, history):
    before = server.journal.count("films")
    found = server.client.post("/reports/", data={"model": "films", "text": TEXT})
    assert found.status_code == 200
    answer = server.predict({"text": TEXT}, "films").json()
    assert f"<strong>{answer['label']}</strong>" in found.text
    assert server.journal.count("films") == before + 2
    spoken = re.search(r"mill trace (\w+)", found.text)
    assert spoken is not None
    assert server.journal.find(spoken.group(1))["version"] == read_release(history.packed / "2").version
    words = re.findall(r'<span class="(?:for|against)" style="--weight: (\d+)%">([^<]*)</span>', found.text)
    read = "".join(text for _, text in words[:-2])
    assert read == "a thoughtful moving film &amp; a joy"
    assert max(int(weight) for weight, _ in words[:-2]) == 100
    assert "a thoughtful &lt;b&gt;moving&lt;/b&gt; film &amp; a joy" in found.text


def test_traffic_is_counted_in_the_half_hour_in_which_it_came(server):
    server.predict([{"text": "fine"}] * 5, "films")
    page = server.client.get("/reports/").text
    counted = [int(number) for number in re.findall(r"UTC: (\d+) answers</title>", page)]
    assert len(counted) >= 48
    assert sum(counted[:48]) == server.journal.count("films")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"model": "films", "text": " "}, "There is no answer: text is empty."),
        ({"model": "films"}, "text is missing."),
        ({"model": "films", "text": "a", "colour": "b"}, "is no input of this model."),
    ],
)
def test_what_cannot_be_answered_is_said_on_the_page(server, data, sentence):
    found = server.client.post("/reports/", data=data)
    assert found.status_code == 200
    assert sentence in found.text


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"\xff\xfe=\x00", 404), (b"model=nobody&text=a", 404), (b"&".join([b"a=1"] * 200), 404), (b"", 404)],
)
def test_a_form_that_is_none_is_refused_in_a_sentence(server, content, status):
    found = server.client.post(
        "/reports/", content=content, headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert found.status_code == status
    assert "is in use" in found.text


def test_other_sites_cannot_ask_through_a_persons_browser(server):
    headers = {"sec-fetch-site": "cross-site"}
    assert server.client.post("/reports/", data={"model": "films", "text": "a"}, headers=headers).status_code == 403


def test_pages_of_reports_are_shown_and_nothing_beside_them(server, history):
    write_text(history.root / "reports/films/evaluate.html", "an evaluation")
    write_text(history.root / "reports/films/notes.py", "secret")
    write_text(history.root / ".mill/retrain/reports/films/1/gate.html", "a gate")
    assert server.client.get("/reports/films/evaluate.html").text == "an evaluation"
    assert server.client.get("/retrained/films/1/gate.html").text == "a gate"
    write_text(history.root / ".mill/monitor/films/windows/000001/evidently.html", "a window")
    drawn = server.client.get("/.mill/monitor/films/windows/000001/evidently.html")
    assert drawn.text == "a window"
    assert drawn.headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")
    assert server.client.get("/.mill/monitor/../journal.sqlite").status_code == 404
    for path in ("films/notes.py", "%2e%2e/params.yaml", "..%2fparams.yaml", "films/none.html", "%00.html"):
        assert server.client.get(f"/reports/{path}").status_code == 404, path


def test_where_keys_are_in_use_a_browser_is_asked_for_one(history, tmp_path, caplog):
    root = Path(shutil.copytree(history.root, tmp_path / "keyed", symlinks=True))
    key, other, admin = (
        add_key(root, name, [scope], None)
        for name, scope in (("ann", "predict"), ("bob", "feedback"), ("eve", "admin"))
    )

    def basic(password: str) -> dict[str, str]:
        return {"authorization": f"Basic {base64.b64encode(f'x:{password}'.encode()).decode()}"}

    def told(line: logging.LogRecord) -> dict[str, Any]:
        return dict(json.loads(JsonFormatter().format(line)))

    with running(root, also=lambda app: add_portal(app, root, app.state.service)) as server:
        assert server.client.get("/reports/").headers["www-authenticate"].startswith("Basic")
        assert server.client.get("/reports/", headers=basic(key)).status_code == 200
        assert server.client.get("/reports/", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert server.client.get("/reports/", headers={"authorization": "Basic !"}).status_code == 401
        assert server.client.get("/reports/", headers=basic(other)).status_code == 401
        # Pages with rows of the data, and with what other clients asked, are not for everybody who may ask.
        write_text(root / "reports/films/evaluate.html", "an evaluation")
        assert server.client.get("/reports/films/evaluate.html", headers=basic(key)).status_code == 401
        assert server.client.get("/reports/films/evaluate.html", headers=basic(admin)).text == "an evaluation"
        with caplog.at_level(logging.INFO, logger="tasks.serving.logs"):
            asked = server.client.post("/reports/", data={"model": "films", "text": "fine"}, headers=basic(key))
            # A line is written after its answer has been sent: that of the request before may come now as well.
            [line] = wait_until(lambda: [one for one in map(told, caplog.records) if one["method"] == "POST"])
        assert "mill trace" in asked.text
        assert line["client"] == "ann"
        assert server.journal.window("films", last=1)["client"].to_list() == ["ann"]


def test_params_that_are_wrong_are_a_sentence_and_the_server_goes_on(history, tmp_path):
    root = Path(shutil.copytree(history.root, tmp_path / "wrong", symlinks=True))
    with running(root, also=lambda app: add_portal(app, root, app.state.service)) as server:
        write_text(root / "params.yaml", "models: {films: {problem: text_clasification}}")
        found = server.client.get("/reports/")
        assert found.status_code == 503
        assert "text_classification" in found.text
        assert server.predict({"text": "fine"}, "films").status_code == 200


def test_what_the_monitor_found_is_on_the_page_window_by_window(released, tmp_path):
    world = make_world(tmp_path / "root", released)
    git(world.root, "init", "-q", "-b", "main")
    git(world.root, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "--allow-empty", "-m", "all")
    with running(world.root, also=lambda app: add_portal(app, world.root, app.state.service)) as server:
        assert "Watched" not in server.client.get("/reports/").text
        asked = world.ask(world.held_out["text"].head(WINDOW).to_list())
        world.label(dict.fromkeys(asked[:30], "positive"))
        world.ask([f"ΨΩ {number} !!! ÷ {number}" for number in range(2 * WINDOW)])
        looked = monitor(world.root, MODEL, say=lambda line: None)
        page = server.client.get("/reports/").text
        link = re.search(r'href="(/reports/[^"]*monitor.html)"', page)
        assert link is not None
        monitored = server.client.get(link.group(1)).text
        for inside in re.findall(r'href="([^"]+)"', monitored):
            if inside.startswith((".", "/")):
                assert server.client.get(urljoin(link.group(1), inside), follow_redirects=True).is_success, inside
    assert looked.verdict == "alarm"
    assert looked.sentence.split(";")[0] in html.unescape(page)
    assert re.findall(r'<rect class="line-0 (\w+)"', page) == ["ok", "watch", "alarm"]
    assert "30 predictions of this version whose label has come" in page


def test_a_person_asks_in_a_browser_wide_and_on_a_phone_light_and_dark(server, tmp_path):
    with browser(tmp_path / "profile") as page:
        page.goto(f"{server.url}/")
        page.wait_for(["films@v1.1.0", "Ask films"])
        page.run(f"document.querySelector('textarea').value = {TEXT!r}")
        page.click("Ask films")
        page.wait_for(["mill trace"])
        papers = set()
        for width, dark in ((1200, False), (1200, True), (390, False), (390, True)):
            page.look_as(width=width, dark=dark)
            assert page.run("document.documentElement.scrollWidth") <= width, "it has to be scrolled sideways"
            papers.add((dark, page.run("getComputedStyle(document.body).backgroundColor")))
        assert len(papers) == 2
        assert page.run("performance.getEntriesByType('resource').map(e => e.name)") == []
    assert server.client.get("/healthz").status_code == 200
