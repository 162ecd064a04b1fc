"""`mill monitor` over a real journal, with a real release and Evidently itself."""

import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import polars as pl
import pytest

from flows import monitored
from flows.monitor import monitor
from flows.monitored import Watched
from flows.params import flows_of
from flows.worktree import Busy
from tasks.errors import ParamsError, ReleaseError
from tasks.journal import open_journal
from tasks.monitor import judge_window, open_subject
from tasks.release import Release
from tasks.shards import read_json, write_json
from tasks.windows import Window, open_windows
from tests.conftest import Line
from tests.postgres_server import PASSWORD, started
from tests.watched import MODEL, WINDOW, World, less_sure, look, make_world, page, record, records, sealed, write_params

ODD = [f"UNBELIEVABLE!!! {number} × {number + 7} ÷ 3 = ??? #WOW ψω €{number}00" for number in range(400)]


@pytest.fixture
def world(released: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return make_world(tmp_path / "root", released)


@pytest.fixture
def newer(world: World, tmp_path: Path) -> Release:
    return less_sure(world, tmp_path / "newer")


def test_without_a_window_of_predictions_it_says_how_many_there_are(world):
    looked = look(world)
    assert (looked.verdict, looked.exit_code, looked.num_windows) == ("waiting", 0, 0)
    assert f"not enough predictions: 0 of {WINDOW}" in looked.sentence
    world.ask(world.usual(37))
    assert f"not enough predictions: 37 of {WINDOW}" in look(world).sentence
    assert f"37 of {WINDOW}" in page(world)
    assert records(world) == []


@pytest.mark.long
def test_what_was_found_of_very_old_windows_goes_with_their_place_in_evidentlys_history(world, monkeypatch):
    monkeypatch.setattr(monitored, "KEPT_WINDOWS", 2)
    for _ in range(3):
        world.ask(world.usual(WINDOW))
        looked = look(world)
    assert [one["number"] for one in records(world)] == [2, 3]
    assert looked.verdict == "ok"
    from evidently.ui.workspace import Workspace  # by now without what it complains of in its own dependencies

    store = Workspace.create(str(world.root / ".mill/evidently"))
    [project] = store.list_projects()
    assert len(store.list_runs(project.id)) == 2


def test_traffic_like_the_held_out_rows_is_ok_and_judged_once(world, released):
    write_params(world.root, released, keep_pages=1)
    world.ask(world.usual(2 * WINDOW + 5))
    looked = look(world)
    assert (looked.verdict, looked.exit_code, looked.num_windows) == ("ok", 0, 2)
    again = look(world)
    assert (again.verdict, again.num_windows) == ("ok", 0)
    assert f"5 of {WINDOW} of the next" in again.sentence
    world.ask(world.usual(WINDOW))
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


def test_drift_is_watched_and_becomes_an_alarm_where_it_lasts(world):
    world.ask([*world.usual(WINDOW), *ODD[:WINDOW]])
    looked = look(world)
    assert (looked.verdict, looked.exit_code) == ("watch", 0)
    world.ask(ODD[WINDOW : 2 * WINDOW])
    looked = look(world)
    assert (looked.verdict, looked.exit_code) == ("alarm", 3)
    assert "drift in 2 windows in a row" in looked.sentence
    assert [one["verdict"] for one in records(world)] == ["ok", "watch", "alarm"]
    assert Watched(world.root, MODEL).wanted.exists()
    world.ask(world.usual(WINDOW))
    assert look(world).verdict == "ok"
    assert not Watched(world.root, MODEL).wanted.exists(), "the list of rows goes with the alarm"
    assert records(world)[-1]["streak"] == 0


def test_an_alarm_names_the_columns_and_ten_rows_that_drive_it(world):
    texts = world.usual(WINDOW)
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


def test_a_drift_below_the_smallest_effect_is_none(world, released):
    write_params(world.root, released, smallest_effect=0.9)
    world.ask([*world.usual(WINDOW // 2), *ODD[: WINDOW // 2]])
    assert look(world).verdict == "ok"
    [found] = records(world)
    assert any(test["figure"] > test["chance"] for test in found["tests"]), "beyond chance, and too small to matter"


def test_evidently_says_the_same_in_html_in_json_and_in_its_workspace(world):
    world.ask([*world.usual(WINDOW), *ODD[:WINDOW]])
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


def test_a_shift_too_small_to_matter_is_no_drift_however_many_rows_show_it(world, tmp_path):
    world.ask([*world.usual(195), *ODD[:5]])
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


def test_killed_at_any_moment_no_window_is_lost_and_none_is_judged_twice(world):
    class Killed(BaseException):
        pass

    def killing(after: int) -> Any:
        said = iter(range(after))

        def say(_: str) -> None:
            if next(said, None) is None:
                raise Killed

        return say

    world.ask([*world.usual(WINDOW), *ODD[: 2 * WINDOW]])
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


def test_windows_never_mix_versions_and_each_has_its_own_reference(world, newer):
    world.ask(world.usual(WINDOW + 20))
    world.promote("two", newer)
    world.ask(world.usual(5), "one")  # what the version before still had to answer
    world.ask(world.usual(WINDOW - 10), "two")
    looked = look(world)
    assert looked.verdict == "waiting"
    assert f"{WINDOW - 10} of {WINDOW}" in looked.sentence
    world.ask(world.usual(WINDOW), "two")
    look(world)
    one, two = world.releases["one"].version, newer.version
    assert [(record["version"], record["rows"]) for record in records(world)] == [(one, WINDOW), (two, WINDOW)]
    # By the reference of the one before, how sure the newer one is would be drift.
    assert not any(record["drifted"] for record in records(world))
    world.promote("one", world.releases["one"])
    world.ask(world.usual(WINDOW), "one")
    look(world)
    assert records(world)[-1]["version"] == one
    assert records(world)[-1]["rows"] == WINDOW


def test_a_version_whose_release_is_gone_is_passed_over_and_said(world, newer):
    world.ask(world.usual(WINDOW))
    gone = world.releases["one"].folder
    world.promote("two", newer)
    shutil.rmtree(gone)
    world.ask(world.usual(WINDOW), "two")
    said: list[str] = []
    monitor(world.root, MODEL, say=said.append)
    assert any("cannot be judged any more" in line for line in said)
    assert [record["version"] for record in records(world)] == [newer.version]
    said.clear()
    monitor(world.root, MODEL, say=said.append)
    assert not any("cannot be judged" in line for line in said)


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


def test_a_release_from_before_there_were_such_descriptors_is_watched_by_those_that_it_has(world, tmp_path):
    folder = tmp_path / "older"
    shutil.copytree(world.releases["one"].folder, folder)
    reference = pl.read_parquet(folder / "reference.parquet")
    reference.drop("language", "tokens_per_word", "share_unknown_tokens", "truncated").write_parquet(
        folder / "reference.parquet"
    )
    world.promote("old", sealed(folder))
    world.ask(world.usual(WINDOW), "old")
    assert look(world).verdict == "ok"
    assert "language" not in [test["name"] for test in records(world)[-1]["tests"]]


def test_a_journal_in_postgresql_is_watched_too(world):
    for server in started():
        url = f"postgresql+psycopg://mill:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/postgres"
        texts = world.usual(30)
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
