import copy
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.errors import ParamsError
from tasks.params import CollectSql, load, load_model
from tests.conftest import REPOSITORY


@pytest.fixture
def written(tmp_path: Path):
    """Write params.yaml with `reviews` changed by a function, and give its path."""
    shipped = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())

    def write(change) -> Path:
        raw = copy.deepcopy(shipped)
        raw = change(raw["models"]["reviews"]) or raw
        path = tmp_path / "params.yaml"
        YAML(typ="safe").dump(raw, path)
        return path

    return write


def test_the_shipped_file_is_valid():
    assert list(load(REPOSITORY / "params.yaml").models) == ["reviews"]


def test_every_mistake_is_reported_at_once_with_its_path_and_what_is_allowed(written):
    def break_in_many_places(model: dict[str, Any]) -> None:
        model["problem"] = "text_clasification"
        model["threads"] = 0
        model["collect"]["pth"] = model["collect"].pop("path")
        model["train"]["droput"] = model["train"].pop("dropout")
        model["train"]["epochs"] = "two"
        model["export"]["variants"] = ["int4"]

    with pytest.raises(ParamsError) as failed:
        load(written(break_in_many_places))
    message = str(failed.value)
    assert "models.reviews.problem is 'text_clasification'. Did you mean 'text_classification'?" in message
    assert "models.reviews.threads is 0. Input should be greater than or equal to 1." in message
    assert "models.reviews.collect.pth is not a key that is known here. Did you mean 'path'?" in message
    assert "models.reviews.collect.path is missing." in message
    assert "models.reviews.train.droput is not a key that is known here. Did you mean 'dropout'?" in message
    assert "models.reviews.train.epochs is 'two'. Input should be a valid integer." in message
    assert "models.reviews.export.variants.0 is 'int4'. Input should be 'fp32', 'int8' or 'int8_blocks'." in message
    assert len(message.splitlines()) == 8


def test_no_key_has_a_hidden_default(written):
    missing = []
    sections = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())["models"]["reviews"]
    for section, value in sections.items():
        for key in value if isinstance(value, dict) else ():

            def drop(model: dict[str, Any], section: str = section, key: str = key) -> None:
                del model[section][key]

            with pytest.raises(ParamsError, match=f"models.reviews.{section}.{key} is missing"):
                load(written(drop))
            missing.append(key)
    assert len(missing) > 40


def test_params_cannot_be_changed_after_they_were_read():
    model = load_model("reviews", REPOSITORY / "params.yaml")
    with pytest.raises(Exception, match="frozen"):
        model.train.epochs = 3


@pytest.mark.parametrize(
    "name", ["Reviews", "two words", "a.b", "../up", "-a", "a-", "", "9lives", "con", "samples", "a" * 64]
)
def test_a_name_that_is_no_path_address_or_tag_is_refused(written, name):
    with pytest.raises(ParamsError, match="cannot be a model's name"):
        load(written(lambda model: {"models": {name: model}}))


@pytest.mark.parametrize("name", ["a", "reviews-2", "x1-y2-z3"])
def test_other_names_are_taken(written, name):
    assert list(load(written(lambda model: {"models": {name: model}})).models) == [name]


def test_an_unknown_model_is_answered_with_the_one_that_was_meant():
    with pytest.raises(ParamsError, match=r"no model 'review'\. Did you mean 'reviews'\?"):
        load_model("review", REPOSITORY / "params.yaml")


def test_collect_is_read_as_the_source_that_is_named(written):
    def from_sql(model: dict[str, Any]) -> None:
        model.update(source="sql", pin="data/reviews/source.json")
        kept = {key: model["collect"][key] for key in ("columns", "where", "rows_per_shard")}
        model["collect"] = {**kept, "url": "sqlite:///x.db", "query": "SELECT 1", "watermark": None}

    assert isinstance(load(written(from_sql)).models["reviews"].collect, CollectSql)


def test_an_unknown_source_is_reported_once_and_its_section_is_not_guessed_at(written):
    with pytest.raises(ParamsError) as failed:
        load(written(lambda model: model.update(source="file")))
    assert str(failed.value).endswith(
        "models.reviews.source is 'file'. Did you mean 'files'? Known: feedback, files, objects, package, sql."
    )
    assert len(str(failed.value).splitlines()) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_number_that_means_nothing_is_refused(written, value):
    with pytest.raises(ParamsError, match=r"train\.learning_rate"):
        load(written(lambda model: model["train"].update(learning_rate=value)))


def test_a_split_that_leaves_nothing_to_learn_from_is_refused(written):
    with pytest.raises(ParamsError, match="leave no share for train"):
        load(written(lambda model: model["clean"]["split"].update(test=0.9)))


@pytest.mark.parametrize("text", ["models: [", "models: {a: 1, a: 2}", "just words", "", "\udcff"])
def test_a_file_that_is_not_yaml_of_models_is_named(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ParamsError, match=r"params\.yaml"):
        load(path)


def test_a_missing_file_says_where_to_stand(tmp_path):
    with pytest.raises(ParamsError, match="top of the repository"):
        load(tmp_path / "params.yaml")
