"""Another model from a recipe: what is written, and what stays as it was."""

import shutil
from pathlib import Path

import pytest

from flows.params import load_flows
from flows.recipes import add, problem_lines, recipes
from tasks import problems
from tasks.errors import ParamsError
from tasks.params import load, load_model, read_yaml
from tests.conftest import REPOSITORY


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(REPOSITORY / "recipes", tmp_path / "recipes")
    return tmp_path


def test_every_problem_has_a_recipe_of_its_name() -> None:
    assert set(recipes(REPOSITORY)) >= {path.stem for path in Path(problems.__file__).parent.glob("[!_]*.py")}


@pytest.mark.parametrize("recipe", recipes(REPOSITORY))
def test_a_recipe_becomes_a_model_of_the_problem_that_its_name_begins_with(root: Path, recipe: str) -> None:
    before = read_yaml(root / "params.yaml")
    said = add("mine", recipe, root)
    params, flows = load(root / "params.yaml"), load_flows(root / "params.yaml")
    assert recipe.startswith(params.models["mine"].problem)
    assert (root / params.models["mine"].pin).name == (REPOSITORY / params.models["mine"].pin).name
    assert (REPOSITORY / params.models["mine"].pin).exists()
    assert flows.models["mine"].gate.metric in problems.load(params.models["mine"].problem).higher_is_better
    after = read_yaml(root / "params.yaml")
    del after["models"]["mine"], after["flows"]["models"]["mine"]
    assert after == before
    assert "mill run mine" in said[-1]


def test_every_line_of_before_is_there_in_its_order(root: Path) -> None:
    before = {name: (root / name).read_text().splitlines() for name in ("params.yaml", "dvc.yaml")}
    add("mine", "question_answering", root)
    for name, lines in before.items():
        after = iter((root / name).read_text().splitlines())
        assert all(line in after for line in lines)


def test_a_second_model_comes_behind_the_first_and_its_clocks_are_shown_too(root: Path) -> None:
    add("one", "question_answering", root)
    add("two", "text_classification", root)
    assert list(load(root / "params.yaml").models) == ["reviews", "one", "two"]
    shown = read_yaml(root / "dvc.yaml")
    assert shown["plots"] == [f"reports/{name}/live/plots/metrics/train/" for name in ("reviews", "one", "two")]
    assert len(shown["metrics"]) == 6


def test_what_git_has_of_each_model_is_there_and_empty(root: Path) -> None:
    add("mine", "question_answering", root)
    for name in ("admitted.jsonl", "feedback.json", "forgotten.jsonl"):
        assert (root / "data/mine" / name).read_bytes() == (REPOSITORY / "data/reviews" / name).read_bytes()


def test_the_recipe_of_the_shipped_model_says_what_it_says(root: Path) -> None:
    add("mine", "text_classification", root)
    mine, shipped = (load_model(name, root / "params.yaml") for name in ("mine", "reviews"))
    assert mine.model_copy(update={"feedback": None}) == shipped.model_copy(update={"feedback": None})
    models = load_flows(root / "params.yaml").models
    assert models["mine"] == models["reviews"]


@pytest.mark.parametrize(
    ("name", "recipe", "message"),
    [
        ("reviews", "question_answering", "has a model 'reviews' already"),
        ("Mine", "question_answering", "models.Mine cannot be a model's name"),
        ("a: {}\n  b", "question_answering", "params.yaml"),
        ("mine", "question_anwsering", "Did you mean 'question_answering'"),
        ("mine", "../params", "There is no recipe"),
    ],
)
def test_what_cannot_be_is_said_and_changes_nothing(root: Path, name: str, recipe: str, message: str) -> None:
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    with pytest.raises(ParamsError, match=message):
        add(name, recipe, root)
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before


def test_params_that_are_not_written_in_blocks_are_left_to_a_person(root: Path) -> None:
    models = read_yaml(root / "params.yaml")
    import json

    (root / "params.yaml").write_text(json.dumps(models))
    with pytest.raises(ParamsError, match="is not a block of entries"):
        add("mine", "question_answering", root)


def test_the_list_of_problems_names_all_of_them_with_what_they_read() -> None:
    text = "\n".join(problem_lines(REPOSITORY))
    for name in recipes(REPOSITORY):
        assert f"mill add NAME --recipe {name}" in text
    for path in Path(problems.__file__).parent.glob("[!_]*.py"):
        assert f"{path.stem}: " in text
        assert f"reads    {', '.join(problems.load(path.stem).inputs)};" in text
