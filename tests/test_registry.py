"""Versions, promotions and decisions as tags of a real repository, and the files that follow them."""

import json
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import registry
from flows.git import GitError, git
from flows.outputs import OutputError
from flows.registry import (
    RegistryError,
    champion,
    champion_before,
    decisions,
    fetch,
    promote,
    record_decision,
    register,
    settle,
    versions,
)
from flows.store import current, live_file, read_live
from flows.tags import create, find
from tasks.errors import MillError
from tasks.release import read_release
from tests.registered import History, dvc, make_release

# DVC's own use of a library that it has not yet followed.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


@pytest.fixture
def release(made: History):
    """The release of that number, as it was made."""
    return lambda number: read_release(made.packed / str(number))


@pytest.fixture
def registered(history: History, release) -> list[registry.Version]:
    """The first two commits as versions."""
    return [history.version(number, why=f"the {number}.") for number in (1, 2)]


def refs(root: Path) -> str:
    return git(root, "for-each-ref")


def gto(root: Path, *arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("gto")), *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_version_is_v1_and_each_further_one_bumps_the_minor_number(history, registered):
    assert [version.tag for version in registered] == ["films@v1.0.0", "films@v1.1.0"]
    assert versions(history.root, "films") == registered
    first = registered[0]
    assert (first.commit, first.release, first.number) == (history.commits[0], history.releases[0], "v1.0.0")
    assert first.why == "the 1."
    assert first.metric["name"] == "accuracy"
    assert first.metric["low"] <= first.metric["value"] <= first.metric["high"]
    assert git(history.root, "cat-file", "-t", "films@v1.0.0") == "tag"
    assert git(history.root, "tag", "-l", "--format=%(subject)", "films@v1.0.0").startswith("films v1.0.0 is sha-")


def test_a_commit_is_registered_once(history, registered, release):
    before = refs(history.root)
    again = register(history.root, "films", history.commits[0], release=release(1), why="again")
    assert again == registered[0]
    with pytest.raises(RegistryError, match=r"is films@v1\.0\.0 already, with the release sha-"):
        register(history.root, "films", history.commits[0], release=release(2), why="other")
    assert refs(history.root) == before


def test_a_number_that_somebody_has_taken_is_left_to_them(history, registered, release):
    git(history.root, "tag", "films@v1.7.0", history.commits[2])
    version = register(history.root, "films", history.commits[2], release=release(3), why="")
    assert version.tag == "films@v1.8.0"


def _register(root: Path, commit: str, folder: Path) -> str:
    return register(root, "films", commit, release=read_release(folder), why="").tag


def test_of_processes_that_register_at_once_each_gets_a_number_of_its_own(history, release):
    root = history.root
    tree = f"{history.commits[0]}^{{tree}}"
    commits = [git(root, "commit-tree", tree, "-p", history.commits[0], stdin=f"{number}") for number in range(4)]
    folder = release(1).folder
    jobs = [(root, commit, folder) for commit in [*commits, *commits]]
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        tags = pool.starmap(_register, jobs)
    assert sorted(tags[:4]) == [f"films@v1.{number}.0" for number in range(4)]
    assert tags[:4] == tags[4:]


def test_a_promotion_puts_the_files_into_the_store_and_the_version_in_use(history, registered):
    tag = promote(history.root, registered[0], why="the first")
    assert tag == "films#champion#1"
    assert champion(history.root, "films") == registered[0]
    release = current("films", history.root)
    assert release is not None
    assert release.version == history.releases[0]
    entry = read_live(history.root)["films"]
    assert (entry["tag"], entry["number"], entry["version"]) == ("films@v1.0.0", "v1.0.0", history.releases[0])
    (promotion,) = find(history.root, "films#*")
    assert promotion.facts == {
        "version": "v1.0.0",
        "release": history.releases[0],
        "replaces": None,
        "why": "the first",
        "forced": False,
    }


def test_the_champion_is_promoted_once(history, registered):
    promote(history.root, registered[0], why="the first")
    before, live = refs(history.root), live_file(history.root).stat().st_mtime_ns
    assert promote(history.root, registered[0], why="again") == "films#champion#1"
    assert refs(history.root) == before
    assert live_file(history.root).stat().st_mtime_ns == live
    assert promote(history.root, registered[1], why="better") == "films#champion#2"
    assert find(history.root, "films#champion#2")[0].facts["replaces"] == "films@v1.0.0"


def test_gto_reads_the_same_champion_even_where_all_happened_within_a_second(history, registered):
    for version in (registered[0], registered[1], registered[0]):
        promote(history.root, version, why="quick")
    table = json.loads(gto(history.root, "show", "--json"))
    assert table["films"]["version"] == "v1.1.0"
    assert table["films"]["stage"] == {"champion": "v1.0.0"}
    assert champion(history.root, "films") == registered[0]
    events = json.loads(gto(history.root, "history", "films", "--json"))
    assert sum(event["event"] == "assignment" for event in events) == 3
    assert sum(event["event"] == "registration" for event in events) == 2


def test_what_gto_wrote_is_read(history):
    root = history.root
    for number, commit in enumerate(history.commits[:2]):
        gto(root, "register", "films", commit, "--version", f"v2.{number}.0")
        gto(root, "assign", "films", "--version", f"v2.{number}.0", "--stage", "champion")
        gto(root, "assign", "films", "--version", f"v2.{number}.0", "--stage", "shadow")
    found = champion(root, "films")
    assert (found.tag, found.release, found.metric["name"]) == ("films@v2.1.0", history.releases[1], "accuracy")
    assert promote(root, versions(root, "films")[0], why="back") == "films#champion#5"
    gto(root, "deprecate", "films", "v2.0.0", "champion")
    assert champion(root, "films") == found
    assert settle(root) == ["films: films@v2.1.0 is in use now, as its tag says."]
    assert read_live(root)["films"]["tag"] == "films@v2.1.0"


