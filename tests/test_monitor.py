"""`mill monitor` over a real journal, with a real release and Evidently itself."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from flows import monitored
from flows.cli import app
from flows.feedback import add_feedback
from flows.monitor import Looked, monitor
from flows.monitored import Watched
from flows.params import flows_of
from flows.worktree import Busy
from tasks.deploy import reference
from tasks.errors import ParamsError, ReleaseError
from tasks.journal import open_journal
from tasks.judgement import Answers, judge
from tasks.monitor import judge_window, open_subject
from tasks.release import MANIFEST, Release, read_release, seal
from tasks.runtime import load_runtime
from tasks.shards import read_json, write_json
from tasks.windows import Window, open_windows
from tests.conftest import Line
from tests.model_server import colder, running
from tests.postgres_server import PASSWORD, started
from tests.watched import MODEL, WINDOW, World, make_world, record, write_params

ODD = [f"UNBELIEVABLE!!! {number} × {number + 7} ÷ 3 = ??? #WOW ψω €{number}00" for number in range(400)]


@pytest.fixture
def world(released: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return make_world(tmp_path / "root", released)


@pytest.fixture
def usual(world: World) -> Iterator[Any]:
    """So many texts as the version was held to, others each time."""
    texts = world.held_out["text"].shuffle(seed=7).to_list()
    place = 0

    def take(number: int) -> list[str]:
        nonlocal place
        place += number
        return [texts[at % len(texts)] for at in range(place - number, place)]

    return take


@pytest.fixture
def newer(world: World, tmp_path: Path) -> Release:
    """A version that is much less sure of the same answers, with its own answers to the held-out rows."""
    folder = tmp_path / "newer"
    colder(world.releases["one"], folder, 9.0)
    runtime = load_runtime(folder, 1)
    ids = pl.read_parquet(folder / "reference.parquet").select("id")
    rows = ids.join(world.held_out, on="id", maintain_order="left")
    reference(rows, runtime, runtime.problem).write_parquet(folder / "reference.parquet")
    return sealed(folder)


def sealed(folder: Path) -> Release:
    """The folder as a release, after something in it was changed."""
    manifest = json.loads((folder / MANIFEST).read_text())
    seal(folder, {key: value for key, value in manifest.items() if key not in ("files", "version")})
    return read_release(folder)


def look(world: World) -> Looked:
    return monitor(world.root, MODEL, say=lambda _: None)


def records(world: World) -> list[dict[str, Any]]:
    watched = Watched(world.root, MODEL)
    return watched.history(watched.read(), 1000)


def page(world: World) -> str:
    return (world.root / "reports" / MODEL / "monitor.html").read_text()


def test_without_a_window_of_predictions_it_says_how_many_there_are(world, usual):
    looked = look(world)
    assert (looked.verdict, looked.exit_code, looked.num_windows) == ("waiting", 0, 0)
    assert f"not enough predictions: 0 of {WINDOW}" in looked.sentence
    world.ask(usual(37))
    assert f"not enough predictions: 37 of {WINDOW}" in look(world).sentence
    assert f"37 of {WINDOW}" in page(world)
    assert records(world) == []


@pytest.mark.long
def test_what_was_found_of_very_old_windows_goes_with_their_place_in_evidentlys_history(world, usual, monkeypatch):
    monkeypatch.setattr(monitored, "KEPT_WINDOWS", 2)
    for _ in range(3):
        world.ask(usual(WINDOW))
        looked = look(world)
    assert [one["number"] for one in records(world)] == [2, 3]
    assert looked.verdict == "ok"
    from evidently.ui.workspace import Workspace  # by now without what it complains of in its own dependencies

    store = Workspace.create(str(world.root / ".mill/evidently"))
    [project] = store.list_projects()
    assert len(store.list_runs(project.id)) == 2


def test_traffic_like_the_held_out_rows_is_ok_and_judged_once(world, released, usual):
    write_params(world.root, released, keep_pages=1)
    world.ask(usual(2 * WINDOW + 5))
    looked = look(world)
    assert (looked.verdict, looked.exit_code, looked.num_windows) == ("ok", 0, 2)
    again = look(world)
    assert (again.verdict, again.num_windows) == ("ok", 0)
    assert f"5 of {WINDOW} of the next" in again.sentence
    world.ask(usual(WINDOW))
    assert look(world).num_windows == 1
    found = records(world)
    assert [(one["first"]["seq"], one["last"]["seq"], one["rows"]) for one in found] == [
        (1, WINDOW, WINDOW),
        (WINDOW + 1, 2 * WINDOW, WINDOW),
        (2 * WINDOW + 1, 3 * WINDOW, WINDOW),
    ]
    assert found[-1]["health"]["missing"] == {"text": 0.0}
    assert found[-1]["latency_ms"]["p50"] == 5.0
    watched = Watched(world.root, MODEL)
    kept = [
        [(watched.window(one["number"]) / f"evidently.{kind}").exists() for kind in ("html", "json")] for one in found
    ]
    assert kept == [[False, True], [False, True], [True, True]], "pages of old windows go, and what they said stays"
    assert 0 <= found[-1]["estimate"]["low"] <= found[-1]["estimate"]["value"] <= found[-1]["estimate"]["high"] <= 1


def test_drift_is_watched_and_becomes_an_alarm_where_it_lasts(world, usual):
    world.ask([*usual(WINDOW), *ODD[:WINDOW]])
    looked = look(world)
    assert (looked.verdict, looked.exit_code) == ("watch", 0)
    world.ask(ODD[WINDOW : 2 * WINDOW])
    looked = look(world)
    assert (looked.verdict, looked.exit_code) == ("alarm", 3)
    assert "drift in 2 windows in a row" in looked.sentence
    assert [one["verdict"] for one in records(world)] == ["ok", "watch", "alarm"]
    assert Watched(world.root, MODEL).wanted.exists()
    world.ask(usual(WINDOW))
    assert look(world).verdict == "ok"
    assert not Watched(world.root, MODEL).wanted.exists(), "the list of rows goes with the alarm"
    assert records(world)[-1]["streak"] == 0


def test_an_alarm_names_the_columns_and_ten_rows_that_drive_it(world, usual):
    texts = usual(WINDOW)
    texts[3::2] = ODD[: len(texts[3::2])]
    world.ask(texts)
    look(world)
    last = records(world)[-1]
    moved = [test["name"] for test in last["tests"] if test["drifted"]]
    assert {"share_upper_case", "embedding"} <= set(moved)
    assert all(test["figure"] > test["chance"] and test["figure"] >= 0.1 for test in last["tests"] if test["drifted"])
    assert len(last["examples"]) == 10
    journal = open_journal(world.journal_url)
    named = [journal.find(example["id"])["inputs"]["text"] for example in last["examples"]]
    journal.close()
    assert set(named) <= set(ODD)
    assert all(set(example["why"]) <= set(moved) and example["why"] for example in last["examples"])
    assert named[0].split("×")[0] in page(world)
    assert "Share upper case" in page(world)


def test_a_drift_below_the_smallest_effect_is_none(world, released, usual):
    write_params(world.root, released, smallest_effect=0.9)
    world.ask([*usual(WINDOW // 2), *ODD[: WINDOW // 2]])
    assert look(world).verdict == "ok"
    [found] = records(world)
    assert any(test["figure"] > test["chance"] for test in found["tests"]), "beyond chance, and too small to matter"


def test_evidently_says_the_same_in_html_in_json_and_in_its_workspace(world, usual):
    world.ask([*usual(WINDOW), *ODD[:WINDOW]])
    look(world)
    from evidently.ui.workspace import Workspace

    watched = Watched(world.root, MODEL)
    for number, found in enumerate(records(world), 1):
        html = (watched.window(number) / "evidently.html").read_text()
        assert "share_upper_case" in html
        assert not any(text.split("×")[0] in html for text in ODD[:5])
        report = read_json(watched.window(number) / "evidently.json")
        tests = {test["name"]: test for test in found["tests"]}
        drifts = {
            one["config"]["column"]: one["value"] for one in report["metrics"] if "ValueDrift" in one["metric_name"]
        }
        assert set(drifts) == set(tests) - {"embedding"}
        for name, value in drifts.items():
            assert value == pytest.approx(tests[name]["figure"], abs=1e-6), name
        said = {test["name"]: test["status"] == "FAIL" for test in report["tests"]}
        assert said == {f"Value Drift for column {name}": tests[name]["drifted"] for name in drifts}
    store = Workspace.create(str(world.root / ".mill" / "evidently"))
    [project] = store.list_projects()
    assert project.name == MODEL
    panels = {
        panel.title: [one.metric_labels.get("column") for one in panel.values]
        for panel in project.dashboard.model().panels
    }
    assert panels == {
        "Predictions": [None],
        "Embedding": ["embedding_distance"],
        "Confidence: probability": ["probability"],
        "Answers: label": ["label"],
    }
    runs = [store.get_run(project.id, run) for run in store.list_runs(project.id)]
    assert sorted(run.name for run in runs) == ["tiny window 1", "tiny window 2"]
    assert {tag for run in runs for tag in run.tags} == {"ok", "watch", world.releases["one"].version}


def test_evidently_says_how_many_labels_right_answers_rest_on_what_is_wrong_with_rows_and_how_requests_ended(
    world, usual
):
    asked = world.ask([*usual(WINDOW - 4), " ", "an echo", "an echo", "mail x@example.org now"])
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


def test_a_shift_too_small_to_matter_is_no_drift_however_many_rows_show_it(world, usual, tmp_path):
    world.ask([*usual(195), *ODD[:5]])
    subject = open_subject(world.releases["one"])
    windows = open_windows(world.journal_url, MODEL)
    rows = windows.rows(Window(world.releases["one"].version, 1, 200, 200), subject.inputs, subject.answer)
    embedding_ND = windows.embeddings(rows["seq"].to_list())
    windows.close()
    many = pl.concat([rows] * 100)
    params = flows_of(MODEL, world.root / "params.yaml").monitor
    found = judge_window(subject, many, lambda numbers: embedding_ND[np.array(numbers) - 1], params, 0, tmp_path).record
    assert (found["rows"], found["looked_at"]) == (20_000, 600)
    assert not found["drifted"]
    assert found["health"]["repeated"] > 0.98


def test_killed_at_any_moment_no_window_is_lost_and_none_is_judged_twice(world, usual):
    class Killed(BaseException):
        pass

    def killing(after: int) -> Any:
        said = iter(range(after))

        def say(_: str) -> None:
            if next(said, None) is None:
                raise Killed

        return say

    world.ask([*usual(WINDOW), *ODD[: 2 * WINDOW]])
    with pytest.raises(Killed):
        monitor(world.root, MODEL, say=killing(0))
    # One that was killed between a window's folder and its being counted.
    watched = Watched(world.root, MODEL)
    memory = watched.read()
    half_way = watched.window(memory.windows + 1)
    shutil.copytree(watched.window(1), half_way)
    looked = look(world)
    assert looked.verdict == "alarm"
    found = records(world)
    assert [one["number"] for one in found] == [1, 2, 3]
    assert [(one["first"]["seq"], one["last"]["seq"]) for one in found] == [(1, 40), (41, 80), (81, 120)]
    assert [one["streak"] for one in found] == [0, 1, 2]
    snapshots = list((world.root / ".mill" / "evidently").glob("*/snapshots/*.json"))
    assert len(snapshots) == 3


def test_windows_never_mix_versions_and_each_has_its_own_reference(world, usual, newer):
    world.ask(usual(WINDOW + 20))
    world.promote("two", newer)
    world.ask(usual(5), "one")  # what the version before still had to answer
    world.ask(usual(WINDOW - 10), "two")
    looked = look(world)
    assert looked.verdict == "waiting"
    assert f"{WINDOW - 10} of {WINDOW}" in looked.sentence
    world.ask(usual(WINDOW), "two")
    look(world)
    one, two = world.releases["one"].version, newer.version
    assert [(record["version"], record["rows"]) for record in records(world)] == [(one, WINDOW), (two, WINDOW)]
    # By the reference of the one before, how sure the newer one is would be drift.
    assert not any(record["drifted"] for record in records(world))
    world.promote("one", world.releases["one"])
    world.ask(usual(WINDOW), "one")
    look(world)
    assert records(world)[-1]["version"] == one
    assert records(world)[-1]["rows"] == WINDOW


def test_a_version_whose_release_is_gone_is_passed_over_and_said(world, usual, newer):
    world.ask(usual(WINDOW))
    gone = world.releases["one"].folder
    world.promote("two", newer)
    shutil.rmtree(gone)
    world.ask(usual(WINDOW), "two")
    said: list[str] = []
    monitor(world.root, MODEL, say=said.append)
    assert any("cannot be judged any more" in line for line in said)
    assert [record["version"] for record in records(world)] == [newer.version]
    said.clear()
    monitor(world.root, MODEL, say=said.append)
    assert not any("cannot be judged" in line for line in said)


def test_an_alarm_without_labels_exits_with_3_and_names_rows_worth_labelling_that_feedback_takes(world, monkeypatch):
    world.ask(ODD[: 2 * WINDOW])
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
    assert {row["text"] for row in rows} <= set(ODD)
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


def test_labels_are_measured_as_the_release_was_with_how_many_they_are(world, usual):
    truth = dict(world.held_out.select("text", "label").iter_rows())
    texts = usual(WINDOW - 1)
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


def test_labels_that_show_a_loss_are_said_to_be_worse(world, usual):
    other = {"positive": "negative", "negative": "positive"}
    texts = usual(WINDOW - 1)
    ids = world.ask(texts)
    subject_answers = world.answerers["one"].answer(pl.DataFrame({"text": texts}), 64)["label"]
    world.label({row_id: other[answer] for row_id, answer in zip(ids, subject_answers, strict=True)})
    look(world)
    assert read_json(Watched(world.root, MODEL).summary)["quality"]["changed"] == "worse"


def test_a_challenger_in_the_shadow_is_compared_with_what_was_answered(world, usual, newer):
    texts = usual(WINDOW - 1)
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


def test_failed_requests_are_counted_from_the_running_server(world, usual, released):
    with running(world.root) as server:
        port = int(server.url.rsplit(":", 1)[1])
        params = read_json(world.root / "params.yaml")
        params["flows"]["serve"]["port"] = port
        write_json(world.root / "params.yaml", params)
        assert server.predict({"text": usual(1)[0]}).status_code == 200
        look(world)
        assert read_json(Watched(world.root, MODEL).summary)["failures"]["requests"] == 1
        server.predict([{"text": text} for text in usual(3)])
        look(world)
        found = read_json(Watched(world.root, MODEL).summary)["failures"]
        assert found == {"requests": 1, "failed": 0, "sent_away": 0, "error_rate": 0}
    look(world)
    assert read_json(Watched(world.root, MODEL).summary)["failures"] is None
    assert "How many requests have failed is not known" in page(world)


def test_what_was_asked_is_escaped_on_the_page_and_gone_when_the_journal_forgets_it(world):
    texts = [f"<script>alert({number})</script> ÄÖÜ {number} ψω" for number in range(WINDOW)]
    ids = world.ask(texts)
    # The model's own tidying takes markup out: the journal is asked for what was kept.
    journal = open_journal(world.journal_url)
    kept = journal.find(ids[0])["inputs"]["text"]
    journal.close()
    look(world)
    assert "<script>" not in page(world)
    assert re.search(r"ÄÖÜ \d+ ψω", page(world)), kept
    journal = open_journal(world.journal_url)
    journal.forget(ids)
    journal.close()
    look(world)
    assert "ÄÖÜ" not in page(world)


def test_two_at_once_are_refused_and_a_model_that_nobody_uses_is_said(world, released, tmp_path):
    with Watched(world.root, MODEL).alone(), pytest.raises(Busy, match="already"):
        look(world)
    write_json(world.root / ".mill" / "live.json", {})
    with pytest.raises(ReleaseError, match="No version of tiny is in use"):
        look(world)
    params = read_json(world.root / "params.yaml")
    params["flows"]["models"][MODEL]["monitor"] = None
    write_json(world.root / "params.yaml", params)
    with pytest.raises(ParamsError, match="nothing says what is drift"):
        look(world)


def test_a_release_from_before_there_were_such_descriptors_is_watched_by_those_that_it_has(world, usual, tmp_path):
    folder = tmp_path / "older"
    shutil.copytree(world.releases["one"].folder, folder)
    reference = pl.read_parquet(folder / "reference.parquet")
    reference.drop("language", "tokens_per_word", "share_unknown_tokens", "truncated").write_parquet(
        folder / "reference.parquet"
    )
    world.promote("old", sealed(folder))
    world.ask(usual(WINDOW), "old")
    assert look(world).verdict == "ok"
    assert "language" not in [test["name"] for test in records(world)[-1]["tests"]]


def test_a_journal_in_postgresql_is_watched_too(world, usual):
    for server in started():
        url = f"postgresql+psycopg://mill:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/postgres"
        texts = usual(30)
        journal = open_journal(url)
        record(journal, MODEL, world.answerers["one"], texts)
        journal.close()
        windows = open_windows(url, MODEL)
        answer = {"label": pl.String(), "probability": pl.Float64(), "probabilities": pl.Array(pl.Float64, 2)}
        assert windows.pending(0, now_us=0).is_empty(), "what is just being committed is left for the next look"
        pending = windows.pending(0, now_us=2**60)
        version = world.answerers["one"].version
        assert pending["version"].to_list() == [version] * 30
        window = Window(version, int(pending["seq"][0]), int(pending["seq"][-1]), 30)
        rows = windows.rows(window, {"text": pl.String()}, answer)
        assert rows["text"].to_list() == [" ".join(text.split()) for text in texts]
        assert windows.embeddings(rows["seq"].to_list()).shape == (30, 32)
        assert np.isfinite(rows["probabilities"].to_numpy()).all()
        windows.close()
