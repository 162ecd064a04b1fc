"""`mill versions` and `mill show`, as a person reads them: from tags, commits and releases, without a server."""

import shutil

import pytest

from flows.git import git
from flows.registry import RegistryError, promote
from flows.tags import create
from flows.versions import print_version, print_versions, rows_of
from tasks.shards import write_json, write_text

# DVC's own use of a library that it has not yet followed.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


@pytest.fixture
def used(history):
    """Two versions of which the first is back in use, and a challenger that its floors refused."""
    for number in (1, 2):
        promote(history.root, history.version(number, why="schedule"), why="schedule")
    promote(history.root, history.version(1), why="complaints", rollback=True)
    history.decide(3, "keep")
    return history


def test_each_version_and_each_challenger_has_a_row_with_its_stage_and_reason(used):
    rows = {row.name: row for row in rows_of(used.root, "films")}
    assert {name: (row.stage, row.why) for name, row in rows.items()} == {
        used.releases[2]: ("refused", "keep, says the gate."),
        "films@v1.1.0": ("was champion", "schedule"),
        "films@v1.0.0": ("champion", "rollback: complaints"),
    }
    assert rows[used.releases[2]].metric == rows["films@v1.0.0"].metric | {"metric": "accuracy"}


def test_the_table_is_printed_with_metric_and_interval(used, capsys):
    print_versions(used.root, None)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].strip() == "films"
    (line,) = [line for line in printed.splitlines() if line.startswith("films@v1.0.0")]
    version, day, _, metric, value, *_ = line.split()
    low, high = line.split("(")[1].split(")")[0].split(" to ")
    assert (version, day, metric) == (
        "films@v1.0.0",
        rows_of(used.root, "films")[0].when.date().isoformat(),
        "accuracy",
    )
    assert float(low) <= float(value) <= float(high)


def test_a_challenger_that_asks_a_person_or_was_kept_out_says_so_until_it_is_a_version(history):
    history.decide(1, "ask")
    history.decide(2, "keep")
    stages = {row.name: row.stage for row in rows_of(history.root, "films")}
    assert stages == {history.releases[0]: "asks a person", history.releases[1]: "kept out"}
    history.version(1)
    stages = {row.name: row.stage for row in rows_of(history.root, "films")}
    assert stages == {"films@v1.0.0": "registered", history.releases[1]: "kept out"}


def test_where_there_is_no_version_yet_the_way_to_one_is_said(history, capsys):
    print_versions(history.root, None)
    assert capsys.readouterr().out == "films has no version yet. `mill retrain films` makes one.\n"
    with pytest.raises(RegistryError, match=r"There is no model 'flims'\. Did you mean 'films'"):
        print_versions(history.root, "flims")
    with pytest.raises(RegistryError, match=r"films has no champion\. No model has a version yet"):
        print_version(history.root, "films")


def test_without_commits_or_without_git_the_answer_is_a_sentence(tmp_path, capsys, history):
    with pytest.raises(RegistryError, match="is no Git repository"):
        print_versions(tmp_path / "..", None)
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    shutil.copy(history.root / "params.yaml", empty)
    print_versions(empty, "films")
    assert "films has no version yet" in capsys.readouterr().out


def test_params_that_are_being_written_do_not_hide_the_versions(used, capsys):
    write_text(used.root / "params.yaml", "models: {")
    print_versions(used.root, None)
    assert "films@v1.1.0" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["store", "cache", "nowhere"])
def test_a_version_is_shown_with_all_that_it_comes_from(used, capsys, place):
    if place != "store":
        shutil.rmtree(used.root / ".mill/versions")
    if place == "nowhere":
        shutil.rmtree(used.root / ".dvc/cache")
    print_version(used.root, "films")
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == f"films@v1.0.0, {used.releases[0]}, the champion"
    assert used.commits[0] in printed
    assert "films#champion#3" in printed
    assert "rollback: complaints" in printed
    assert "accuracy 0." in printed
    known = ["learning_rate: 0.003", "rows-00000.parquet", "torch 2."]
    assert [word in printed for word in known] == [place != "nowhere"] * 3
    assert ("neither the version store nor DVC's cache" in printed) == (place == "nowhere")


def test_a_challenger_is_shown_by_its_hash_with_its_gates_report(used, capsys):
    root = used.root
    compared = {
        "challenger": 0.8,
        "champion": 0.85,
        "confidence": 0.995,
        "difference": {"value": -0.05, "low": -0.09, "high": -0.01},
        "level": 0.0025,
        "margin": {"p_value": 0.9},
        "rows": 1234,
        "superiority": {"p_value": 0.99},
    }
    test_set = {"name": "abc", "uses": 20, "uses_before": 2}
    report = {"verdict": "keep", "metric": "accuracy", "comparison": compared, "test_set": test_set}
    write_json(root / "reports/films/gate.json", report)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "judged")
    commit = git(root, "rev-parse", "HEAD")
    facts = {"verdict": "keep", "sentence": "Worse.", "challenger": used.releases[2], "champion": "films@v1.0.0"}
    create(root, "decision/films/2", commit, "films: keep.", facts)
    print_version(root, used.releases[2])
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == f"{used.releases[2]} of films, no version"
    assert "refused: accuracy is below its floor." in printed
    assert "against films@v1.0.0: keep. Worse." in printed
    assert "accuracy 0.800 against 0.850: −0.050 (99.50% interval −0.090 to −0.010) on 1,234 rows" in printed
    assert "better: p = 0.99; within the margin: p = 0.9; 0.0025 is needed, use 3 of 20 of the test set abc" in printed
    assert f"git show {commit[:10]}:reports/films/gate.json" in printed
