"""dvc.yaml held against the code, and the whole line run by DVC on a model small enough for a test."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tasks.code import SPEAK_ONLY
from tasks.paths import STAGES
from tasks.shards import read_json, sha256_of
from tests.conftest import REPOSITORY
from tests.line_toy import Seen

PROBLEM, SOURCE = "text_classification", "files"  # the shipped model's


def listed(root: Path, name: str) -> set[str]:
    """The modules of a list that the stage `code` wrote."""
    files = [line.split("  ")[1] for line in (root / "data/code" / f"{name}.sha256").read_text().splitlines()]
    return {file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files}


def dependencies(root: Path, stage: str) -> set[str]:
    """The modules that a stage of the shipped model depends on."""
    block = YAML(typ="safe").load((root / "dvc.yaml").read_text())["stages"][stage]["do"]
    deps = [dep.replace("${item.problem}", PROBLEM).replace("${item.source}", SOURCE) for dep in block["deps"]]
    lists = [dep.removeprefix("data/code/").removesuffix(".sha256") for dep in deps if dep.startswith("data/code/")]
    return set().union(*(listed(root, name) for name in lists))


def test_every_stage_has_its_word_everywhere():
    blocks = YAML(typ="safe").load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert tuple(blocks) == ("code", *STAGES)
    for stage in STAGES:
        assert (REPOSITORY / "tasks" / f"{stage}.py").exists()
        assert blocks[stage]["do"]["cmd"] == f"python -m tasks {stage} ${{key}}"
        assert f"data/code/${{item.problem}}/{stage}.sha256" in blocks[stage]["do"]["deps"]
        assert (REPOSITORY / "tests" / f"test_{stage}.py").exists()


TINY = {
    "architecture": "bert",
    "hidden_size": 32,
    "layers": 2,
    "heads": 2,
    "feed_forward_size": 64,
    "max_positions": 64,
}


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@dataclass
class Project:
    """A clone with one tiny model, what each stage loaded when it ran, and the lock that DVC wrote."""

    root: Path
    loaded: dict[str, set[str]]
    lock: bytes = b""

    def dvc(self, *arguments: str, check: bool = True, **env: str) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["dvc", *arguments],
            cwd=self.root,
            env={**os.environ, "PATH": path, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout[-3000:]
        return done.stdout


def _clone(root: Path) -> Path:
    """This repository's files, and nothing that it made, in a repository of their own."""
    root.mkdir()
    for name in _git(REPOSITORY, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if name.startswith(("tests/", "reports/", "dvc.lock")) or not (REPOSITORY / name).is_file():
            continue
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    _git(root, "init", "-q")
    _git(root, "config", "user.name", "t")
    _git(root, "config", "user.email", "t@localhost")
    _commit(root)
    return root


def _commit(root: Path) -> None:
    _git(root, "add", "-A")
    _git(root, "commit", "-qm", "all")


def small_clone(root: Path) -> Path:
    """A clone whose model is cut down."""
    _clone(root)
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    model = params["models"]["reviews"]
    model["base"] = dict(TINY)
    model["threads"] = 1
    model["collect"]["where"] += " AND id LIKE 'movie-1%'"
    model["validate"]["table"][0]["expect_table_row_count_to_be_between"]["min_value"] = 100
    model["tokenize"] = {"tokenizer": {"algorithm": "wordpiece", "vocabulary": 800}, "max_tokens": 48}
    model["train"].update(epochs=1, freeze=[], learning_rate=1e-3)
    model["clean"]["min_rows"] = 100
    model["deploy"].update(floors={"accuracy": 0.1}, must_beat_baselines=False)
    yaml.dump(params, root / "params.yaml")
    _commit(root)
    return root


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A clone whose model is cut down, its line run once by `dvc repro`."""
    project = Project(small_clone(tmp_path_factory.mktemp("clone") / "modelmill"), {})
    said = project.dvc("repro", PYTHONPROFILEIMPORTTIME="1")
    _, *parts = re.split(r"Running stage '(\w+)(?:@reviews)?'", said)
    for stage, text in zip(parts[::2], parts[1::2], strict=True):
        project.loaded[stage] = set(re.findall(r"^import time:.*\| +(tasks[\w.]*)$", text, re.MULTILINE))
    project.lock = (project.root / "dvc.lock").read_bytes()
    return project


@pytest.mark.parametrize("stage", STAGES)
def test_a_running_stage_loads_no_code_that_it_does_not_depend_on(project, stage):
    assert f"tasks.{stage}" in project.loaded[stage]
    assert project.loaded[stage] - SPEAK_ONLY <= dependencies(project.root, stage)


def test_the_lists_of_code_hold_hashes_that_others_can_check(project):
    lists = sorted((project.root / "data/code").rglob("*.sha256"))
    done = subprocess.run(
        ["sha256sum", "--check", *lists], cwd=project.root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"tasks/problems/{PROBLEM}.py: OK" in done.stdout


def test_a_change_of_code_redoes_the_stages_that_it_can_change_and_no_other(project):
    before = (project.root / "tasks/redact.py").read_text()
    try:
        (project.root / "tasks/redact.py").write_text(f"{before}\n# changed\n")
        assert list(json.loads(project.dvc("status", "--json"))) == ["code"]
        project.dvc("repro", "code")
        stale = json.loads(project.dvc("status", "--json"))
        assert sorted(stale) == ["clean@reviews", "deploy@reviews", "evaluate@reviews", "export@reviews"]
    finally:
        (project.root / "tasks/redact.py").write_text(before)
        project.dvc("repro", "code")
    assert json.loads(project.dvc("status", "--json")) == {}


def test_a_file_that_is_not_python_is_named_with_its_line(project):
    broken = project.root / "tasks/normalise.py"
    before = broken.read_text()
    try:
        broken.write_text("def :\n")
        said = project.dvc("repro", "code", check=False)
    finally:
        broken.write_text(before)
        project.dvc("repro", "code")
    assert "tasks/normalise.py, line 1: not valid Python" in said
    assert "Traceback" not in said


def test_a_line_that_has_run_has_nothing_to_do(project):
    assert "up to date" in project.dvc("repro")
    assert project.dvc("status").strip().endswith("up to date.")


def test_nothing_that_git_keeps_is_left_out_and_nothing_else_comes_in(project):
    new = {line[3:] for line in _git(project.root, "status", "--short").splitlines()}
    assert new <= {"dvc.lock", "reports/"}
    assert (project.root / "reports/reviews/evaluate.json").exists()


@pytest.mark.long
@pytest.mark.usefixtures("served")
def test_the_line_run_again_from_nothing_under_prefect_is_clean_for_dvc_and_gives_the_bytes_of_dvc_repro(
    project, tmp_path
):
    # Another clone, with its own code and nothing of what was made before: neither outputs nor cache.
    again = Project(small_clone(tmp_path / "modelmill"), {})
    command = [sys.executable, "-m", "flows.cli", "run", "reviews"]
    done = subprocess.run(command, cwd=again.root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert "is accepted and in use: accuracy 0." in done.stdout
    assert json.loads(again.dvc("status", "--json")) == {}
    assert (again.root / "dvc.lock").read_bytes() == project.lock
    assert Seen(len(STAGES) + 1).states == dict.fromkeys(
        sorted(["code", *(f"{stage}@reviews" for stage in STAGES)]), "Completed"
    )


def test_what_a_clock_said_is_no_output_but_dvc_shows_it(project):
    shown = project.dvc("metrics", "show", "--json")
    assert "wall_seconds" in shown
    assert "reviews/measured" not in (project.root / "dvc.lock").read_text()


def test_the_release_names_the_data_it_was_learned_from(project):
    manifest = read_json(project.root / "models/reviews/release/manifest.json")
    collected = sha256_of(project.root / "data/reviews/collect/manifest.json")
    assert collected in str(manifest)


@pytest.mark.slow
def test_an_experiment_with_the_learning_rate_redoes_train_and_what_follows(project):
    before = read_json(project.root / "reports/reviews/train.json")
    said = project.dvc("exp", "run", "-S", "models.reviews.train.learning_rate=2e-3")
    assert re.findall(r"Running stage '(\w+)@reviews'", said) == ["train", "export", "evaluate", "deploy"]
    assert read_json(project.root / "reports/reviews/train.json") != before
    assert "learning_rate" in project.dvc("exp", "show", "--csv")


@pytest.mark.slow
def test_the_shipped_line_run_by_dvc_alone_is_accepted_and_beats_its_baselines(tmp_path):
    project = Project(_clone(tmp_path / "modelmill"), {})
    project.dvc("repro")
    found = read_json(project.root / "reports/reviews/evaluate.json")
    assert found["metrics"]["accuracy"]["value"] >= 0.82
    assert found["baselines"]["tfidf_logistic_regression"]["beaten"]
    assert read_json(project.root / "reports/reviews/deploy.json")["verdict"] == "accepted"
