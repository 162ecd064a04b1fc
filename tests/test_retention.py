"""`mill gc` on a real repository with a real cache: what no rule keeps goes, and nothing else, at any moment."""

import os
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows import retention
from flows.git import LIVE, git, tip
from flows.locks import only_one
from flows.outputs import OutputError
from flows.publish import owe
from flows.registry import champion, decisions, fetch, promote, record_decision
from flows.retention import gc
from flows.store import current, put_in_use
from flows.tags import create, find
from flows.unused import RetentionError
from flows.worktree import Busy
from tasks.release import read_release
from tasks.shards import read_json, write_json, write_text
from tests.registered import History, dvc, make_release

# DVC's own use of a library that it has not yet followed.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")

RELEASE = "models/films/release"


def grow_old(root: Path) -> None:
    """Let every object of the cache be two days old."""
    before = time.time() - 2 * 24 * 3600
    for file in (root / ".dvc/cache").rglob("*"):
        os.utime(file, (before, before))


def keep(root: Path, **said: int) -> None:
    params = read_json(root / "params.yaml")
    params["flows"]["store"] |= said
    write_json(root / "params.yaml", params)


def contents(root: Path) -> dict[str, bytes]:
    own = (root / ".git" / "refs", root / ".dvc/cache/files", root / ".mill/versions", root / ".mill/work")
    files = (file for place in own for file in place.rglob("*") if file.is_file())
    return {str(file): file.read_bytes() for file in files}


def copied(history: History, folder: Path) -> History:
    return replace(history, root=Path(shutil.copytree(history.root, folder / "repository", symlinks=True)))


@pytest.fixture(scope="module")
def many_made(made: History, tmp_path_factory: pytest.TempPathFactory) -> History:
    history = copied(made, tmp_path_factory.mktemp("many"))
    versions = [history.version(1), history.version(2), *(history.another(number) for number in range(4, 8))]
    for number in (0, 2, 1):
        promote(history.root, versions[number], why="")
    keep(history.root, keep_versions=1)
    return history


@pytest.fixture
def many(many_made: History, tmp_path: Path) -> History:
    """Six versions, of which v1.2.0 was the champion before v1.1.0, in use again; all objects are old."""
    history = copied(many_made, tmp_path)
    grow_old(history.root)
    return history


def has(root: Path, name: str, tmp_path: Path) -> bool:
    """Whether the files of a commit's release can be had, whole, from the cache alone."""
    try:
        read_release(fetch(root, tip(root, name), RELEASE, tmp_path / "fetched"))
    except OutputError:
        return False
    return True


def test_the_champion_the_one_before_it_and_the_newest_others_stay_and_the_rest_goes(many, tmp_path):
    before = sum(file.stat().st_size for file in (many.root / ".dvc/cache/files").rglob("*") if file.is_file())
    said = gc(many.root, dry_run=False)
    kept = {number for number in range(6) if has(many.root, f"films@v1.{number}.0", tmp_path)}
    assert kept == {1, 2, 5}
    assert "Kept: films@v1.1.0, the champion; films@v1.2.0; films@v1.5.0." in said
    after = sum(file.stat().st_size for file in (many.root / ".dvc/cache/files").rglob("*") if file.is_file())
    assert after < before
    assert "films@v1.0.0, sha-" in said
    stored = {folder.name for folder in (many.root / ".mill/versions/films").iterdir()}
    assert stored == {many.releases[1], champion_before_release(many)}
    assert current("films", many.root).version == many.releases[1]
    assert "modified" not in dvc(many.root, "status")
    assert gc(many.root, dry_run=False).startswith("There is nothing to free.")


def champion_before_release(history: History) -> str:
    return find(history.root, "films@v1.2.0")[0].facts["release"]


def test_a_dry_run_says_the_same_and_changes_nothing(many):
    before = contents(many.root)
    said = gc(many.root, dry_run=True)
    assert contents(many.root) == before
    assert said.replace("This would free", "Freed") == gc(many.root, dry_run=False)
    assert contents(many.root) != before


