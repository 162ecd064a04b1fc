"""What `mill monitor` says of labels, of a challenger's answers and of requests that failed."""

import csv
import re
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.feedback import add_feedback
from flows.monitored import Watched
from tasks.journal import open_journal
from tasks.judgement import Answers, judge
from tasks.monitor import open_subject
from tasks.release import Release
from tasks.shards import read_json, write_json
from tests.conftest import Line
from tests.model_server import running
from tests.watched import MODEL, WINDOW, World, less_sure, look, make_world, page, records


@pytest.fixture
def world(released: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return make_world(tmp_path / "root", released)


@pytest.fixture
def newer(world: World, tmp_path: Path) -> Release:
    return less_sure(world, tmp_path / "newer")


def test_evidently_says_how_many_labels_right_answers_rest_on_what_is_wrong_with_rows_and_how_requests_ended(world):
    asked = world.ask([*world.usual(WINDOW - 4), " ", "an echo", "an echo", "mail x@example.org now"])
    truth = dict.fromkeys(asked[:9], "positive")
    world.label({**truth, asked[9]: "no label of this model"})
    with running(world.root) as server:
        params = read_json(world.root / "params.yaml")
        params["flows"]["serve"]["port"] = int(server.url.rpartition(":")[2])
        write_json(world.root / "params.yaml", params)
        assert server.predict({"text": "fine"}, MODEL).status_code == 200
        look(world)
    window = Watched(world.root, MODEL).window(1)
    report = read_json(window / "evidently.json")
    found = {(one["metric_name"].partition("(")[0], one["config"].get("column")): one for one in report["metrics"]}
    shares = {column: one["value"] for (name, column), one in found.items() if name == "MeanValue"}
    journal = open_journal(world.journal_url)
    answers = [journal.find(one)["answer"]["label"] for one in asked[:9]]
    journal.close()
    assert found["InRangeValueCount", "right"]["value"]["count"] == 9
    assert shares.pop("right") == pytest.approx(answers.count("positive") / 9)
    [health] = [one["health"] for one in records(world)]
    assert shares.pop("probably_right") > 0
    assert shares == {
        "missing_text": 1 / WINDOW,
        "repeated": health["repeated"],
        "redacted": 1 / WINDOW,
        "without_embedding": 1 / WINDOW,  # what is blank has no answer
        "without_confidence": 1 / WINDOW,
    }
    assert health["repeated"] >= 1 / WINDOW
    assert report["metadata"]["labels"] == "9"
    assert report["metadata"]["since_last_look_requests"] == "1"
    assert report["metadata"]["since_last_look_error_rate"] == "0"
    html = (window / "evidently.html").read_text()
    for name in ("missing_text", "repeated", "redacted", "without_confidence", "latency_ms"):
        assert name in html, name
    [snapshot] = (world.root / ".mill" / "evidently").glob("*/snapshots/*.json")
    assert read_json(snapshot)["metadata"] == report["metadata"]


def test_an_alarm_without_labels_exits_with_3_and_names_rows_worth_labelling_that_feedback_takes(world, monkeypatch):
    odd = [f"UNBELIEVABLE!!! {number} × {number + 7} ÷ 3 = ??? #WOW ψω €{number}00" for number in range(2 * WINDOW)]
    world.ask(odd)
    with monkeypatch.context() as inside:
        inside.chdir(world.root)
        ended = CliRunner().invoke(app, ["monitor", MODEL])
    assert ended.exit_code == 3, ended.output
    for line in ("drift in 2 windows in a row", "0 of 30 labels", "nobody hears of it", "reports/tiny/monitor.html"):
        assert line in ended.output
    wanted = Watched(world.root, MODEL).wanted
    with wanted.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert list(rows[0]) == ["id", "label", "text", "answered_label", "answered_probability", "why"]
    assert {row["label"] for row in rows} == {""}
    assert sorted({row["why"] for row in rows}) == ["by chance", "unlike what was learned", "unsure"]
    assert {row["text"] for row in rows} <= set(odd)
    for row in rows:
        row["label"] = "negative"
    with wanted.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert "12 of them new" in add_feedback(world.root, MODEL, wanted)
    assert any("12 of 30 labels" in line for line in look(world).advice)
    with wanted.open(newline="") as file:
        assert not {row["id"] for row in csv.DictReader(file)} & {row["id"] for row in rows}


def test_labels_are_measured_as_the_release_was_with_how_many_they_are(world):
    truth = dict(world.held_out.select("text", "label").iter_rows())
    texts = world.usual(WINDOW - 1)
    ids = world.ask(texts)
    world.label({row_id: truth[text] for row_id, text in zip(ids, texts, strict=True)})
    world.label({ids[0]: "so-so"})  # later, and no label of the model's
    look(world)
    found = read_json(Watched(world.root, MODEL).summary)
    assert (found["labels"], found["quality"]["labels"], found["quality"]["unknown"]) == (39, 39, 1)
    subject = open_subject(world.releases["one"])
    rows = pl.DataFrame({"id": ids[1:], "text": texts[1:], "label": [truth[text] for text in texts[1:]]})
    journal = open_journal(world.journal_url)
    answers = pl.DataFrame(
        [journal.find(row_id)["answer"] for row_id in ids[1:]], schema=world.answerers["one"].columns
    )
    journal.close()
    given = Answers(answers, answers, {})
    params = subject.evaluate.model_copy(update={"slices": []})
    expected = judge(rows, pl.DataFrame(), given, subject.runtime.signature, subject.runtime.problem, params)
    for name, interval in expected["metrics"].items():
        assert found["quality"]["metrics"][name] == pytest.approx(interval, nan_ok=True), name
    assert found["quality"]["changed"] == "no difference"
    assert "On 38 predictions of this version whose label has come" in re.sub(r"\s+", " ", page(world))


def test_labels_that_show_a_loss_are_said_to_be_worse(world):
    other = {"positive": "negative", "negative": "positive"}
    texts = world.usual(WINDOW - 1)
    ids = world.ask(texts)
    subject_answers = world.answerers["one"].answer(pl.DataFrame({"text": texts}), 64)["label"]
    world.label({row_id: other[answer] for row_id, answer in zip(ids, subject_answers, strict=True)})
    look(world)
    assert read_json(Watched(world.root, MODEL).summary)["quality"]["changed"] == "worse"


def test_a_challenger_in_the_shadow_is_compared_with_what_was_answered(world, newer):
    texts = world.usual(WINDOW - 1)
    ids = world.ask(texts)
    world.promote("two", newer)
    world.promote("one", world.releases["one"])
    shadows = world.ask(texts, "two", shadow_of=ids)
    truth = dict(world.held_out.select("text", "label").iter_rows())
    world.label({row_id: truth[text] for row_id, text in zip(ids[:30], texts[:30], strict=True)})
    look(world)
    assert records(world) == [], "what nobody was given is no traffic"
    shadow = read_json(Watched(world.root, MODEL).summary)["shadow"]
    assert shadow["challenger"] == newer.version
    assert (shadow["rows"], shadow["labels"]) == (len(shadows), 30)
    assert shadow["agree"] == 1  # a temperature changes no answer
    assert shadow["accuracy"] == shadow["challenger_accuracy"]
    assert shadow["mcnemar"]["p_value"] == 1


def test_failed_requests_are_counted_from_the_running_server(world, released):
    with running(world.root) as server:
        port = int(server.url.rsplit(":", 1)[1])
        params = read_json(world.root / "params.yaml")
        params["flows"]["serve"]["port"] = port
        write_json(world.root / "params.yaml", params)
        assert server.predict({"text": world.usual(1)[0]}).status_code == 200
        look(world)
        assert read_json(Watched(world.root, MODEL).summary)["failures"]["requests"] == 1
        server.predict([{"text": text} for text in world.usual(3)])
        look(world)
        found = read_json(Watched(world.root, MODEL).summary)["failures"]
        assert found == {"requests": 1, "failed": 0, "sent_away": 0, "error_rate": 0}
    look(world)
    assert read_json(Watched(world.root, MODEL).summary)["failures"] is None
    assert "How many requests have failed is not known" in page(world)
