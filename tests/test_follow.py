"""What workers promote in clones of their own comes into use where `mill up` runs: flows/follow.py."""

from pathlib import Path

import pytest

from flows.follow import follow
from flows.git import git
from flows.registry import promote, register
from flows.store import current
from tasks.release import read_release
from tests.registered import History, dvc

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


def test_a_promotion_in_another_clone_is_followed_and_a_remote_that_is_away_is_said(
    history: History, tmp_path: Path
) -> None:
    root, bare, worker = history.root, tmp_path / "bare.git", tmp_path / "worker"
    promote(root, history.version(1), why="the first")
    dvc(root, "remote", "add", "--local", "-d", "store", str(tmp_path / "store"))
    dvc(root, "push", "-q", "-A")
    git(tmp_path, "clone", "-q", "--bare", str(root), str(bare))
    git(root, "remote", "add", "origin", str(bare))
    git(tmp_path, "clone", "-q", str(bare), str(worker))
    git(worker, "config", "user.name", "w")
    git(worker, "config", "user.email", "w@localhost")
    dvc(worker, "remote", "add", "--local", "-d", "store", str(tmp_path / "store"))
    assert follow(root) == ([], "")

    second = register(worker, "films", history.commits[1], release=read_release(history.packed / "2"), why="a retrain")
    promote(worker, second, why="better")
    git(worker, "push", "-q", "origin", "--tags")
    assert follow(root) == (["films: films@v1.1.0 is in use now, as its tag says."], "")
    assert current("films", root).version == history.releases[1]
    assert follow(root) == ([], "")

    head = (root / ".git/FETCH_HEAD").exists()
    git(root, "tag", "-a", "-m", "mine", "nightly")
    git(worker, "tag", "-a", "-m", "theirs", "nightly")
    git(worker, "push", "-q", "origin", "nightly")
    done, failed = follow(root)
    assert (done, head, (root / ".git/FETCH_HEAD").exists()) == ([], False, False)
    assert failed.startswith("The Git remote origin has other tags of these names than this clone, which keeps its own")
    assert failed.endswith(": nightly. Delete those that are wrong, on either side.")

    bare.rename(tmp_path / "away.git")
    done, failed = follow(root)
    assert done == []
    assert failed.startswith("What other machines have promoted cannot be fetched from the Git remote origin: ")
    assert current("films", root).version == history.releases[1]
