"""Retraining on real Git, DVC, Prefect and registry; the line of the toy project is one cheap stage."""

import json
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

import flows.retrain as flow
from flows import deployed, landing, registry
from flows.git import LIVE, GitError, attempt, git, tip
from flows.retrain import retrain
from tasks.errors import ParamsError
from tasks.release import MANIFEST, read_release, seal
from tasks.shards import read_json, write_json, write_text
from tests.conftest import REPOSITORY, Line, tiny_params
from tests.line_toy import standing_in
from tests.test_worktree import dvc, fingerprint

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("served")]

# As many files as are pinned, that release; the fourth pin is the one that fails.
MAKE = """
import json, shutil, sys
from pathlib import Path
model = sys.argv[1]
count = len(json.loads(Path(f"data/{model}/source.json").read_text())["partitions"])
print("making release", count, flush=True)
if count == 4:
    sys.exit("no such release")
release = Path(f"models/{model}/release")
shutil.rmtree(release, ignore_errors=True)
shutil.copytree(f"RELEASES/{count}", release)
Path(f"reports/{model}").mkdir(parents=True, exist_ok=True)
Path(f"reports/{model}/deploy.json").write_text(json.dumps({"count": count}))
Path(f"reports/{model}/deploy.html").write_text("a page")
"""

STAGES = """stages:
  deploy:
    foreach: ${models}
    do:
      cmd: python make.py ${key}
      deps: ["${item.pin}", make.py, "data/${key}/admitted.jsonl"]
      outs:
        - models/${key}/release
        - reports/${key}/deploy.json: {cache: false}
"""


@pytest.fixture(scope="session")
def toy(tmp_path_factory, released: Line) -> Path:
    """A repository of two models whose line packs one of three releases, by how many files its source has."""
    folder = tmp_path_factory.mktemp("toy")
    for count in (1, 2, 3):
        release = folder / "releases" / str(count)
        shutil.copytree(released.paths.release, release)
        facts = {key: value for key, value in read_json(release / MANIFEST).items() if key not in ("files", "version")}
        verdict = {"verdict": "refused", "reasons": ["accuracy is below its floor."]} if count == 3 else {}
        seal(release, {**facts, **verdict, "count": count})
    root = folder / "repository"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    git(root, "config", "user.name", "t")
    git(root, "config", "user.email", "t@localhost")
    write_params(root)
    write_text(root / "dvc.yaml", STAGES)
    write_text(root / "make.py", MAKE.replace("RELEASES", str(folder / "releases")))
    write_text(root / ".gitignore", "/.mill/\n/models/\n/incoming/\n*.html\nmeasured/\n")
    write_text(root / ".dvc/config", "[core]\n    analytics = false\n    autostage = false\n")
    write_text(root / ".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    for model in ("films", "books"):
        arrive(root, model, 1)
        write_text(root / f"data/{model}/admitted.jsonl", "\n")
        write_text(root / f"data/{model}/forgotten.jsonl", "")
        write_json(root / f"data/{model}/feedback.json", {"partitions": []})
    git(root, "add", "-A")
    git(root, "commit", "-qm", "all")
    return root


def write_params(root: Path) -> None:
    from ruamel.yaml import YAML

    shipped = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())["flows"]
    gate = {"gate": shipped["models"]["reviews"]["gate"], "retrain": None}
    models = {}
    for model in ("films", "books"):
        params = tiny_params().model_dump(mode="json", by_alias=True, serialize_as_any=True)
        params["collect"] |= {"path": f"incoming/{model}/*.csv", "format": "csv"}
        models[model] = {**params, "pin": f"data/{model}/source.json"}
    flows = {**shipped, "models": {"films": gate, "books": gate}}
    write_json(root / "params.yaml", {"models": models, "flows": flows})


def arrive(root: Path, model: str, number: int) -> None:
    write_text(root / f"incoming/{model}/{number}.csv", f"id,text\n{number},new\n")


