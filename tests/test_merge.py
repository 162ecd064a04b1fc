import json
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.git import GitError, git, tip
from flows.merge import MergeConflict, merge_by_model, model_of_stage
from tasks.shards import write_json, write_text

BOTH = {"films": {"problem": "p", "source": "sql"}, "books": {"problem": "p", "source": "sql"}}


class Repository:
    """A repository of two models, each with a lock of two stages, a report and a pin; `main` and `live` start equal."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        git(root, "init", "-q", "-b", "main")
        git(root, "config", "user.name", "t")
        git(root, "config", "user.email", "t@localhost")
        write_json(root / "params.yaml", {"models": BOTH})
        self.lock({"code": "0"})
        for model in BOTH:
            self.run(model, "0")
        self.commit()
        git(root, "branch", "live")

    def lock(self, entries: dict[str, str]) -> None:
        """Write these stages' hashes into dvc.lock as DVC does: those known stay where they are."""
        from dvc.utils.serialize import dumps_yaml

        file = self.root / "dvc.lock"
        lock = YAML(typ="safe").load(file.read_text()) if file.exists() else {"schema": "2.0", "stages": {}}
        for name, md5 in entries.items():
            lock["stages"][name] = {"cmd": f"make {name}", "outs": [{"path": name, "md5": md5}]}
        write_text(file, dumps_yaml(lock))

    def run(self, model: str, result: str) -> None:
        self.lock({f"clean@{model}": result, f"train@{model}": result})
        write_json(self.root / "reports" / model / "train.json", {"result": result, "lines": list(range(9))})

    def pull(self, model: str, pin: str) -> None:
        write_json(self.root / "data" / model / "source.json", {"pin": pin})

    def commit(self, branch: str | None = None) -> str:
        git(self.root, "add", "-A")
        git(self.root, "commit", "-qm", "change")
        return git(self.root, "rev-parse", "HEAD")

    def on(self, branch: str) -> None:
        git(self.root, "switch", "-q", branch)

    def merged(self) -> str:
        """The commit that holds live and main, while main is checked out."""
        self.on("main")
        before = git(self.root, "status", "--porcelain"), (self.root / ".git/index").read_bytes()
        refs = git(self.root, "for-each-ref")
        commit = merge_by_model(self.root, "live", "main", "both")
        assert (git(self.root, "status", "--porcelain"), (self.root / ".git/index").read_bytes()) == before
        assert git(self.root, "for-each-ref") == refs
        return commit

    def read(self, commit: str, path: str) -> str:
        return subprocess.run(
            ["git", "show", f"{commit}:{path}"], cwd=self.root, capture_output=True, text=True, check=True
        ).stdout

    def hashes(self, commit: str) -> dict[str, str]:
        stages = YAML(typ="safe").load(self.read(commit, "dvc.lock"))["stages"]
        return {name: entry["outs"][0]["md5"] for name, entry in stages.items()}


@pytest.fixture
def repository(tmp_path) -> Repository:
    return Repository(tmp_path / "repository")


def test_each_models_lock_and_reports_come_from_the_branch_that_changed_them(repository):
    repository.run("films", "main")
    repository.commit()
    repository.on("live")
    repository.run("books", "live")
    repository.commit()
    commit = repository.merged()
    assert repository.hashes(commit) == {
        "code": "0",
        "clean@films": "main",
        "train@films": "main",
        "clean@books": "live",
        "train@books": "live",
    }
    assert json.loads(repository.read(commit, "reports/films/train.json"))["result"] == "main"
    assert json.loads(repository.read(commit, "reports/books/train.json"))["result"] == "live"
    parents = git(repository.root, "rev-list", "--parents", "-1", commit).split()[1:]
    assert parents == [tip(repository.root, "live"), tip(repository.root, "main")]


def test_where_both_ran_a_model_its_lock_and_reports_are_lives_and_the_parameters_mains(repository):
    write_json(repository.root / "params.yaml", {"models": {**BOTH, "films": {"problem": "p", "source": "objects"}}})
    repository.run("films", "main")
    repository.commit()
    repository.on("live")
    repository.run("films", "live")
    repository.commit()
    commit = repository.merged()
    assert repository.hashes(commit)["clean@films"] == repository.hashes(commit)["train@films"] == "live"
    assert json.loads(repository.read(commit, "reports/films/train.json"))["result"] == "live"
    assert json.loads(repository.read(commit, "params.yaml"))["models"]["films"]["source"] == "objects"


