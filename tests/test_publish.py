"""Publishing to an S3 server and to a bare Git repository, both real and both able to fail."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.git import git, holds, tip
from flows.publish import owe, publish
from flows.worktree import worktree
from tasks.shards import read_json, write_text
from tests.test_worktree import dvc, make_repository

pytestmark = [
    pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch, request) -> Iterator[Any]:
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    found = boto3.resource("s3", endpoint_url=s3_server).Bucket(f"bucket-{abs(hash(request.node.name))}")
    found.create()
    return found


def keys(bucket: Any) -> set[str]:
    return {item.key for item in bucket.objects.all()}


@pytest.fixture
def repository(tmp_path) -> Path:
    """A repository with a result on `live`, its tags, and somebody's own branch, tag and unfinished work."""
    root = make_repository(tmp_path / "repository")
    dvc(root, "repro")
    git(root, "add", "dvc.lock")
    git(root, "commit", "-qm", "ran")
    git(root, "branch", "live")
    git(root, "branch", "retrain/films/1")
    git(root, "branch", "mine")
    for tag in ("films@v1.0.0", "films#champion#1", "decision/films/1", "my-tag"):
        git(root, "tag", "-am", "{}", tag)
    write_text(root / "params.yaml", (root / "params.yaml").read_text() + "\n")
    return root


@pytest.fixture
def bare(repository, tmp_path) -> Path:
    git(tmp_path, "init", "-q", "--bare", "bare.git")
    git(repository, "remote", "add", "origin", str(tmp_path / "bare.git"))
    return tmp_path / "bare.git"


def with_s3(repository: Path, bucket: Any, endpoint: str) -> None:
    """The remote as a person configures it for this machine alone, in config.local."""
    dvc(repository, "remote", "add", "--local", "-d", "s3", f"s3://{bucket.name}/dvc")
    dvc(repository, "remote", "modify", "--local", "s3", "endpointurl", endpoint)


def refs(root: Path) -> set[str]:
    return set(git(root, "for-each-ref", "--format=%(refname)").splitlines())


OURS = {
    "refs/heads/live",
    "refs/heads/retrain/films/1",
    "refs/tags/decision/films/1",
    "refs/tags/films@v1.0.0",
    "refs/tags/films#champion#1",
}


def test_data_goes_to_s3_and_history_to_git_and_nothing_of_the_persons(repository, bare, bucket, s3_server):
    with_s3(repository, bucket, s3_server)
    owe(repository, git(repository, "rev-parse", "live"))
    with worktree(repository, "films", "retrain/films/2", "live") as tree:
        assert publish(repository, tree.folder) == "Pushed to the DVC remote s3 and the Git remote origin."
    assert refs(bare) == OURS | {"refs/heads/retrain/films/2"}
    assert len(keys(bucket)) == 1
    assert not (repository / ".mill/unpushed").exists()


def test_a_remote_beside_the_repository_is_found_by_its_relative_path(repository, tmp_path):
    dvc(repository, "remote", "default", "near")
    owe(repository, git(repository, "rev-parse", "live"))
    assert publish(repository) == "Pushed to the DVC remote near."
    assert len([path for path in (tmp_path / "store").rglob("*") if path.is_file()]) == 1


def test_what_was_forgotten_goes_out_as_well(repository, bare):
    git(repository, "tag", "-am", "{}", "forgotten/films/1")
    owe(repository, git(repository, "rev-parse", "live"))
    publish(repository)
    assert "refs/tags/forgotten/films/1" in refs(bare)


def test_a_dvc_remote_that_is_no_default_is_said_with_the_command_and_what_waits_goes_out_then(
    repository, bare, tmp_path
):
    owe(repository, git(repository, "rev-parse", "live"))
    said = publish(repository)
    assert said.startswith(
        "Pushed to the Git remote origin. Retraining's data is not pushed: DVC knows the remote near"
    )
    (command,) = re.findall("`dvc (.*?)`", said)
    dvc(repository, *command.split())
    assert publish(repository) == "Pushed to the DVC remote near and the Git remote origin."
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert publish(repository) == ""


def test_there_is_nothing_to_say_where_nothing_is_owed_or_no_remote_is_known(repository):
    dvc(repository, "remote", "remove", "near")
    assert publish(repository) == ""
    owe(repository, git(repository, "rev-parse", "live"))
    assert publish(repository) == ""
    assert not (repository / ".mill/unpushed").exists()


def test_a_remote_that_is_added_later_gets_what_is_left_of_the_champions_from_before(repository, bare, tmp_path):
    dvc(repository, "remote", "remove", "near")
    write_text(repository / "lists/one.txt", "of a folder")
    dvc(repository, "add", "-q", "lists")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "the next champion")
    git(repository, "tag", "-am", "{}", "films#champion#2")
    for name in ("films#champion#1", "films#champion#2"):
        owe(repository, git(repository, "rev-parse", f"{name}^{{commit}}"))
        assert publish(repository) == "Pushed to the Git remote origin."
    git(repository, "rm", "-q", "dvc.lock", "lists.dvc")
    git(repository, "commit", "-qm", "no data of its own")
    # What mill gc frees of old champions: the folder's list, without which DVC knows none of its files.
    [listed] = (repository / ".dvc/cache").rglob("*.dir")
    listed.unlink()
    dvc(repository, "remote", "add", "--local", "-d", "store", str(tmp_path / "late"))
    owe(repository, git(repository, "rev-parse", "HEAD"))
    assert publish(repository) == "Pushed to the DVC remote store and the Git remote origin."
    assert len([path for path in (tmp_path / "late").rglob("*") if path.is_file()]) == 1
    assert not (repository / ".mill/unsent").exists()
    assert publish(repository) == ""