@dataclass
class Gate:
    """Stands in for the statistics, which have tests of their own: says what it is told, and counts."""

    verdict: str = "promote"
    uses: int = 0

    def __call__(self, root: Path, worktree: Path, model: str, *, keep: Sequence[int] = ()) -> dict[str, Any]:
        self.uses += 1
        found = {"verdict": self.verdict, "sentence": "It is better.", "alpha_spent": 0.001, "test_set": "t"}
        write_json(worktree / f"reports/{model}/gate.json", found)
        write_text(worktree / f"reports/{model}/gate.html", "a page")
        return found


@pytest.fixture
def gate(monkeypatch) -> Gate:
    found = Gate()
    monkeypatch.setattr("flows.gating.gate_release", found)
    return found


@pytest.fixture
def repository(toy, tmp_path) -> Path:
    """A copy of the toy repository of one's own."""
    return Path(shutil.copytree(toy, tmp_path / "repository", symlinks=True))


@pytest.fixture(scope="module")
def after_the_first(toy, prefect_server, tmp_path_factory) -> Path:
    """The toy repository after its first retrain, which has promoted films@v1.0.0."""
    root = Path(shutil.copytree(toy, tmp_path_factory.mktemp("first") / "repository", symlinks=True))
    with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_API_URL: prefect_server}):
        patch.setenv("PREFECT_API_URL", prefect_server)
        patch.setattr("flows.gating.gate_release", Gate())
        assert retrain(root, "films").version == "films@v1.0.0"
    return root


@pytest.fixture
def landed(after_the_first, tmp_path) -> Path:
    """A copy of it of one's own."""
    return Path(shutil.copytree(after_the_first, tmp_path / "repository", symlinks=True))


def champion(root: Path, model: str = "films") -> str | None:
    version = registry.champion(root, model)
    return version.tag if version else None


def branches(root: Path) -> list[str]:
    return git(root, "for-each-ref", "--format=%(refname:short)", "refs/heads/").splitlines()


def test_the_first_version_lands_on_live_with_tag_decision_and_reports(repository, gate):
    write_text(repository / "notes.txt", "mine")
    stale = dvc(repository, "status")
    before = fingerprint(repository)
    result = retrain(repository, "films", why="by hand")
    assert (result.verdict, result.version, result.exit_code) == ("promoted", "films@v1.0.0", 0)
    assert "films@v1.0.0 is the champion now" in result.sentence
    assert fingerprint(repository) == before
    assert champion(repository) == "films@v1.0.0"
    assert tip(repository, LIVE) == result.commit == registry.champion(repository, "films").commit
    changed = git(repository, "diff", "--name-only", "main", LIVE).splitlines()
    assert changed == ["data/films/source.json", "dvc.lock", "reports/films/deploy.json", "reports/films/gate.json"]
    message = git(repository, "log", "-1", "--format=%B", LIVE)
    assert "It is better." in message
    assert "Why: by hand" in message
    decision = registry.decisions(repository, "films")[-1]
    assert (decision["verdict"], decision["commit"], decision["champion"]) == ("promote", result.commit, None)
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert list((repository / ".mill/retrain/reports/films").glob("*/gate.html"))
    assert dvc(repository, "status") == stale


def test_the_same_inputs_again_are_nothing_to_learn_and_run_no_line(landed, gate, capfd):
    refs = git(landed, "for-each-ref")
    capfd.readouterr()
    started = time.monotonic()
    result = retrain(landed, "films", why="schedule")
    assert time.monotonic() - started < 15
    assert (result.verdict, result.exit_code) == ("nothing", 0)
    assert "nothing to learn" in result.sentence
    assert "making release" not in capfd.readouterr().out
    assert git(landed, "for-each-ref") == refs
    assert gate.uses == 0


