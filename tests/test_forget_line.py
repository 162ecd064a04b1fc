"""A row that went through the shipped stages is purged out of all that they made, and the line goes on without it."""

import subprocess

import pytest

from flows import registry
from flows.forget import forget
from flows.git import git
from flows.trace import trace_row
from tasks.release import read_release
from tasks.shards import read_json, read_rows
from tests.test_forget import files_with
from tests.test_line import Project, small_clone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def commit(project: Project) -> str:
    subprocess.run(["git", "add", "-A"], cwd=project.root, check=True)
    subprocess.run(["git", "commit", "-qm", "ran"], cwd=project.root, check=True)
    return git(project.root, "rev-parse", "HEAD")


def test_the_shipped_stages_keep_nothing_of_a_purged_row(tmp_path, capsys):
    project = Project(small_clone(tmp_path / "modelmill"), {})
    git(project.root, "branch", "-m", "main")
    project.dvc("remote", "add", "-d", "near", "../../store")
    project.dvc("repro")
    first = commit(project)
    project.dvc("push")
    folder = project.root / "models/reviews/release"
    version = registry.register(project.root, "reviews", first, release=read_release(folder), why="the first")
    registry.promote(project.root, version, why="the first")
    golden = {row["id"] for row in read_json(folder / "golden.json")["rows"]}
    rows = read_rows(project.root / "data/reviews/clean").sort("id")
    for split in ("train", "test"):
        row = next(one for one in rows.filter(split=split).iter_rows(named=True) if one["id"] not in golden)
        held = files_with(tmp_path, row["id"], row["text"], skip=(".git", "samples"))
        stages = {"collect", "validate", "clean", "tokenize" if split == "train" else "evaluate"}
        assert stages <= {name.split("/")[3] for name in held if name.startswith("modelmill/data/reviews/")}
        assert forget(project.root, [row["id"]], "reviews", why="test", purge_too=True, yes=True) == 0
        assert files_with(tmp_path, row["id"], row["text"], skip=(".git", "samples")) == []
        project.dvc("repro")
        commit(project)
        assert files_with(tmp_path, row["id"], row["text"], skip=(".git", "samples")) == []
        assert row["id"] not in read_rows(project.root / "data/reviews/clean")["id"]
        capsys.readouterr()
        trace_row(project.root, row["id"])
        assert f"{version.tag}  {split}" in capsys.readouterr().out
    assert read_json(project.root / "reports/reviews/collect.json")["forgotten"] == 2
