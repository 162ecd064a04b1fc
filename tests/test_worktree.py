import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.git import GitError, attempt, check_live_is_free, check_repository, git, tip
from flows.worktree import check_out_data, clean_up, home_of, worktree
from tasks.shards import write_json, write_text
from tests.conftest import REPOSITORY, tiny_params

# DVC's own use of a library that it has not yet followed.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


def make_repository(root: Path, path: str = "incoming/*.csv") -> Path:
    """A repository of one model whose rows are files in a folder that Git does not know, and of one cheap stage."""
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    git(root, "config", "user.name", "t")
    git(root, "config", "user.email", "t@localhost")
    params = tiny_params().model_dump(mode="json", by_alias=True, serialize_as_any=True)
    params["collect"] |= {"path": path, "format": "csv"}
    params["pin"] = "data/films/source.json"
    write_json(root / "params.yaml", {"models": {"films": params}})
    write_text(
        root / "dvc.yaml",
        "stages:\n  make:\n    foreach: ${models}\n    do:\n      cmd: mkdir -p made && echo made > made/${key}.txt\n"
        "      outs: [made/films.txt]\n",
    )
    write_text(root / ".gitignore", "/.mill/\n/made/\n/incoming/\n")
    write_text(root / ".dvc/config", '[core]\n    analytics = false\n[remote "near"]\n    url = ../../store\n')
    write_text(root / ".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "all")
    return root


@pytest.fixture
def repository(tmp_path) -> Path:
    return make_repository(tmp_path / "repository")


def dvc(root: Path, *arguments: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["dvc", *arguments], cwd=root, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fingerprint(root: Path) -> dict[str, str]:
    """Every file of a person's checkout and what Git keeps of it, but for objects and the flows' own places."""
    own = (".mill/", ".git/objects/", ".git/worktrees/", ".dvc/cache/", ".dvc/tmp/")
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        moved = any(f"refs/{ref}" in name for ref in ("heads/retrain", "heads/live", "tags/"))
        if path.is_file() and not name.startswith(own) and not moved:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for line in git(root, "for-each-ref", "--format=%(refname) %(objectname)").splitlines():
        if not line.startswith(("refs/heads/live", "refs/heads/retrain", "refs/tags/")):
            found[line.split()[0]] = line.split()[1]
    return found


def test_a_dirty_checkout_with_stash_and_staged_changes_is_not_touched(repository):
    write_text(repository / "params.yaml", (repository / "params.yaml").read_text() + "\n")
    git(repository, "stash")
    write_text(repository / "staged.txt", "staged")
    git(repository, "add", "staged.txt")
    write_text(repository / "dvc.yaml", (repository / "dvc.yaml").read_text() + "# half an idea\n")
    write_text(repository / "new.txt", "untracked")
    before = fingerprint(repository)
    with worktree(repository, "films", "retrain/films/1", "main") as tree:
        assert not (tree.folder / "new.txt").exists()
        assert "half an idea" not in (tree.folder / "dvc.yaml").read_text()
        write_text(tree.folder / "result.txt", "found")
        git(tree.folder, "add", "result.txt")
        git(tree.folder, "commit", "-qm", "result")
        assert fingerprint(repository) == before
    assert fingerprint(repository) == before
    assert git(repository, "show", "retrain/films/1:result.txt") == "found"
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert "half an idea" in git(repository, "diff", "dvc.yaml")


def test_a_branch_that_got_no_commit_goes_with_its_worktree(repository):
    with worktree(repository, "films", "retrain/films/1", "main"):
        assert tip(repository, "retrain/films/1")
    assert tip(repository, "retrain/films/1") is None
    assert list((repository / ".mill/worktrees").glob("*/")) == []


def test_two_worktrees_of_a_model_stand_side_by_side(repository):
    with (
        worktree(repository, "films", "retrain/films/1", "main") as one,
        worktree(repository, "films", "retrain/films/2", "main") as other,
    ):
        assert [one.folder.name, other.folder.name] == ["films-1", "films-2"]
        assert clean_up(repository) == []
        assert home_of(other.folder) == repository == home_of(repository)


def test_outputs_are_linked_from_the_shared_cache_and_nothing_runs_again(repository):
    dvc(repository, "repro")
    git(repository, "add", "dvc.lock")
    git(repository, "commit", "-qm", "ran")
    with worktree(repository, "films", "retrain/films/1", "main") as tree:
        check_out_data(tree, "films")
        made = tree.folder / "made/films.txt"
        assert made.read_text() == "made\n"
        cached = [file for file in (repository / ".dvc/cache").rglob("*") if file.is_file() and file.samefile(made)]
        assert len(cached) == 1
        assert "up to date" in dvc(tree.folder, "status")
        assert "up to date" in dvc(tree.folder, "repro")
        # A lock of its own: both may run at once.
        assert (tree.folder / ".dvc/tmp/lock").exists()
        assert (tree.folder / ".dvc/tmp/site").is_dir()
        # A long path is broken up over lines.
        assert str((repository / "../store").resolve()) in dvc(tree.folder, "remote", "list").replace("\n", "")
        assert "up to date" in dvc(repository, "status")


def test_outputs_that_no_cache_has_are_left_to_the_line(repository):
    dvc(repository, "repro")
    git(repository, "add", "dvc.lock")
    git(repository, "commit", "-qm", "ran")
    for file in (repository / ".dvc/cache/files").rglob("*"):
        if file.is_file():
            file.unlink()
    with worktree(repository, "films", "retrain/films/1", "main") as tree:
        check_out_data(tree, "films")
        assert not (tree.folder / "made/films.txt").exists()


@pytest.mark.parametrize("path", ["incoming/*.csv", "incoming", "incoming/one.csv"])
def test_data_that_arrives_beside_git_is_read_where_it_arrives(tmp_path, path):
    repository = make_repository(tmp_path / "repository", path)
    write_text(repository / "incoming/one.csv", "id\n1\n")
    with worktree(repository, "films", "retrain/films/1", "main") as tree:
        assert (tree.folder / "incoming/one.csv").read_text() == "id\n1\n"
    assert (repository / "incoming/one.csv").exists()


def test_new_files_beside_those_in_git_are_lent_as_well(repository):
    write_text(repository / "incoming/one.csv", "id\n1\n")
    git(repository, "add", "-f", "incoming/one.csv")
    git(repository, "commit", "-qm", "one")
    write_text(repository / "incoming/two.csv", "id\n2\n")
    with worktree(repository, "films", "retrain/films/1", "main") as tree:
        assert not (tree.folder / "incoming/one.csv").is_symlink()
        assert (tree.folder / "incoming/two.csv").read_text() == "id\n2\n"


def test_what_a_killed_run_leaves_is_taken_away_and_no_more(repository):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom flows.worktree import worktree\n"
        f"with worktree(Path({str(repository)!r}), 'films', 'retrain/films/1', 'main'):\n"
        "    print('there', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    assert clean_up(repository) == []  # it lives
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    own = repository / ".mill/worktrees/mine"
    own.mkdir()
    git(repository, "worktree", "add", "-q", "-b", "mine", str(own / "tree"))
    assert clean_up(repository) == ["films-1"]
    assert clean_up(repository) == []
    assert (own / "tree/params.yaml").exists()
    assert tip(repository, "retrain/films/1") is None
    assert len(git(repository, "worktree", "list").splitlines()) == 2


def test_a_persons_worktree_whose_disk_is_away_is_left_to_them(repository, tmp_path):
    git(repository, "worktree", "add", "-q", "-b", "mine", str(tmp_path / "disk"))
    write_text(tmp_path / "disk/staged.txt", "staged")
    git(tmp_path / "disk", "add", "staged.txt")
    (tmp_path / "disk").rename(tmp_path / "away")
    with worktree(repository, "films", "retrain/films/1", "main"):
        pass
    with worktree(repository, "films", "retrain/films/2", "main") as tree:
        (tree.folder / ".git").unlink()  # half gone
    assert [path.name for path in (repository / ".git/worktrees").iterdir()] == ["disk"]
    (tmp_path / "away").rename(tmp_path / "disk")
    assert git(tmp_path / "disk", "diff", "--cached", "--name-only") == "staged.txt"


def test_a_branch_with_the_results_of_a_killed_run_is_kept(repository):
    git(repository, "switch", "-qc", "retrain/films/1")
    write_text(repository / "result.txt", "found")
    git(repository, "add", "result.txt")
    git(repository, "commit", "-qm", "result")
    git(repository, "switch", "-q", "main")
    folder = repository / ".mill/worktrees/films-1"
    git(repository, "worktree", "add", "-q", str(folder), "retrain/films/1")
    write_text(folder.with_name("films-1.lock"), "")
    assert clean_up(repository) == ["films-1"]
    assert tip(repository, "retrain/films/1")


def test_hooks_of_the_person_do_not_run(repository, tmp_path):
    hook = repository / ".git/hooks/post-checkout"
    write_text(hook, f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    with worktree(repository, "films", "retrain/films/1", "main"):
        pass
    assert not (tmp_path / "ran").exists()


def test_a_repository_without_a_commit_says_what_to_do(tmp_path):
    attempt(tmp_path, "init", "-q", "-b", "main")
    with pytest.raises(GitError, match="Commit what there is"):
        check_repository(tmp_path)


def test_a_clone_of_another_branch_is_told_to_take_main_from_its_remote(repository, tmp_path):
    git(repository, "branch", "feature")
    git(tmp_path, "clone", "-q", "-b", "feature", str(repository), "clone")
    with pytest.raises(GitError, match="git branch main origin/main") as raised:
        check_repository(tmp_path / "clone")
    git(tmp_path / "clone", *str(raised.value).split("git ")[-1].split())
    check_repository(tmp_path / "clone")


def test_a_shallow_clone_is_told_to_fetch_the_rest(repository, tmp_path):
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repository}", "shallow")
    with pytest.raises(GitError, match="git fetch --unshallow"):
        check_repository(tmp_path / "shallow")


def test_without_a_name_to_commit_in_the_commands_are_given(repository, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    check_repository(repository)
    git(repository, "config", "--unset", "user.name")
    git(repository, "config", "--unset", "user.email")
    git(repository, "config", "user.useConfigOnly", "true")
    with pytest.raises(GitError, match=r"git config user\.name"):
        check_repository(repository)


def test_live_in_a_persons_working_tree_is_named_with_the_way_out(repository, tmp_path):
    git(repository, "worktree", "add", "-q", "-b", "live", str(tmp_path / "elsewhere"))
    with pytest.raises(GitError, match=r"checked out in .*/elsewhere") as raised:
        check_live_is_free(repository)
    subprocess.run(str(raised.value).split(": ")[-1], shell=True, check=True, capture_output=True)
    check_live_is_free(repository)


def test_no_repository_at_all_is_said(tmp_path):
    with pytest.raises(GitError, match="is no Git repository"):
        check_repository(tmp_path)


def test_a_detached_head_is_no_hindrance(repository):
    git(repository, "checkout", "-q", "--detach")
    check_repository(repository)
    with worktree(repository, "films", "retrain/films/1", "main") as tree:
        assert git(tree.folder, "symbolic-ref", "--short", "HEAD") == "retrain/films/1"
    assert attempt(repository, "symbolic-ref", "-q", "HEAD").returncode