def test_what_is_the_same_on_both_sides_is_no_question(repository):
    repository.run("films", "same")
    repository.commit()
    repository.on("live")
    repository.run("films", "same")
    repository.run("books", "live")
    repository.commit()
    assert set(repository.hashes(repository.merged()).values()) == {"0", "same", "live"}


def test_a_merged_lock_has_the_bytes_that_dvc_would_write(repository):
    from dvc.utils.serialize import dumps_yaml

    repository.run("films", "main")
    repository.commit()
    repository.on("live")
    repository.run("books", "live")
    repository.commit()
    text = repository.read(repository.merged(), "dvc.lock")
    assert text == dumps_yaml(YAML(typ="safe").load(text))
    assert text.startswith("schema: '2.0'\nstages:\n  code:\n")


def test_the_list_of_code_is_mains_where_both_made_it(repository):
    repository.lock({"code": "main"})
    repository.commit()
    repository.on("live")
    repository.lock({"code": "live"})
    repository.commit()
    assert repository.hashes(repository.merged())["code"] == "main"


def test_a_pin_is_that_of_the_branch_that_moved_it_and_lives_where_both_did(repository):
    repository.pull("films", "main")
    repository.pull("books", "main")
    repository.commit()
    repository.on("live")
    repository.pull("books", "live")
    repository.commit()
    commit = repository.merged()
    assert json.loads(repository.read(commit, "data/films/source.json")) == {"pin": "main"}
    assert json.loads(repository.read(commit, "data/books/source.json")) == {"pin": "live"}


def test_a_pin_of_a_source_that_main_has_left_gives_way_to_mains(repository):
    repository.pull("films", "0")
    base = repository.commit()
    git(repository.root, "branch", "-f", "live", base)
    write_json(repository.root / "params.yaml", {"models": {**BOTH, "films": {"problem": "p", "source": "objects"}}})
    repository.pull("films", "main")
    repository.commit()
    repository.on("live")
    repository.pull("films", "live")
    repository.commit()
    assert json.loads(repository.read(repository.merged(), "data/films/source.json")) == {"pin": "main"}


def test_a_model_that_main_has_taken_out_does_not_come_back(repository):
    write_json(repository.root / "params.yaml", {"models": {"films": BOTH["films"]}})
    git(repository.root, "rm", "-rq", "reports/books")
    repository.commit()
    repository.on("live")
    repository.run("books", "live")
    repository.commit()
    commit = repository.merged()
    assert "reports/books" not in git(repository.root, "ls-tree", "-r", "--name-only", commit)


def test_a_branch_that_holds_the_other_is_the_merge(repository):
    before = repository.merged()
    assert before == tip(repository.root, "main")
    repository.run("films", "1")
    newer = repository.commit()
    assert repository.merged() == newer
    repository.on("live")
    git(repository.root, "merge", "-q", "--ff-only", "main")
    repository.run("films", "2")
    assert repository.commit() == repository.merged()


def test_parameters_that_both_have_changed_ask_for_a_person_with_the_commands(repository):
    for branch, source in (("main", "objects"), ("live", "files")):
        repository.on(branch)
        write_json(repository.root / "params.yaml", {"models": {**BOTH, "films": {"problem": "p", "source": source}}})
        repository.run("films", branch)
        repository.commit()
    with pytest.raises(MergeConflict) as raised:
        repository.merged()
    assert raised.value.files == ["params.yaml"]
    assert "params.yaml" in str(raised.value)
    commands = [line.split("#")[0].strip() for line in str(raised.value).splitlines()[1:]]
    assert commands[0].startswith("git switch main && git merge --no-commit live")

    def run(command: str) -> None:
        subprocess.run(command, shell=True, cwd=repository.root, capture_output=True, check=False)

    run(commands[0])
    run(commands[1])
    write_json(repository.root / "params.yaml", {"models": BOTH})
    run(f"{commands[2]} -qm merged")
    assert repository.merged() == tip(repository.root, "main")  # what a person was told to do is enough
    assert repository.hashes("main")["train@films"] == "live"


def test_branches_without_a_common_commit_are_refused(repository):
    git(repository.root, "switch", "-q", "--orphan", "other")
    write_text(repository.root / "params.yaml", "{}")
    repository.commit()
    with pytest.raises(GitError, match="no commit in common"):
        merge_by_model(repository.root, "live", "other", "both")


@pytest.mark.parametrize(
    ("stage", "model"),
    [
        ("clean@films", "films"),
        ("train@films-3", "films"),
        ("train@films-uk", "films-uk"),
        ("clean@music", "music"),
        ("code", None),
    ],
)
def test_an_entry_of_the_lock_belongs_to_a_model(stage, model):
    assert model_of_stage(stage, {"films", "films-uk"}) == model