def test_what_is_new_is_learned_and_comes_on_top_of_live(landed, gate):
    first = tip(landed, LIVE)
    arrive(landed, "films", 2)
    second = retrain(landed, "films", why="drift")
    assert (second.verdict, second.version) == ("promoted", "films@v1.1.0")
    assert champion(landed) == "films@v1.1.0"
    assert git(landed, "rev-parse", f"{LIVE}~1") == first
    assert registry.decisions(landed, "films")[-1]["champion"] == "films@v1.0.0"
    assert retrain(landed, "films").verdict == "nothing"


@pytest.mark.parametrize(("verdict", "code"), [("keep", 3), pytest.param("ask", 1, marks=pytest.mark.long)])
def test_a_challenger_that_is_not_promoted_leaves_live_and_is_decided_on_once(landed, gate, verdict, code):
    live = tip(landed, LIVE)
    arrive(landed, "films", 2)
    gate.verdict = verdict
    result = retrain(landed, "films")
    assert (result.verdict, result.exit_code) == ({"keep": "kept", "ask": "ask"}[verdict], code)
    assert "films@v1.0.0 stays the champion" in result.sentence
    assert tip(landed, LIVE) == live
    assert champion(landed) == "films@v1.0.0"
    decision = registry.decisions(landed, "films")[-1]
    assert (decision["verdict"], decision["commit"]) == (verdict, result.commit)
    assert decision["commit"] != live
    assert json.loads(git(landed, "show", f"{result.commit}:reports/films/gate.json"))["verdict"] == verdict
    assert retrain(landed, "films").verdict == "nothing"
    assert gate.uses == 1


@pytest.mark.long
def test_with_force_the_same_inputs_are_decided_on_again(landed, gate):
    arrive(landed, "films", 2)
    gate.verdict = "keep"
    retrain(landed, "films")
    gate.verdict = "promote"
    assert retrain(landed, "films", force=True, why="a second look").verdict == "promoted"
    assert registry.decisions(landed, "films")[-1]["forced"] is True


@pytest.mark.long
def test_a_release_below_its_floors_is_refused_and_uses_no_test_set(landed, gate):
    for number in (2, 3):
        arrive(landed, "films", number)
    result = retrain(landed, "films")
    assert (result.verdict, result.exit_code) == ("refused", 3)
    assert "below its floor" in result.sentence
    assert gate.uses == 0
    assert registry.decisions(landed, "films")[-1]["alpha_spent"] == 0
    assert champion(landed) == "films@v1.0.0"
    assert retrain(landed, "films").verdict == "nothing"


@pytest.mark.long
def test_a_line_that_fails_leaves_no_trace_and_is_tried_again(landed, gate):
    for number in (2, 3, 4):
        arrive(landed, "films", number)
    refs = git(landed, "for-each-ref")
    for _ in range(2):
        result = retrain(landed, "films")
        assert (result.verdict, result.exit_code) == ("failed", 1)
        assert "no such release" in result.sentence
    assert git(landed, "for-each-ref") == refs
    assert len(git(landed, "worktree", "list").splitlines()) == 1


def test_a_source_that_cannot_be_looked_at_is_said(repository, gate):
    shutil.rmtree(repository / "incoming")
    result = retrain(repository, "films")
    assert result.verdict == "failed"
    assert "could not be looked at" in result.sentence
    assert "incoming/films" in result.sentence
    assert branches(repository) == ["main"]


def test_the_worktree_runs_what_is_committed_on_main_and_not_what_is_being_written(landed, gate):
    committed = (landed / "make.py").read_text()
    write_text(landed / "make.py", committed + "\n# committed\n")
    git(landed, "commit", "-qam", "code")
    write_text(landed / "make.py", "half an idea")
    arrive(landed, "films", 2)
    result = retrain(landed, "films")
    assert result.verdict == "promoted"
    assert git(landed, "show", f"{LIVE}:make.py").endswith("# committed")
    parents = git(landed, "rev-list", "--parents", "-1", f"{LIVE}~1").split()[1:]
    assert parents[1] == tip(landed, "main")


