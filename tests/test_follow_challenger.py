"""Which challenger stands in the shadow: flows/shadow.py."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.registry import promote
from flows.shadow import follow_challenger, shadow_file
from tasks.release import MANIFEST, open_release
from tasks.shards import read_json, sha256_of, write_json
from tests.registered import History
from tests.test_serve_command import mill_serve, settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def history(made: History, tmp_path: Path) -> History:
    """A copy of one's own, whose params ask for a shadow."""
    root = tmp_path / "repository"
    shutil.copytree(made.root, root, symlinks=True)
    params = read_json(root / "params.yaml")
    params["flows"]["serve"]["shadow"] = 0.5
    write_json(root / "params.yaml", params)
    return History(root, made.packed, made.commits, made.releases)


def in_shadow(history: History) -> dict[str, Any] | None:
    file = shadow_file(history.root)
    return read_json(file).get("films") if file.exists() else None


def test_the_newest_challenger_that_was_kept_out_stands_in_the_shadow_whole(history: History) -> None:
    promote(history.root, history.version(1), why="the first")
    history.decide(2, "keep")
    said = follow_challenger(history.root, "films")
    assert said == f"{history.releases[1]} gets a copy of what films is asked; nobody is answered with it."
    entry = in_shadow(history)
    assert entry is not None
    release = open_release(history.root / entry["folder"])
    assert (release.version, entry["version"]) == (history.releases[1], history.releases[1])
    assert entry["manifest_sha256"] == sha256_of(release.folder / MANIFEST)
    assert follow_challenger(history.root, "films") is None


def test_one_that_its_own_floors_refused_never_does(history: History) -> None:
    promote(history.root, history.version(1), why="the first")
    history.decide(3, "keep")
    assert follow_challenger(history.root, "films") is None
    assert in_shadow(history) is None


def test_a_promotion_ends_the_shadow(history: History) -> None:
    promote(history.root, history.version(1), why="the first")
    history.decide(2, "ask")
    follow_challenger(history.root, "films")
    promote(history.root, history.version(2), why="a person")
    follow_challenger(history.root, "films")
    assert in_shadow(history) is None


def test_where_params_ask_for_none_there_is_none(history: History) -> None:
    history.decide(2, "keep")
    follow_challenger(history.root, "films")
    assert in_shadow(history) is not None
    params = read_json(history.root / "params.yaml")
    params["flows"]["serve"]["shadow"] = 0
    write_json(history.root / "params.yaml", params)
    assert follow_challenger(history.root, "films") is None
    assert in_shadow(history) is None


def test_what_params_ask_for_is_followed_when_the_server_starts(history: History) -> None:
    promote(history.root, history.version(1), why="the first")
    history.decide(2, "keep")
    settings(history.root, port=0)
    with mill_serve(history.root):
        entry = in_shadow(history)
    assert entry is not None
    assert entry["version"] == history.releases[1]
    settings(history.root, shadow=0)
    with mill_serve(history.root):
        assert in_shadow(history) is None


def test_files_that_cannot_be_had_are_said_and_stop_nothing(history: History) -> None:
    history.decide(2, "keep")
    shutil.rmtree(history.root / ".dvc/cache")
    said = follow_challenger(history.root, "films")
    assert said is not None
    assert said.startswith("The shadow of films stays as it was.")
    assert in_shadow(history) is None
