"""Retraining where a model's line stands on other pipeline files than the one at the top."""

import shutil
from pathlib import Path

import pytest

from flows.git import LIVE, git
from flows.inputs import digest, inputs_of
from flows.retrain import retrain
from flows.stages import LineError
from flows.sync import sync
from tasks.shards import write_text
from tests.test_retrain import STAGES, gate, toy  # noqa: F401
from tests.test_worktree import dvc

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# The release of either model waits for `words`; nothing does for `apart`. SHELF and RUNS are outside of the repository.
LISTS = """
vars: [how.yaml]
stages:
  words:
    cmd: >-
      mkdir -p made && ${command} raw/* stock.txt SHELF > made/words.txt
      && echo '{"lists": 3}' > counts.json && echo '<p>3' > counts.html
      && mkdir -p notes && echo slow > notes/run.log && echo 3 > 'notes/how many'
      && cat raw/* stock.txt SHELF | wc -l >> RUNS
    deps: [raw, stock.txt, SHELF]
    params: [{"how.yaml": [level]}]
    outs:
      - made/words.txt
      - counts.json: {cache: false}
      - counts.html: {cache: false}
      - notes: {cache: false}
  apart:
    cmd: cp ../notes.txt apart.txt
    deps: [../notes.txt]
    outs:
      - apart.txt: {cache: false}
"""


@pytest.fixture(scope="module")
def made(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The toy repository with a pipeline of its own for lists, which reads what is in Git, in DVC and in neither."""
    folder = tmp_path_factory.mktemp("lists")
    root = Path(shutil.copytree(toy, folder / "repository", symlinks=True))
    write_text(folder / "shelf.txt", "of nobody\n")
    write_text(root / "dvc.yaml", STAGES.replace("make.py,", "make.py, lists/made/words.txt,"))
    write_text(
        root / "lists/dvc.yaml", LISTS.replace("SHELF", f"{folder}/shelf.txt").replace("RUNS", f"{folder}/runs.txt")
    )
    write_text(root / "lists/how.yaml", "command: cat\nlevel: 1\nother: 1\n")
    write_text(root / "lists/raw/one.txt", "of Git\n")
    write_text(root / "lists/stock.txt", "of DVC\n")
    write_text(root / "notes.txt", "of no stage that matters\n")
    write_text(root / ".gitignore", (root / ".gitignore").read_text() + "*.log\n")
    dvc(root, "add", "-q", "lists/stock.txt")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "lists")
    return root


@pytest.fixture
def repository(made: Path, tmp_path: Path) -> Path:
    """A copy of one's own; what stands outside of it is its own as well."""
    folder = Path(shutil.copytree(made.parent, tmp_path / "lists", symlinks=True))
    change(folder / "repository/lists/dvc.yaml", str(made.parent), str(folder))
    commit(folder / "repository")
    return folder / "repository"


def change(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    write_text(file, text.replace(before, after))


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-qm", "changed", "--allow-empty")


def inputs(root: Path, model: str = "films") -> str:
    return digest(inputs_of(root, model), None)


@pytest.mark.usefixtures("served", "gate")
def test_what_any_pipeline_of_the_line_has_made_and_git_keeps_comes_to_live(repository: Path) -> None:
    assert retrain(repository, "films").verdict == "promoted"
    assert git(repository, "diff", "--name-only", "main", LIVE).splitlines() == [
        "data/films/source.json",
        "dvc.lock",
        "lists/counts.json",
        "lists/dvc.lock",
        "lists/made/.gitignore",
        "lists/notes/how many",
        "reports/films/deploy.json",
        "reports/films/gate.json",
    ]
    sync(repository)
    dvc(repository, "checkout", "-q", "--allow-missing")
    # A page that Git ignores is on no branch, and DVC does not cache it: that alone would have to be made again.
    assert dvc(repository, "status", "deploy@films").strip().endswith("up to date.")
    assert "counts.html" in dvc(repository, "status", "lists/dvc.yaml:words")
    assert git(repository, "status", "--porcelain") == ""


@pytest.mark.long
@pytest.mark.usefixtures("served", "gate")
def test_what_is_new_to_any_pipeline_of_the_line_is_learned(repository: Path) -> None:
    retrain(repository, "films")
    assert "were decided on before" in retrain(repository, "films").sentence
    assert (repository.parent / "runs.txt").read_text() == "3\n"
    write_text(repository / "lists/raw/two.txt", "another\n")
    commit(repository)
    result = retrain(repository, "films")
    assert (repository.parent / "runs.txt").read_text() == "3\n4\n"
    assert "The line makes the champion, films@v1.0.0, again." in result.sentence


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("lists/dvc.yaml", "${command} raw", "${command} -A raw"),
        ("lists/dvc.yaml", "      - made/words.txt\n", "      - made/words.txt: {persist: true}\n"),
        ("lists/how.yaml", "command: cat", "command: tac"),
        ("lists/how.yaml", "level: 1", "level: 2"),
        ("lists/raw/one.txt", "of Git", "of git"),
        ("lists/stock.txt.dvc", "md5: ", "md5: 0"),
        ("../shelf.txt", "of nobody", "of somebody"),
        ("dvc.yaml", "python make.py", "python -u make.py"),
        ("make.py", "making", "packing"),
    ],
)
def test_each_thing_that_the_line_stands_on_is_an_input(repository: Path, file: str, before: str, after: str) -> None:
    found = inputs(repository)
    change(repository / file, before, after)
    commit(repository)
    assert inputs(repository) != found


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("lists/dvc.yaml", "vars:", "# of lists\nvars:"),
        ("lists/dvc.yaml", "cp ../notes", "cp -v ../notes"),
        ("lists/how.yaml", "other: 1", "other: 2"),
        ("notes.txt", "of no stage", "nothing of a stage"),
        ("data/books/admitted.jsonl", "\n", "\n\n"),
    ],
)
def test_what_it_does_not_stand_on_is_none(repository: Path, file: str, before: str, after: str) -> None:
    found = inputs(repository)
    change(repository / file, before, after)
    commit(repository)
    assert inputs(repository) == found