def test_parameters_changed_on_both_branches_ask_for_a_person_and_promote_nothing(landed, gate):
    write_text(landed / "make.py", "main's")
    git(landed, "commit", "-qam", "main's")
    git(landed, "switch", "-q", LIVE)
    write_text(landed / "make.py", "live's")
    git(landed, "commit", "-qam", "live's")
    git(landed, "switch", "-q", "main")
    arrive(landed, "films", 2)
    refs = git(landed, "for-each-ref")
    result = retrain(landed, "films")
    assert (result.verdict, result.exit_code) == ("ask", 1)
    assert "make.py" in result.sentence
    assert "git merge --no-commit live" in result.sentence
    assert git(landed, "for-each-ref") == refs
    assert gate.uses == 0


@pytest.mark.long
def test_a_conflict_at_landing_asks_for_a_person_each_night_and_what_waits_is_still_sent(
    landed, gate, tmp_path, monkeypatch
):
    write_text(landed / "make.py", (landed / "make.py").read_text() + "# main's\n")
    git(landed, "commit", "-qam", "main's")
    arrive(landed, "films", 2)

    def meanwhile(*arguments: Any, **named: Any) -> dict[str, Any]:
        commit_on_live(landed, tmp_path, "make.py", "live's")
        return gate(*arguments, **named)

    monkeypatch.setattr("flows.gating.gate_release", meanwhile)
    first = retrain(landed, "films", why="schedule")
    live, decided = tip(landed, LIVE), tip(landed, "decision/films/2")
    assert (first.verdict, first.exit_code, first.commit) == ("ask", 1, decided)
    (branch,) = git(landed, "branch", "--format=%(refname:short)", "--points-at", str(decided)).splitlines()
    commands = f"git switch {branch} && git merge --no-commit live"
    assert commands in first.sentence

    git(tmp_path, "init", "-q", "--bare", "bare.git")
    git(landed, "remote", "add", "origin", str(tmp_path / "bare.git"))
    with standing_in(landed):
        state = deployed.retrain("films", return_state=True)
    assert (state.name, state.type.value) == ("Ask", "COMPLETED")
    assert commands in str(state.message)
    assert (champion(landed), tip(landed, LIVE)) == ("films@v1.0.0", live)
    assert tip(tmp_path / "bare.git", "decision/films/2") == tip(tmp_path / "bare.git", branch) == decided

    git(landed, "switch", "-q", branch)
    assert attempt(landed, "merge", "--no-commit", LIVE).returncode == 1
    git(landed, "checkout", LIVE, "--", "dvc.lock", "reports")
    write_text(landed / "make.py", MAKE)
    git(landed, "add", "make.py")
    git(landed, "commit", "-qm", "both")
    git(landed, "branch", "-f", LIVE, branch)
    git(landed, "switch", "-q", "main")
    third = retrain(landed, "films")
    assert (third.verdict, third.version, third.commit) == ("promoted", "films@v1.1.0", decided)


def commit_on_live(root: Path, scratch: Path, name: str, text: str) -> None:
    """What another one lands there meanwhile."""
    env = {"GIT_INDEX_FILE": str(scratch / "index")}
    git(root, "read-tree", LIVE, env=env)
    blob = git(root, "hash-object", "-w", "--stdin", stdin=text)
    git(root, "update-index", "--cacheinfo", f"100644,{blob},{name}", env=env)
    commit = git(root, "commit-tree", git(root, "write-tree", env=env), "-p", LIVE, stdin="live's")
    git(root, "update-ref", f"refs/heads/{LIVE}", commit)