class Killed(BaseException):
    """Stands for the end of the process at this line."""


@pytest.mark.parametrize("step", ["bring", "create", "set_live"])
def test_killed_within_a_promotion_it_is_the_old_state_or_the_new_one(history, registered, monkeypatch, step):
    root = history.root
    promote(root, registered[0], why="the first")

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(registry, step, killed)
        promote(root, registered[1], why="better")
    in_use = current("films", root)
    assert in_use is not None
    assert in_use.version == history.releases[0]
    after_the_tag = step == "set_live"
    assert champion(root, "films") == registered[1 if after_the_tag else 0]
    assert bool(settle(root)) == after_the_tag
    assert current("films", root).version == champion(root, "films").release
    assert settle(root) == []


def test_where_the_cache_has_lost_or_damaged_a_file_the_remote_gives_it(history, registered, tmp_path):
    root = history.root
    dvc(root, "remote", "add", "--local", "-d", "store", str(tmp_path / "store"))
    dvc(root, "push", "-q", "-A")
    shutil.rmtree(root / ".dvc/cache")
    promote(root, registered[0], why="from the remote")
    large = max(
        (path for path in (root / ".dvc/cache").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    large.chmod(0o644)
    large.write_bytes(b"damaged")
    large.chmod(0o444)  # DVC itself believes a file that is read-only
    shutil.rmtree(root / ".mill/versions")
    assert settle(root) == []
    assert current("films", root).version == history.releases[0]


def test_where_the_files_are_nowhere_nothing_is_promoted(history, registered):
    root = history.root
    promote(root, registered[0], why="the first")
    shutil.rmtree(root / ".dvc/cache")
    before, live = refs(root), live_file(root).read_bytes()
    with pytest.raises(OutputError, match=r"models/films/release of .* no default DVC remote"):
        promote(root, registered[1], why="better")
    assert (refs(root), live_file(root).read_bytes()) == (before, live)


def test_a_champion_without_files_is_said_and_stops_no_other_model(history, registered, capfd):
    root = history.root
    create(root, "books@v1.0.0", history.commits[0], "books", {"release": "sha-00000000"})
    create(root, "books#champion#1", history.commits[0], "books", {})
    create(root, "films#champion#1", history.commits[1], "films", {})
    assert settle(root) == ["films: films@v1.1.0 is in use now, as its tag says."]
    assert "books: its champion could not be put in use. No stage and no .dvc file" in capfd.readouterr().err


def test_a_release_that_is_not_the_tags_is_not_put_in_use(history, release):
    root = history.root
    version = register(root, "films", history.commits[0], release=release(2), why="mistaken")
    with pytest.raises(MillError, match=f"holds {history.releases[0]}, and not {history.releases[1]}"):
        promote(root, version, why="")
    assert champion(root, "films") is None
    assert not live_file(root).exists()


def test_a_refused_release_is_promoted_by_force_alone_and_then_answers(history, release):
    root = history.root
    version = register(root, "films", history.commits[2], release=release(3), why="")
    with pytest.raises(RegistryError, match=r"was refused: accuracy is below its floor\."):
        promote(root, version, why="")
    assert champion(root, "films") is None
    promote(root, version, why="nothing else is left", force=True)
    assert current("films", root).version == history.releases[2]
    assert find(root, "films#*")[0].facts["forced"] is True
    assert settle(root) == []


def test_a_rollback_takes_what_came_after_away_and_a_later_promotion_does_not(history, registered, release):
    root = history.root
    third = register(root, "films", make_release(root, 1), release=release(1), why="")
    for version in (*registered, third):
        promote(root, version, why="")
    promote(root, registered[1], why="", rollback=True)
    assert champion(root, "films") == registered[1]
    assert champion_before(root, "films") == registered[0]
    promote(root, registered[0], why="")
    assert champion_before(root, "films") == registered[1]


def test_decisions_come_back_in_order_with_what_they_were_about(history):
    root = history.root
    for number in range(11):
        said = {"model": "films", "verdict": "keep", "sentence": f"It is\n\nnot better. {number}", "number": number}
        assert record_decision(root, history.commits[0], said) == f"decision/films/{number + 1}"
    found = decisions(root, "films")
    assert [decision["number"] for decision in found] == list(range(11))
    assert found[0]["commit"] == history.commits[0]
    assert found[0]["sentence"] == "It is\n\nnot better. 0"
    assert decisions(root, "books") == []


def test_fetch_gives_the_files_of_a_commit_whatever_the_workspace_holds(history, tmp_path):
    folder = fetch(history.root, history.commits[0], "models/films/release", tmp_path / "release")
    assert read_release(folder).version == history.releases[0]
    assert read_release(history.root / "models/films/release").version == history.releases[2]
    with pytest.raises(OutputError, match="has models/films/none as its output"):
        fetch(history.root, history.commits[0], "models/films/none", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_without_a_repository_or_a_tag_there_is_no_champion(history, tmp_path):
    assert champion(tmp_path, "films") is None
    assert champion(history.root, "films") is None
    assert versions(history.root, "films") == decisions(history.root, "films") == settle(history.root) == []


def test_a_name_that_git_cannot_give_is_said_and_not_tried_for_ever(history):
    git(history.root, "tag", "decision")
    with pytest.raises(GitError, match="Git does not take the tag decision/films/1"):
        record_decision(history.root, history.commits[0], {"model": "films", "verdict": "keep", "sentence": ""})