def test_a_remote_that_is_away_keeps_the_note_and_the_next_time_all_arrives(
    repository, bare, bucket, s3_server, monkeypatch
):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with_s3(repository, bucket, "http://127.0.0.1:9")
    commit = git(repository, "rev-parse", "live")
    owe(repository, commit)
    said = publish(repository)
    assert said.startswith("Not pushed: ")
    assert "s3" in said
    assert "tried again" in said
    assert read_json(repository / ".mill/unpushed") == [commit]
    assert refs(bare) == set()  # a version whose data is not there is not shown
    dvc(repository, "remote", "modify", "--local", "s3", "endpointurl", s3_server)
    assert publish(repository).startswith("Pushed")
    assert refs(bare) == OURS
    assert len(keys(bucket)) == 1


def test_a_git_remote_that_is_not_there_is_said_in_its_own_words(repository, tmp_path):
    git(repository, "remote", "add", "origin", str(tmp_path / "nowhere.git"))
    owe(repository, "live")
    said = publish(repository)
    assert "the Git remote origin cannot be reached" in said
    assert "nowhere.git" in said
    assert (repository / ".mill/unpushed").exists()


def test_a_remote_that_refuses_is_quoted_and_nothing_is_lost(repository, bare):
    hook = bare / "hooks/update"
    write_text(hook, "#!/bin/sh\necho 'live is protected here' >&2\ntest $1 != refs/heads/live\n")
    hook.chmod(0o755)
    owe(repository, "live")
    said = publish(repository)
    assert "the Git remote origin refuses refs/heads/live" in said
    assert "live is protected here" in said
    assert "has to let this clone push" in said
    assert tip(repository, "live")
    hook.unlink()
    assert publish(repository).startswith("Pushed to the Git remote origin.")


def elsewhere(bare: Path, **files: str) -> str:
    """What another clone commits and pushes to `live`; its commit."""
    clone = bare.parent / "elsewhere"
    git(bare.parent, "clone", "-q", str(bare), str(clone), "--branch", "live")
    for name, text in files.items():
        write_text(clone / name, text)
    git(clone, "add", "-A")
    git(clone, "commit", "-q", "-m", "another")
    git(clone, "push", "-q")
    return git(clone, "rev-parse", "HEAD")


def on_live(repository: Path, **files: str) -> str:
    """Commit these files to `live` in a worktree; the commit."""
    folder = repository.parent / "on-live"
    git(repository, "worktree", "add", "-q", str(folder), "live")
    for name, text in files.items():
        write_text(folder / name, text)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "mine")
    git(repository, "worktree", "remove", str(folder))
    return git(repository, "rev-parse", "live")


def test_what_another_clone_has_put_on_live_is_merged_and_both_arrive(repository, bare):
    owe(repository, "live")
    publish(repository)
    theirs, ours = elsewhere(bare, theirs="1\n"), on_live(repository, ours="2\n")
    owe(repository, "live")
    assert publish(repository).startswith("Pushed to the Git remote origin.")
    assert tip(bare, "live") == tip(repository, "live")
    assert holds(bare, tip(bare, "live"), theirs)
    assert holds(bare, tip(bare, "live"), ours)


def test_what_another_clone_has_changed_otherwise_on_live_is_for_a_person(repository, bare):
    owe(repository, "live")
    publish(repository)
    theirs, ours = elsewhere(bare, same="1\n"), on_live(repository, same="2\n")
    owe(repository, "live")
    said = publish(repository)
    assert "another clone retrains as well" in said
    assert "have both changed same, and differently" in said
    assert (tip(repository, "live"), tip(bare, "live")) == (ours, theirs)
    assert (repository / ".mill/unpushed").exists()


def test_a_commit_that_is_gone_is_owed_no_more(repository, bare):
    owe(repository, "0" * 40)
    assert publish(repository) == ""
    assert refs(bare) == set()


def test_somebodys_dvc_command_does_not_stop_the_retrains_push(repository, bucket, s3_server):
    from dvc.repo import Repo

    with_s3(repository, bucket, s3_server)
    owe(repository, git(repository, "rev-parse", "live"))
    with Repo(str(repository)) as repo, repo.lock:
        assert "another dvc command is running" in publish(repository)
        with worktree(repository, "films", "retrain/films/2", "live") as tree:
            assert publish(repository, tree.folder) == "Pushed to the DVC remote s3."


def test_among_several_git_remotes_the_one_that_git_is_told_is_taken(repository, bare, tmp_path):
    git(tmp_path, "init", "-q", "--bare", "other.git")
    git(repository, "remote", "add", "other", str(tmp_path / "other.git"))
    git(repository, "config", "remote.pushDefault", "other")
    owe(repository, "live")
    assert publish(repository).startswith("Pushed to the Git remote other.")
    assert refs(tmp_path / "other.git") == OURS