@pytest.mark.long
def test_two_models_that_retrain_at_once_both_land(repository, gate, monkeypatch):
    both = threading.Barrier(2)
    record = flow.record_decision

    def meet(*arguments: Any) -> str:
        found = record(*arguments)
        both.wait(300)
        return found

    monkeypatch.setattr(flow, "record_decision", meet)
    with ThreadPoolExecutor(2) as pool:
        # A thread does not know this one's settings of Prefect by itself.
        runs = [pool.submit(copy_context().run, retrain, repository, model) for model in ("films", "books")]
        films, books = (run.result() for run in runs)
    assert (films.verdict, books.verdict) == ("promoted", "promoted")
    for result in (films, books):
        git(repository, "merge-base", "--is-ancestor", result.commit, LIVE)
    lock = git(repository, "show", f"{LIVE}:dvc.lock")
    assert "deploy@films" in lock
    assert "deploy@books" in lock
    assert retrain(repository, "films").verdict == retrain(repository, "books").verdict == "nothing"


class Killed(BaseException):
    """Stands for the end of the process at this line."""


def killed(*_: Any, **__: Any) -> None:
    raise Killed


@pytest.mark.long
def test_a_decision_that_was_cut_short_is_left_where_somebody_has_promoted_since(toy, landed, gate, monkeypatch):
    arrive(landed, "films", 2)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(landing, "put_on_live", killed)
        retrain(landed, "films")
    live = tip(landed, LIVE)
    own = git(landed, "commit-tree", f"{LIVE}^{{tree}}", "-p", LIVE, stdin="by hand")
    release = read_release(toy.parent / "releases/1")
    registry.promote(landed, registry.register(landed, "films", own, release=release, why="mine"), why="mine")
    retrain(landed, "films")
    assert champion(landed) == "films@v1.1.0"
    assert registry.champion(landed, "films").commit == own
    assert tip(landed, LIVE) == live


def test_a_champion_that_changes_during_the_run_makes_the_decision_void(landed, gate, monkeypatch):
    arrive(landed, "films", 2)

    def meanwhile(*arguments: Any, **named: Any) -> dict[str, Any]:
        git(landed, "tag", "-d", "films#champion#1")
        return gate(*arguments, **named)

    monkeypatch.setattr("flows.gating.gate_release", meanwhile)
    result = retrain(landed, "films")
    assert (result.verdict, result.exit_code) == ("failed", 1)
    assert "the champion changed during the run" in result.sentence
    assert len(registry.decisions(landed, "films")) == 1


@pytest.mark.long
def test_offline_it_is_said_and_the_next_retrain_sends_it(repository, gate, tmp_path, capfd, caplog):
    git(repository, "remote", "add", "origin", str(tmp_path / "bare.git"))
    assert retrain(repository, "films").verdict == "promoted"
    assert "Not pushed: the Git remote origin cannot be reached" in caplog.text  # within the flow, prints are its log
    git(tmp_path, "init", "-q", "--bare", "bare.git")
    assert retrain(repository, "films").verdict == "nothing"
    assert "Pushed to the Git remote origin." in capfd.readouterr().out
    found = git(tmp_path / "bare.git", "for-each-ref", "--format=%(refname)").splitlines()
    assert {"refs/heads/live", "refs/tags/films@v1.0.0", "refs/tags/decision/films/1"} <= set(found)


def test_live_in_somebodys_hands_is_refused_and_all_stays_as_it_was(repository, gate, tmp_path):
    git(repository, "worktree", "add", "-q", "-b", LIVE, str(tmp_path / "mine"))
    before = fingerprint(repository)
    with pytest.raises(GitError, match=r"git -C .*mine switch --detach"):
        retrain(repository, "films")
    assert fingerprint(repository) == before


def test_an_unknown_model_is_named_and_nothing_is_left_behind(repository, gate):
    with pytest.raises(ParamsError, match="Did you mean 'films'"):
        retrain(repository, "flims")
    assert branches(repository) == ["main"]
    assert len(git(repository, "worktree", "list").splitlines()) == 1