def test_what_a_person_has_anywhere_stays(many, tmp_path):
    root = many.root
    git(root, "reset", "-q", "--hard")  # params.yaml: keep_versions of the shipped one
    git(root, "branch", "mine", many.commits[0])
    git(root, "tag", "paper", many.commits[2])
    git(root, "tag", "films@paper", tip(root, "films@v1.3.0"))
    write_text(root / "stashed.bin", "stashed")
    dvc(root, "add", "-q", "stashed.bin")
    git(root, "add", "-A")
    git(root, "stash", "-q")
    write_text(root / "new.bin", "new")
    dvc(root, "add", "-q", "new.bin")
    git(root, "worktree", "add", "-q", "--detach", str(tmp_path / "other"), tip(root, "films@v1.3.0"))
    keep(root, keep_versions=1)
    grow_old(root)
    gc(root, dry_run=False)
    assert all(has(root, name, tmp_path) for name in ("mine", "paper", "films@v1.3.0"))
    assert not has(root, "films@v1.4.0", tmp_path)
    git(root, "worktree", "remove", "--force", str(tmp_path / "other"))
    gc(root, dry_run=False)
    assert has(root, "films@paper", tmp_path)
    (root / "new.bin").unlink()
    dvc(root, "checkout", "-q", "new.bin")
    stashed = fetch(root, git(root, "rev-parse", "stash"), "stashed.bin", tmp_path / "stashed")
    assert (stashed / "stashed.bin").read_text() == "stashed"


def test_a_version_in_a_stage_of_its_own_stays_as_long_as_it_stands_there(many, tmp_path):
    root = many.root
    create(root, "films#staging#4", tip(root, "films@v1.3.0"), "tried", {})
    create(root, "films#staging#5", tip(root, "films@v1.4.0"), "tried", {})
    gc(root, dry_run=False)
    assert not has(root, "films@v1.3.0", tmp_path)
    assert has(root, "films@v1.4.0", tmp_path)
    create(root, "films#staging!#6", tip(root, "films@v1.4.0"), "tried", {})
    gc(root, dry_run=False)
    assert not has(root, "films@v1.4.0", tmp_path)


@pytest.fixture(scope="module")
def refused_made(made: History, tmp_path_factory: pytest.TempPathFactory) -> History:
    history = copied(made, tmp_path_factory.mktemp("refused"))
    root = history.root
    promote(root, history.version(1), why="")
    git(root, "branch", "retrain/films/20260101T000000Z")
    git(root, "switch", "-q", "retrain/films/20260101T000000Z")
    commit = make_release(root, str(packed_apart(history)))
    git(root, "switch", "-q", "main")
    dvc(root, "checkout", "-q")
    said = {"model": "films", "verdict": "keep", "sentence": "Worse.", "challenger": "sha-0", "champion": None}
    record_decision(root, commit, said)
    history.version(2)
    history.another(4)
    return history


@pytest.fixture
def refused(refused_made: History, tmp_path: Path) -> History:
    """A challenger that was decided against, on a branch of its own that is on no other; all objects are old."""
    history = copied(refused_made, tmp_path)
    grow_old(history.root)
    return history


def packed_apart(history: History) -> Path:
    from tests.registered import pack

    pack(history.packed / "1", history.root.parent / "apart", 9)
    return history.root.parent / "apart"


def test_a_refused_challenger_stays_for_its_days_and_then_goes_but_for_the_decision(refused, tmp_path):
    root = refused.root
    name, (decision,) = "retrain/films/20260101T000000Z", decisions(root, "films")
    gc(root, dry_run=False, at=datetime.now(UTC) + timedelta(days=89))
    assert has(root, name, tmp_path)
    said = gc(root, dry_run=False, at=datetime.now(UTC) + timedelta(days=91))
    assert f"the branch {name}" in said
    assert tip(root, f"refs/heads/{name}") is None
    assert not has(root, decision["commit"], tmp_path)
    assert decisions(root, "films") == [decision]


def test_what_has_still_to_be_landed_or_pushed_stays_however_old(refused, tmp_path):
    root, (decision,) = refused.root, decisions(refused.root, "films")
    later = datetime.now(UTC) + timedelta(days=400)
    for verdict in ("promote", "ask"):
        record_decision(root, decision["commit"], {**decision, "when": None, "verdict": verdict})
        gc(root, dry_run=False, at=later)
        assert has(root, decision["commit"], tmp_path)
    record_decision(root, decision["commit"], {**decision, "when": None, "verdict": "keep"})
    owe(root, decision["commit"])
    gc(root, dry_run=False, at=later)
    assert has(root, decision["commit"], tmp_path)
    (root / ".mill/unpushed").unlink()
    gc(root, dry_run=False, at=later)
    assert not has(root, decision["commit"], tmp_path)


def test_what_is_younger_than_a_day_may_belong_to_a_run_and_stays(many):
    root = many.root
    gc(root, dry_run=False)
    write_text(root / "running.bin", "a stage has just written this")
    dvc(root, "add", "-q", "running.bin")
    (root / "running.bin.dvc").unlink()
    said = gc(root, dry_run=False)
    assert "1 objects in DVC's cache that nothing names are younger than 24 hours" in said
    grow_old(root)
    assert "1 objects in DVC's cache: " in gc(root, dry_run=False)


