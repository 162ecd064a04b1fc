"""`mill status` from Git alone, and with a server."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.git import LIVE, git
from flows.params import load_flows
from flows.registry import record_decision, register
from flows.schedule import register as register_schedules
from flows.status import Status, status, status_of
from tasks.gate_report import test_set_report as report_of_test_set
from tasks.release import read_release, seal
from tasks.shards import write_json, write_text
from tasks.spending import choose, joined, marks_of
from tests.deployments import applied
from tests.scheduled import make_repository, write_params

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
NOTHING_RUNS = "Nothing runs by itself: `mill up` does not run here. Start it: mill up --detach"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return make_repository(tmp_path)


def decide(root: Path, verdict: str, commit: str = "HEAD", **facts: Any) -> None:
    made = {
        "model": "films",
        "verdict": verdict,
        "sentence": "The figures say so.",
        "challenger": "sha-new",
        "champion": None,
        "why": "schedule",
        "at": "2026-11-24T03:10:00+00:00",
        "alpha_spent": 0.0,
        "test_set": None,
    }
    record_decision(root, git(root, "rev-parse", commit), {**made, **facts})


def accepted(folder: Path, name: str) -> Any:
    write_text(folder / name / "weights", name)
    facts = {
        "verdict": "accepted",
        "reasons": [],
        "headline": "accuracy",
        "metrics": {"accuracy": {"value": 0.85, "low": 0.84, "high": 0.86}},
    }
    seal(folder / name, facts)
    return read_release(folder / name)


def lines(found: Status) -> Mapping[str, str]:
    return dict(found.models["films"])


def test_of_a_fresh_repository_it_says_what_is_missing(repository, capsys):
    assert status(repository) == 1
    told = capsys.readouterr().out
    assert "films\n  champion     none yet\n  last verdict no challenger was decided on yet\n" in told
    assert f"Needs a person:\n- {NOTHING_RUNS}\n" in told
    found = status_of(repository, NOW)
    assert found.needs == [NOTHING_RUNS]
    assert lines(found)["next retrain"] == "2027-01-01 03:00 UTC, where `mill up` runs by then"


def test_without_a_schedule_nothing_needs_a_person(repository, capsys):
    params = json.loads((repository / "params.yaml").read_text())
    params["flows"]["models"]["films"]["retrain"] = None
    write_json(repository / "params.yaml", params)
    assert status(repository) == 0
    assert capsys.readouterr().out.endswith("\nNothing needs a person.\n")


def test_the_next_run_is_told_in_the_schedules_own_time_zone(repository):
    write_params(repository, cron="30 2 * * *", timezone="Europe/Berlin")
    assert lines(status_of(repository, NOW))["next retrain"].startswith("2026-11-25 02:30 CET")


def test_the_champion_and_the_last_verdict_come_from_the_tags(repository, tmp_path):
    commit = git(repository, "rev-parse", "HEAD")
    register(repository, "films", commit, release=accepted(tmp_path, "one"), why="mine")
    promoted(repository, commit)
    decide(repository, "keep", champion="films@v1.0.0")
    found = lines(status_of(repository, NOW))
    assert found["champion"].startswith("films@v1.0.0, accuracy 0.850 (0.840 to 0.860), made 2")
    assert found["last verdict"] == "keep, 2026-11-24 03:10 UTC: The figures say so."
    assert status_of(repository, NOW).needs == [NOTHING_RUNS]


def promoted(root: Path, commit: str) -> None:
    """What GTO's own command writes."""
    git(root, "tag", "-a", "-m", "promoted", "films#champion#1", commit)


def test_a_verdict_that_asks_waits_until_somebody_has_decided(repository, tmp_path):
    decide(repository, "ask")
    [waits, _] = status_of(repository, NOW).needs
    assert waits == ("films: a challenger waits: The figures say so. Decide: mill promote sha-new --why '…'")
    commit = git(repository, "rev-parse", "HEAD")
    register(repository, "films", commit, release=accepted(tmp_path, "one"), why="mine")
    promoted(repository, commit)
    assert status_of(repository, NOW).needs == [NOTHING_RUNS]


def test_a_promotion_that_was_cut_short_is_said(repository):
    decide(repository, "promote")
    assert "films: sha-new was to be promoted, and is not: mill retrain films" in status_of(repository, NOW).needs[0]


def test_a_worn_out_test_set_is_said_until_another_one_decides(repository):
    uses = load_flows(repository / "params.yaml").models["films"].gate.uses
    for _ in range(uses - 1):
        decide(repository, "keep", alpha_spent=0.05 / uses, test_set="abc")
    assert status_of(repository, NOW).needs == [NOTHING_RUNS]
    decide(repository, "keep", alpha_spent=0.05 / uses, test_set="abc")
    assert f"test set abc has decided {uses} times" in status_of(repository, NOW).needs[0]
    decide(repository, "keep", alpha_spent=0.05 / uses, test_set="def")
    assert status_of(repository, NOW).needs == [NOTHING_RUNS]


