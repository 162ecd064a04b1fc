"""What the server's page says of a model's history: flows/live_page.py, on real tags."""

import pytest

from flows.git import git
from flows.live_page import _happened
from flows.promotion import promote_by_name, rollback
from flows.registry import promote
from flows.tags import find
from tests.registered import History

# DVC's own use of a library that it has not yet followed.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


def told(history: History) -> list[tuple[str, str, str]]:
    return [(one.name, one.word, one.sentence) for one in _happened(history.root, "films")]


def test_what_a_person_promotes_is_promoted_whatever_the_gate_had_said(history: History) -> None:
    history.decide(1, "promote")
    promote(history.root, history.version(1), why="schedule")
    history.decide(2, "keep")
    kept = told(history)
    assert [one[1] for one in kept] == ["promoted", "kept out"]
    promote_by_name(history.root, history.releases[1], why="needed", force=True)
    assert told(history) == [
        ("v1.0.0", "promoted", "promote, says the gate."),
        ("v1.1.0", "promoted", "forced: needed"),
    ]
    assert _happened(history.root, "films")[1].when == find(history.root, "films#champion#2")[0].when


def test_rollbacks_are_told_and_so_is_what_comes_back_after_them(history: History) -> None:
    promote(history.root, history.version(1), why="the first")
    history.decide(2, "ask")
    history.decide(2, "ask")
    promote_by_name(history.root, history.releases[1], why="looked at")
    rollback(history.root, "films", None, why="worse in use")
    promote_by_name(history.root, "films@v1.1.0", why="it was the network", force=True)
    found = told(history)
    asked = ("v1.1.0", "asks a person", "ask, says the gate.")
    assert found.count(asked) == 1  # of two, the one that nothing came of
    assert [one for one in found if one != asked] == [
        ("v1.0.0", "promoted", "the first"),
        ("v1.1.0", "promoted", "looked at"),
        ("v1.0.0", "back in use", "worse in use"),
        ("v1.1.0", "promoted", "it was the network"),
    ]


def test_another_stage_of_gto_promotes_nothing(history: History) -> None:
    version = history.version(1, why="by hand")
    git(history.root, "tag", "-a", "films#staging#1", version.commit, "-m", "to look at")
    assert told(history) == [("v1.0.0", "registered", "by hand")]
