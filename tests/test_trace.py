"""From a prediction back to its source, and from a row to the versions that saw it, on real Git, DVC and journal."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from flows import registry
from flows.git import git
from flows.passport import TraceError
from flows.trace import trace, trace_row
from tasks.shards import write_text
from tests.passport_world import World, copy_of, long_one, make_world

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny, reviews) -> World:
    return make_world(tmp_path_factory.mktemp("passport"), tiny, reviews)


@pytest.fixture
def own(world, tmp_path) -> World:
    return copy_of(world, tmp_path / "own")


def released(world: World, number: int) -> registry.Version:
    return registry.versions(world.root, "films")[number - 1]


def told(world: World, prediction: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, dict]:
    assert trace(world.root, prediction, as_json=True) == code
    return json.loads(capsys.readouterr().out)


def test_a_prediction_leads_back_to_version_gate_commit_parameters_data_and_source(world, capsys):
    first = released(world, 1)
    id = world.predict(1, "a good film", first.release)
    found = told(world, id, capsys)
    assert list(found) == [
        "prediction", "version", "gate", "commit", "parameters", "clean", "collect", "source", "rows"
    ]  # fmt: skip
    assert found["prediction"]["inputs"] == {"text": "a good film"}
    assert found["version"]["tag"] == "films@v1.0.0"
    assert found["version"]["promotions"] == ["films#champion#1"]
    assert found["gate"]["sentence"] == "It is better."
    assert found["commit"]["commit"] == first.commit
    assert found["parameters"]["parameters"]["train"]["seed"] == 1
    assert sum(shard["rows"] for shard in found["collect"]["shards"].values()) == len(world.first)
    assert [one["name"] for one in found["source"]["partitions"]] == ["1.csv"]
    rows = git(world.root, "show", f"{first.commit}:reports/films/clean.json")
    assert found["rows"]["splits"]["train"] == json.loads(rows)["splits"]["train"]["rows"]
    assert not any(link["broken"] for link in found.values())


def test_for_people_it_says_the_same_in_lines(world, capsys):
    id = world.predict(2, "a good film", released(world, 2).release)
    assert trace(world.root, id) == 0
    said = capsys.readouterr().out
    assert "films@v1.1.0" in said
    assert "the champion" in said
    assert "2.csv" in said
    assert "as params.yaml of" in said
    assert "BROKEN" not in said


def test_the_rows_of_the_version_are_written_and_the_nearest_found(world, tmp_path, capsys):
    asked = world.row("train", world.first)
    id = world.predict(3, world.text(asked), released(world, 1).release)
    file = tmp_path / "rows.parquet"
    assert trace(world.root, id, rows=file, nearest=3, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    rows = pl.read_parquet(file)
    assert dict(rows["split"].value_counts().iter_rows()) == found["rows"]["splits"]
    nearest = found["nearest"]["rows"]
    assert nearest[0]["id"] == asked
    assert nearest[0]["cosine"] == pytest.approx(1, abs=1e-3)
    assert nearest[1]["cosine"] < nearest[0]["cosine"]
    assert found["nearest"]["of"] == found["rows"]["splits"]["train"]


def test_a_version_that_is_not_in_the_store_is_traced_by_its_commit_and_the_remote(own, capsys):
    id = own.predict(4, "a good film", released(own, 1).release)
    shutil.rmtree(own.root / ".mill/versions")
    shutil.rmtree(own.root / ".dvc/cache")
    found = told(own, id, capsys)
    assert found["parameters"]["parameters"]["train"]["seed"] == 1
    shutil.rmtree(own.root.parent / "store")
    found = told(own, id, capsys, code=1)
    assert "neither DVC's cache nor its remotes" in found["version"]["broken"][0]
    assert found["commit"]["commit"] == released(own, 1).commit


def test_data_that_the_commit_does_not_name_breaks_the_way(own, capsys):
    first, second = released(own, 1), released(own, 2)
    # Somebody moves the tag of a version to another commit.
    body = git(own.root, "for-each-ref", "--format=%(contents)", "refs/tags/films@v1.0.0")
    git(own.root, "tag", "-d", "films@v1.0.0", "films@v1.1.0")
    git(own.root, "tag", "-a", "films@v1.0.0", second.commit, "-m", body)
    id = own.predict(5, "a good film", first.release)
    found = told(own, id, capsys, code=1)
    assert "names other data" in found["clean"]["broken"][0]


def test_a_release_that_was_put_in_use_without_a_gate_is_found_by_its_report(own, capsys):
    first = released(own, 1)
    for tag in git(own.root, "tag").split():
        git(own.root, "tag", "-d", tag)
    id = own.predict(6, "a good film", first.release)
    found = told(own, id, capsys)
    assert (found["version"]["tag"], found["commit"]["commit"]) == (None, first.commit)


def test_an_unknown_prediction_and_a_journal_that_is_not_there_are_said(own):
    own.predict(7, "a good film", released(own, 1).release)
    with pytest.raises(TraceError, match="no prediction 'no-such-id'"):
        trace(own.root, "no-such-id")
    journal = own.root / ".mill/journal.sqlite"
    journal.unlink()
    with pytest.raises(TraceError, match="There is no journal"):
        trace(own.root, "no-such-id")
    assert not journal.exists()


def fates(world: World, row: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert trace_row(world.root, row, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)["models"]["films"]
    return {where: state["fate"] for where, state in found["versions"].items()}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_row_leads_to_the_versions_that_learned_from_it_or_were_tested_on_it(world, capsys, split):
    old, new = world.row(split, world.first), world.row(split, world.second)
    assert fates(world, old, capsys) == {"films@v1.0.0": split, "films@v1.1.0": split, "working tree": split}
    assert fates(world, new, capsys) == {"films@v1.0.0": "not in it", "films@v1.1.0": split, "working tree": split}


def test_for_people_a_row_says_who_learned_from_it_and_what_was_promoted(world, capsys):
    trace_row(world.root, world.row("train", world.first), "films")
    said = capsys.readouterr().out
    assert "2 versions learned from it: films@v1.0.0, films@v1.1.0" in said
    assert "films#champion#2, the champion" in said


def test_a_row_that_was_dropped_or_quarantined_says_why(world, capsys):
    trace_row(world.root, "copy-of-it")
    assert f"near_duplicate_of:{long_one(world)}" in capsys.readouterr().out
    trace_row(world.root, "too-short")
    said = capsys.readouterr().out
    assert "quarantined" in said
    assert "too short" in said


def test_an_unknown_row_is_said_with_where_it_was_looked_for(world):
    with pytest.raises(TraceError) as error:
        trace_row(world.root, "copy-of-its")
    assert "No row 'copy-of-its'. Did you mean 'copy-of-it'?" in str(error.value)
    assert "films (films@v1.0.0, films@v1.1.0)" in str(error.value)
    with pytest.raises(TraceError, match="Did you mean 'films'"):
        trace_row(world.root, "copy-of-it", "film")


def test_where_data_is_gone_a_row_is_unknown_and_not_absent(own, capsys):
    row = own.row("train", own.second)
    shutil.rmtree(own.root / ".dvc/cache")
    shutil.rmtree(own.root.parent / "store")
    assert fates(own, row, capsys) == {"films@v1.0.0": "unknown", "films@v1.1.0": "unknown", "working tree": "train"}


def test_without_git_it_says_so(tmp_path: Path) -> None:
    write_text(tmp_path / "params.yaml", "models: {}\n")
    with pytest.raises(registry.MillError, match="not a git repository"):
        trace(tmp_path, "x")