@pytest.mark.parametrize("kept_back", [20, 0])
def test_rows_that_were_kept_back_follow_a_worn_out_test_set_and_ask_nobody(repository, kept_back):
    """Decided as the gate does: some test rows at a time, and its report in the decision's commit."""
    gate = load_flows(repository / "params.yaml").models["films"].gate
    texts = [f"row {number}" for number in range(50)]
    marks = marks_of(pl.DataFrame({"id": texts, "text": texts}), ["text"])
    made, used = [], {}
    for _ in range(gate.uses):
        found = choose(marks, used, made, alpha=gate.alpha, uses=gate.uses, most_rows=50 - kept_back)
        used = joined(used, found, marks)
        told = report_of_test_set(found, gate, found.level, {"test": 50})
        write_json(repository / "reports/films/gate.json", {"test_set": told})
        git(repository, "add", "-A")
        git(repository, "commit", "-qm", "decided", "--allow-empty")
        made.append({"alpha_spent": found.level, "test_set": found.name})
        decide(repository, "keep", champion="films@v1.0.0", **made[-1])
    needs = status_of(repository, NOW).needs
    assert [f"test set {found.name} has decided {gate.uses} times" in need for need in needs[:-1]] == (
        [] if kept_back else [True]
    )
    follower = choose(marks, used, made, alpha=gate.alpha, uses=gate.uses, most_rows=None)
    assert int(follower.chosen.sum()) == kept_back


def test_live_in_somebodys_hands_and_branches_in_conflict_are_said(repository):
    git(repository, "switch", "-qc", LIVE)
    write_text(repository / "make.py", "live's")
    git(repository, "commit", "-qam", "live's")
    assert any(f"`{LIVE}` is checked out" in need for need in status_of(repository, NOW).needs)
    git(repository, "switch", "-q", "main")
    write_text(repository / "make.py", "main's")
    git(repository, "commit", "-qam", "main's")
    refs = git(repository, "for-each-ref")
    [_, conflict] = status_of(repository, NOW).needs
    assert "make.py" in conflict
    assert "git merge --no-commit live" in conflict
    assert git(repository, "for-each-ref") == refs


def test_commits_that_did_not_reach_the_remotes_are_counted(repository):
    write_json(repository / ".mill/unpushed", [git(repository, "rev-parse", "HEAD")])
    assert "1 commit of retraining did not reach the remotes" in status_of(repository, NOW).needs[-1]


def test_a_tag_that_cannot_be_read_hides_nothing_else(repository):
    promoted(repository, git(repository, "rev-parse", "HEAD"))
    needs = status_of(repository, NOW).needs
    assert "films: films#champion#1 promotes the commit" in needs[0]
    assert needs[-1] == NOTHING_RUNS


def test_a_server_that_does_not_answer_is_said_and_git_is_read(repository, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    found = status_of(repository, NOW)
    assert "Prefect's server at http://127.0.0.1:9/api does not answer" in found.needs[0]
    assert lines(found)["champion"] == "none yet"


def test_a_failed_run_and_one_that_did_not_start_are_said(repository, served, monkeypatch):
    from prefect.client.orchestration import get_client
    from prefect.states import Failed, Running, Scheduled

    monkeypatch.setenv("PREFECT_API_URL", served)
    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        [one] = register_schedules(repository, load_flows(repository / "params.yaml"), applied)
        assert "last retrain" not in lines(status_of(repository, now))
        late = Scheduled(scheduled_time=now - timedelta(hours=1))
        ended = client.create_flow_run_from_deployment(one.id)
        for state in (Running(), Failed(message="The line failed at train.")):
            client.set_flow_run_state(ended.id, state, force=True)
        client.create_flow_run_from_deployment(one.id, state=late)
        found = status_of(repository, now)
        client.delete_deployment(one.id)
    assert lines(found)["last retrain"].startswith("Failed, ")
    assert f"retrain/films ended as Failed at {now:%Y-%m-%d}" in found.needs[0]
    assert "The line failed at train." in found.needs[0]
    assert f"/runs/flow-run/{ended.id}" in found.needs[0]
    assert f"retrain/films should have started at {now - timedelta(hours=1):%Y-%m-%d %H:%M}" in found.needs[1]


def test_dvc_remotes_without_a_default_are_for_a_person(repository):
    config = repository / ".dvc/config"
    write_text(config, config.read_text() + '[remote "far"]\n    url = s3://bucket/dvc\n')
    said = status_of(repository, NOW).needs[-1]
    assert "DVC knows the remote far, and none is the default. `dvc remote default far`" in said