def test_what_the_line_makes_is_none_wherever_git_or_dvc_keeps_it(repository: Path, tmp_path: Path) -> None:
    found = inputs(repository)
    dvc(repository, "repro", "-q", "lists/dvc.yaml:words")
    assert inputs(repository) == found
    commit(repository)
    assert git(repository, "ls-files", "lists/counts.json", "lists/dvc.lock").splitlines()
    assert inputs(repository) == found
    git(tmp_path, "clone", "-q", str(repository), "another")
    assert not (tmp_path / "another/lists/stock.txt").exists()
    assert inputs(tmp_path / "another") == found


def test_data_that_dvc_tracks_is_the_same_before_and_after_it_is_checked_out(repository: Path) -> None:
    for name in ("data/films/source.json", "incoming/films/*.csv"):
        change(repository / "params.yaml", name, "lists/stock.txt")
    commit(repository)
    found = inputs(repository)
    (repository / "lists/stock.txt").unlink()
    assert inputs(repository) == found


def test_a_pipeline_that_cannot_be_read_is_named(repository: Path) -> None:
    write_text(repository / "lists/dvc.yaml", "stages: [")
    with pytest.raises(LineError, match=r"lists/dvc\.yaml"):
        inputs(repository)


def test_what_cannot_be_looked_at_is_named_with_its_stage(repository: Path) -> None:
    change(repository / "lists/dvc.yaml", "deps: [raw,", "deps: [raw, 'http://127.0.0.1:9/list.txt',")
    with pytest.raises(LineError, match=r"lists/dvc\.yaml:words reads http://127\.0\.0\.1:9/list\.txt"):
        inputs(repository)
