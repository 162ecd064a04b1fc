"""The gate on real releases: a registered champion, the real server, and reports as a retrain leaves them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.boot import boot
from flows.gating import GateError, check_gate, gate_release, judge_release
from flows.git import git
from flows.registry import champion, decisions, promote, record_decision, register
from tasks.errors import ParamsError
from tasks.paths import Paths
from tasks.release import GOLDEN, Release
from tasks.shards import read_json, write_json, write_text
from tasks.spending import unpacked
from tests.conftest import Line
from tests.gated import GATE, better_one, changed_gate, sealed, upside_down_one
from tests.registered import dvc, write_params

# DVC's own use of a library that it has not yet followed.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")

# The line of the toy repository: what stands beside it is what the stage makes.
MAKE = """
import shutil, sys
model, made = sys.argv[1], "MADE"
for name in (f"data/{model}/clean", f"models/{model}/release"):
    shutil.rmtree(name, ignore_errors=True)
    shutil.copytree(f"{made}/{name}", name)
"""
STAGES = """stages:
  deploy:
    foreach: ${models}
    do:
      cmd: python make.py ${key}
      deps: [make.py, which]
      outs: ["data/${key}/clean", "models/${key}/release"]
"""


@pytest.fixture(scope="session")
def upside_down(released: Line, tmp_path_factory) -> Release:
    return upside_down_one(released, tmp_path_factory.mktemp("upside") / "release")


@pytest.fixture(scope="session")
def better(released: Line, tmp_path_factory) -> Release:
    return better_one(released, tmp_path_factory.mktemp("better") / "release")


@pytest.fixture(scope="session")
def home(released: Line, upside_down: Release, tmp_path_factory) -> Path:
    """A repository whose champion is the worse of the two, and larger."""
    root, made = tmp_path_factory.mktemp("gated") / "repository", tmp_path_factory.mktemp("made")
    shutil.copytree(released.paths.clean, made / "data/films/clean")
    champion = sealed(upside_down.folder, made / "models/films/release", padding=400_000)
    root.mkdir()
    for command in (
        ("init", "-q", "-b", "main"),
        ("config", "user.name", "t"),
        ("config", "user.email", "t@localhost"),
    ):
        git(root, *command)
    write_params(root)
    changed_gate(root / "params.yaml", **GATE)
    write_text(root / "dvc.yaml", STAGES)
    write_text(root / "make.py", MAKE.replace("MADE", str(made)))
    write_text(root / "which", "1\n")
    write_text(root / ".gitignore", "/.mill/\n/models/\n/data/\n")
    write_text(root / ".dvc/config", "[core]\n    analytics = false\n    autostage = false\n")
    write_text(root / ".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    dvc(root, "repro", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "the champion")
    commit = git(root, "rev-parse", "HEAD")
    promote(root, register(root, "films", commit, release=champion, why="the first"), why="the first")
    return root


@pytest.fixture
def repository(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home, tmp_path / "repository", symlinks=True))


@pytest.fixture
def worktree(home: Path, released: Line, tmp_path: Path) -> Callable[[Path], Paths]:
    """A folder in which a line has made that release."""

    def make(release: Path) -> Paths:
        paths = Paths("films", tmp_path / "worktree")
        shutil.copytree(released.paths.clean, paths.clean)
        shutil.copytree(release, paths.release)
        shutil.copyfile(home / "params.yaml", paths.root / "params.yaml")
        return paths

    return make


def decided(repository: Path, paths: Paths) -> dict[str, Any]:
    """Judge, and record it as a retrain does."""
    judge_release(repository, paths.root, "films")
    report = read_json(paths.report("gate"))
    shutil.copytree(paths.reports, repository / "reports/films", dirs_exist_ok=True)
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "decided", "--allow-empty")
    test_set = report["test_set"]["name"] if report["alpha_spent"] else None
    told = {"model": "films", "alpha_spent": report["alpha_spent"], "test_set": test_set}
    record_decision(
        repository, git(repository, "rev-parse", "HEAD"), {**told, "verdict": report["verdict"], "sentence": "-"}
    )
    return report


@pytest.mark.long
def test_a_better_challenger_is_promoted_until_the_test_set_is_worn_out(repository, worktree, better):
    paths = worktree(better.folder)
    judge_release(repository, paths.root, "films")
    files = [paths.report("gate"), paths.report("gate_used")]
    before = [file.read_bytes() for file in files]
    first = decided(repository, paths)
    # No clock is in the reports: they are the same again.
    assert [file.read_bytes() for file in files] == before
    assert not any(word in files[0].read_text() for word in ("seconds", "_ms", "p50"))
    _check_promotion(first)
    _check_measured(paths)
    assert [len(marks) for marks in unpacked(read_json(files[1])).values()] == [400]
    page = paths.page("gate").read_text()
    assert "<h1>Promote</h1>" in page
    assert page.count('class="quote"') == 12
    for part in first["comparison"]["slices"]:
        assert f"{part['rows']} rows, {part['champion']:.3f} → {part['challenger']:.3f}</span></th>" in page
        assert f'<td class="number wide">{part["challenger"]:.3f}</td>' in page
    assert len(first["comparison"]["slices"]) == 4
    assert not (paths.root / ".mill/gate").exists()
    second = decided(repository, paths)
    assert (second["verdict"], second["alpha_spent"], second["comparison"]) == ("ask", 0, None)
    assert f"{first['test_set']['name']} is worn out" in second["sentence"]
    assert second["test_set"]["rows"] == {"test": 200, "trained_on": 0, "compared": 0, "kept_back": 0, "used_up": 200}
    assert "<h1>Ask a person</h1>" in paths.page("gate").read_text()
    assert [decision["alpha_spent"] for decision in decisions(repository, "films")] == [0.05, 0]
    # What was used stays known, though the last decision has used nothing.
    assert unpacked(read_json(files[1])).keys() == {first["test_set"]["name"]}


def _check_promotion(report: dict[str, Any]) -> None:
    found = report["comparison"]
    assert report["verdict"] == "promote"
    assert report["serves"] is True
    assert "it is better, by 0." in report["sentence"]
    assert found["superiority"]["test"] == "McNemar's exact test"
    assert found["superiority"]["p_value"] < found["level"] == report["alpha_spent"] == 0.05
    assert found["only_challenger_right"] > found["only_champion_right"]
    assert found["rows"] == 200
    assert found["challenger"] == pytest.approx(1 - found["champion"])
    assert (report["test_set"]["uses_before"], report["test_set"]["spent_before"]) == (0, 0)


def _check_measured(paths: Paths) -> None:
    measured = read_json(paths.measured("gate"))
    assert measured["latency_ms"]["challenger"]["p50"] > 0
    assert measured["latency_ms"]["champion"]["rows"] == measured["latency_ms"]["challenger"]["rows"] >= 20
    assert measured["served"]["rows"] == 8
    assert measured["served"]["ready_seconds"] > 0


def test_the_first_version_is_promoted_and_spends_nothing(repository, worktree, better):
    git(repository, "tag", "-d", *git(repository, "tag", "--list").splitlines())
    assert champion(repository, "films") is None
    report = decided(repository, worktree(better.folder))
    assert (report["verdict"], report["alpha_spent"], report["champion"]) == ("promote", 0, None)
    assert "first version" in report["sentence"]
    assert report["serves"] is True


def test_what_does_not_serve_is_kept_out_and_uses_no_test_set(repository, worktree, better, tmp_path):
    golden = read_json(better.folder / GOLDEN)
    golden["rows"][0]["outputs"]["logits"][0] += 5
    broken = tmp_path / "broken"
    shutil.copytree(better.folder, broken)
    write_json(broken / GOLDEN, golden)
    paths = worktree(sealed(broken, tmp_path / "sealed").folder)
    report = decided(repository, paths)
    assert (report["verdict"], report["alpha_spent"], report["serves"]) == ("keep", 0, False)
    assert "does not bring it up" in report["sentence"]
    assert "does not answer as it did where it was made" in report["sentence"]


def test_what_is_too_large_is_kept_out_before_it_is_served(repository, worktree, better):
    paths = worktree(better.folder)
    changed_gate(paths.root / "params.yaml", max_size_mb=0.01)
    report = decided(repository, paths)
    assert (report["verdict"], report["alpha_spent"], report["serves"]) == ("keep", 0, None)
    assert "its size is above gate.max_size_mb" in report["sentence"]


def test_by_retrains_way_a_verdict_comes_with_what_was_spent_and_measured(repository, worktree, better, served):
    from prefect import flow, runtime
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    paths = worktree(better.folder)
    found, run = flow(name="gate")(lambda: (gate_release(repository, paths.root, "films"), runtime.flow_run.id))()
    report = read_json(paths.report("gate"))
    assert found["verdict"] == "promote"
    assert found["sentence"] == report["sentence"]
    assert (found["alpha_spent"], found["test_set"]) == (0.05, report["test_set"]["name"])
    assert found["measured"] == read_json(paths.measured("gate"))
    with get_client(sync_client=True) as client:
        (artifact,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
        )
    assert artifact.key == "gate-films"
    assert "## Promote" in artifact.data
    assert report["challenger"]["version"] in artifact.data


def test_a_gate_that_cannot_decide_says_so_and_leaves_no_verdict(repository, worktree, better):
    paths = worktree(better.folder)
    (paths.release / "model.onnx").unlink()
    with pytest.raises(GateError, match=r"(?s)could not be judged.*model\.onnx is missing"):
        gate_release(repository, paths.root, "films")
    assert not paths.report("gate").exists()


def test_without_the_list_of_used_rows_nothing_counts_as_fresh(repository, worktree, better):
    told = {"model": "films", "verdict": "keep", "sentence": "-", "alpha_spent": 0.01, "test_set": "set-1"}
    record_decision(repository, git(repository, "rev-parse", "HEAD"), told)
    with pytest.raises(GateError, match=r"decision/films/1 has used the test set set-1, but .*gate_used\.json"):
        judge_release(repository, worktree(better.folder).root, "films")


def test_a_metric_that_is_none_is_found_before_anything_is_trained(worktree, better):
    paths = worktree(better.folder)
    check_gate("films", paths.root / "params.yaml")
    changed_gate(paths.root / "params.yaml", metric="acuracy")
    with pytest.raises(ParamsError, match=r"'acuracy', which is not a metric.*Did you mean 'accuracy'"):
        check_gate("films", paths.root / "params.yaml")


def test_a_server_that_ends_is_said_with_its_last_words(better, worktree, tmp_path):
    paths = worktree(better.folder)
    content = read_json(paths.root / "params.yaml")
    content["flows"]["serve"]["batch_rows"] = "many"
    write_json(tmp_path / "params.yaml", content)
    found = boot(better, "films", tmp_path / "params.yaml", tmp_path / "server")
    assert found.failure is not None
    assert "The server ended with it" in found.failure
    assert "batch_rows" in found.failure
    assert json.loads((tmp_path / "server/params.yaml").read_text())["flows"]["serve"]["host"] == "127.0.0.1"