def test_releases_that_only_mill_run_put_in_use_go_but_for_the_newest(history):
    root = history.root
    for number in (1, 2):
        shutil.rmtree(root / RELEASE, ignore_errors=True)
        shutil.copytree(history.packed / str(number), root / RELEASE)
        put_in_use("films", root)
    for number, name in enumerate(("sha-11111111", "sha-22222222")):
        shutil.copytree(root / RELEASE, root / f".mill/versions/films/{name}")
        os.utime(root / f".mill/versions/films/{name}", (1e9 + number, 1e9 + number))
    keep(root, keep_versions=2)
    gc(root, dry_run=False)
    stored = {folder.name for folder in (root / ".mill/versions/films").iterdir()}
    assert stored == {*history.releases[:2], "sha-22222222"}


def test_where_somebody_is_at_work_nothing_is_freed(many):
    from dvc.repo import Repo

    before = contents(many.root)
    with only_one(many.root, "films", "schedule"), pytest.raises(Busy, match="films is being retrained already"):
        gc(many.root, dry_run=False)
    with Repo(str(many.root)) as repo, repo.lock, pytest.raises(RetentionError, match="Another dvc command is running"):
        gc(many.root, dry_run=False)
    assert contents(many.root) == before


@pytest.mark.parametrize("how", ["no YAML", "a listing is missing and the remote is away", "a damaged listing"])
def test_where_nobody_can_say_what_is_needed_nothing_is_freed(many, how):
    root = many.root
    lock = (root / "dvc.lock").read_text()
    listings = (root / ".dvc/cache/files/md5").glob("*/*.dir")
    listing = next(one for one in listings if f"{one.parent.name}{one.name}" in lock)
    listing.chmod(0o644)
    if how == "no YAML":
        write_text(root / "half.dvc", "outs: [")
    elif how == "a damaged listing":
        listing.write_text("{")
    else:
        dvc(root, "remote", "add", "-q", "store", "s3://bucket")
        dvc(root, "remote", "modify", "store", "endpointurl", "http://127.0.0.1:9")
        dvc(root, "remote", "modify", "store", "access_key_id", "nobody")
        dvc(root, "remote", "modify", "store", "secret_access_key", "nothing")
        listing.unlink()
    before = contents(root)
    with pytest.raises(RetentionError, match=r"Nothing was freed\."):
        gc(root, dry_run=False)
    assert contents(root) == before


def test_a_cache_that_others_may_use_is_left_alone(many, tmp_path):
    root = many.root
    shutil.move(root / ".dvc/cache", tmp_path / "shared")
    dvc(root, "cache", "dir", "--local", str(tmp_path / "shared"))
    before = sorted((tmp_path / "shared").rglob("*"))
    assert "which other repositories may use" in gc(root, dry_run=False)
    assert sorted((tmp_path / "shared").rglob("*")) == before


@pytest.mark.parametrize("num_steps", range(0, 12, 3))
def test_killed_at_any_moment_everything_that_is_named_is_whole_and_the_next_one_goes_on(
    refused, monkeypatch, num_steps, tmp_path
):
    class Killed(BaseException):
        pass

    root, later = refused.root, datetime.now(UTC) + timedelta(days=91)
    keep(root, keep_versions=1)
    left = [num_steps]

    def step(real):
        def once(*arguments, **named):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return real(*arguments, **named)

        return once

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "unlink", step(Path.unlink))
        patch.setattr(retention, "_remove", step(retention._remove))
        gc(root, dry_run=False, at=later)
        raise Killed
    for name in git(root, "for-each-ref", "--format=%(refname)", "refs/heads").splitlines():
        assert has(root, name, tmp_path), name
    assert current("films", root).version == champion(root, "films").release
    gc(root, dry_run=False, at=later)
    assert gc(root, dry_run=False, at=later).startswith("There is nothing to free.")


def test_leftovers_of_killed_runs_go(many):
    root = many.root
    half = root / ".mill/versions/films/.unfinished-99999999-sha-1"
    work = root / ".mill/work/films/train/abc"
    for folder in (half, work):
        folder.mkdir(parents=True)
        write_text(folder / "file", "half")
    said = gc(root, dry_run=False)
    assert "half a version in the store" in said
    assert not half.exists()
    assert work.exists()
    gc(root, dry_run=False, at=datetime.now(UTC) + timedelta(days=91))
    assert not work.exists()


def test_live_and_a_fresh_repository_have_nothing_to_free(history):
    git(history.root, "branch", LIVE)
    assert gc(history.root, dry_run=False).startswith("There is nothing to free.")
