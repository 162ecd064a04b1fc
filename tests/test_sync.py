import pytest

from flows.git import GitError, git, tip
from flows.merge import MergeConflict
from flows.sync import sync
from tasks.shards import write_json, write_text
from tests.test_merge import BOTH, Repository
from tests.test_worktree import fingerprint


@pytest.fixture
def repository(tmp_path) -> Repository:
    """`main` is checked out, and `live` has a new run of books."""
    found = Repository(tmp_path / "repository")
    found.on("live")
    found.run("books", "live")
    found.commit()
    found.on("main")
    return found


def test_what_landed_comes_by_a_fast_forward_where_that_can_be(repository):
    said = sync(repository.root)
    assert tip(repository.root, "main") == tip(repository.root, "live")
    assert git(repository.root, "status", "--porcelain") == ""
    assert "1 commit." in said
    assert "dvc checkout" in said
    assert "already" in sync(repository.root)


def test_a_branch_with_work_of_its_own_gets_a_merge_by_model(repository):
    repository.run("films", "main")
    own = repository.commit()
    live = tip(repository.root, "live")
    sync(repository.root)
    assert repository.hashes("HEAD")["train@films"] == "main"
    assert repository.hashes("HEAD")["train@books"] == "live"
    assert git(repository.root, "rev-list", "--parents", "-1", "HEAD").split()[1:] == [live, own]
    assert git(repository.root, "status", "--porcelain") == ""
    assert tip(repository.root, "live") == live


def test_changes_that_are_not_committed_stay_where_nothing_comes_over_them(repository):
    write_text(repository.root / "notes.txt", "mine")
    write_json(repository.root / "params.yaml", {"models": BOTH, "mine": 1})
    sync(repository.root)
    assert git(repository.root, "status", "--porcelain").splitlines() == [" M params.yaml", "?? notes.txt"]
    assert repository.hashes("HEAD")["train@books"] == "live"


@pytest.mark.parametrize("kind", ["changed", "staged", "untracked"])
def test_changes_that_something_comes_over_are_named_and_all_stays_as_it_was(repository, kind):
    name = "reports/books/extra.json" if kind == "untracked" else "reports/books/train.json"
    repository.on("live")
    write_json(repository.root / "reports/books/extra.json", 1)
    repository.commit()
    repository.on("main")
    write_json(repository.root / name, {"result": "mine"})
    if kind == "staged":
        git(repository.root, "add", name)
    before = fingerprint(repository.root)
    with pytest.raises(GitError, match=f"{name}.*git stash"):
        sync(repository.root)
    assert fingerprint(repository.root) == before


def test_a_conflict_for_a_person_leaves_all_as_it_was(repository):
    write_json(repository.root / "params.yaml", {"models": BOTH, "mine": 1})
    repository.commit()
    repository.on("live")
    write_json(repository.root / "params.yaml", {"models": BOTH, "mine": 2})
    repository.commit()
    repository.on("main")
    before = fingerprint(repository.root)
    with pytest.raises(MergeConflict, match=r"params\.yaml"):
        sync(repository.root)
    assert fingerprint(repository.root) == before


def test_a_merge_that_somebody_has_not_finished_is_left_alone(repository):
    git(repository.root, "switch", "-qc", "other")
    write_text(repository.root / "params.yaml", "other")
    repository.commit()
    repository.on("main")
    write_text(repository.root / "params.yaml", "mine")
    repository.commit()
    with pytest.raises(GitError):
        git(repository.root, "merge", "other")
    before = fingerprint(repository.root)
    with pytest.raises(GitError, match=r"params\.yaml|merge"):
        sync(repository.root)
    assert fingerprint(repository.root) == before


def test_a_detached_head_and_live_itself_are_refused_with_the_way_out(repository):
    git(repository.root, "checkout", "-q", "--detach")
    with pytest.raises(GitError, match=r"detached.*git switch main"):
        sync(repository.root)
    repository.on("live")
    with pytest.raises(GitError, match="You are on `live`"):
        sync(repository.root)


def test_without_live_there_is_nothing_to_bring(repository):
    git(repository.root, "branch", "-D", "live")
    assert "Nothing to sync" in sync(repository.root)


def test_what_landed_in_another_clone_comes_from_origin(repository, tmp_path):
    git(tmp_path, "clone", "-q", str(repository.root), "mine")
    for key in ("user.name", "user.email"):
        git(tmp_path / "mine", "config", key, "t@localhost")
    assert tip(tmp_path / "mine", "refs/heads/live") is None
    assert "1 commit." in sync(tmp_path / "mine")
    assert tip(tmp_path / "mine", "main") == tip(repository.root, "live")
    git(tmp_path / "mine", "branch", "live", "HEAD~1")
    repository.on("live")
    repository.run("books", "later")
    later = repository.commit()
    git(tmp_path / "mine", "fetch", "-q")
    sync(tmp_path / "mine")
    assert tip(tmp_path / "mine", "main") == later, "the branch here is an older one"


def test_a_folder_below_the_top_will_do(repository):
    sync(repository.root / "reports" / "books")
    assert tip(repository.root, "main") == tip(repository.root, "live")
