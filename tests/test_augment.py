"""Rows that chance changes before they are learned from: the same ones for a seed, an epoch and a place."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from tasks import augment
from tasks.augment import draw
from tasks.errors import ParamsError
from tasks.params import Augment
from tasks.problems import load
from tasks.shards import read_json
from tasks.tokens import load_tokens
from tasks.training import Journal
from tests.conftest import Line
from tests.test_problems import tokenizer
from tests.test_train import hashes, run

HALF = Augment(dropout=0.5, swap=0.5)


def orders(params: Augment = HALF, num_rows: int = 50, length: int = 40, **changes: object) -> list[list[int]]:
    """What becomes of rows whose first and last token stay."""
    movable = pl.Series([[False, *[True] * (length - 2), False]] * num_rows, dtype=pl.List(pl.Boolean))
    asked = {"places": range(num_rows), "params": params, "seed": 1, "epoch": 0, **changes}
    return draw(movable, **asked).to_list()


def test_what_becomes_of_a_row_hangs_on_seed_epoch_and_place_alone() -> None:
    first = orders()
    assert orders() == first
    assert len({tuple(order) for order in first}) == len(first)
    assert all(a != b for a, b in zip(first, orders(epoch=1), strict=True))
    assert all(a != b for a, b in zip(first, orders(seed=2), strict=True))
    np.random.seed(7)  # nobody else's numbers matter
    assert orders(num_rows=2, places=[30, 7]) == [first[30], first[7]]


def test_what_may_not_be_touched_stays_where_it_stands() -> None:
    for order in orders():
        assert (order[0], order[-1]) == (0, 39)
        assert len(set(order)) == len(order)
    untouchable = pl.Series([[False] * 10], dtype=pl.List(pl.Boolean))
    assert draw(untouchable, places=[0], params=HALF, seed=1, epoch=0).to_list() == [list(range(10))]


def test_as_many_tokens_go_as_was_asked() -> None:
    left = sum(len(order) for order in orders(Augment(dropout=0.2, swap=0.0), num_rows=1000))
    assert 1 - (left - 2000) / 38_000 == pytest.approx(0.2, abs=0.01)
    assert all(order == sorted(order) for order in orders(Augment(dropout=0.2, swap=0.0)))


def test_tokens_change_places_with_their_neighbours_and_no_others() -> None:
    for order in orders(Augment(dropout=0.0, swap=0.5)):
        assert sorted(order) == list(range(40))
        assert max(abs(place - token) for place, token in enumerate(order)) == 1


def test_a_row_never_loses_all_of_its_tokens() -> None:
    most = Augment(dropout=0.999, swap=0.0)
    assert all(len(order) > 2 for order in orders(most, num_rows=500, length=4))


def test_nothing_is_changed_where_the_shares_are_0(tiny: Line, tmp_path: Path) -> None:
    assert orders(Augment(dropout=0.0, swap=0.0)) == [list(range(40))] * 50
    whole = run(tiny.paths.tokens, tmp_path / "whole", epochs=1)
    same = run(tiny.paths.tokens, tmp_path / "same", epochs=1, augment=Augment(dropout=0.0, swap=0.0))
    assert hashes(same) == hashes(whole)


@pytest.mark.parametrize(
    "shares",
    [{"dropout": 1.0, "swap": 0.0}, {"dropout": -0.1, "swap": 0.0}, {"dropout": 0.1, "swap": 1.1}, {"dropout": 0.1}],
)
def test_shares_that_cannot_be_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=r"dropout|swap"):
        Augment.model_validate(shares)


def test_the_words_of_a_passage_stay_so_that_spans_are_right() -> None:
    problem = load("question_answering")
    encoded = problem.encode(problem.examples(), tokenizer(problem), problem.signature(problem.examples()), 32)
    marks = [tokenizer(problem).token_to_id(name) for name in ("[CLS]", "[SEP]")]
    change = augment.augmenting(problem, HALF, marks, 1, encoded)
    changed = change(encoded, range(len(encoded)), 3)
    assert (changed["input_ids"].list.len() < encoded["input_ids"].list.len()).any()
    for before, after in zip(encoded.iter_rows(named=True), changed.iter_rows(named=True), strict=True):
        answers = [row["input_ids"][row["start"] : row["end"] + 1] for row in (before, after)]
        assert answers[0] == answers[1]
        passages = [
            [token for token, mine in zip(row["input_ids"], row["context_mask"], strict=True) if mine]
            for row in (before, after)
        ]
        assert passages[0] == passages[1]


def test_a_problem_whose_rows_have_to_stay_says_so_before_anything_is_trained() -> None:
    problem = load("text_generation")
    with pytest.raises(ParamsError, match=r"train\.augment has no meaning for text_generation"):
        augment.augmenting(problem, HALF, [], 1, pl.DataFrame({"id": ["a"], "input_ids": [[1, 2]]}))


def test_only_the_rows_that_are_learned_from_change_and_they_do_each_epoch(tiny: Line, tmp_path: Path) -> None:
    changes = {"epochs": 2, "early_stopping": None}
    plain = read_json(run(tiny.paths.tokens, tmp_path / "plain", **changes) / "train.json")
    report = read_json(run(tiny.paths.tokens, tmp_path / "other", **changes, augment=HALF) / "train.json")
    assert report["rows_seen_sha256"] == plain["rows_seen_sha256"]
    assert 0.4 < report["tokens"] / plain["tokens"] < 0.7
    lengths = load_tokens(tiny.paths.tokens, "train")["input_ids"].list.len()
    assert plain["tokens"] == 2 * lengths.sum()


@pytest.mark.parametrize(
    "killed_at", [pytest.param(3, marks=pytest.mark.long), 20, pytest.param(30, marks=pytest.mark.long)]
)
def test_a_training_that_was_killed_goes_on_with_the_rows_that_it_would_have_seen(
    tiny: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    changes = {"augment": Augment(dropout=0.2, swap=0.2), "early_stopping": None}
    whole = run(tiny.paths.tokens, tmp_path / "whole", **changes)
    steps = read_json(whole / "train.json")["evaluations"][0]["step"]
    assert steps < 20 < 30 < 3 * steps
    ended = Journal.on_step_end

    def killed(self, args, state, control, **others) -> None:
        if state.global_step == killed_at:
            raise KeyboardInterrupt
        ended(self, args, state, control, **others)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Journal, "on_step_end", killed)
        run(tiny.paths.tokens, tmp_path / "killed", **changes)
    assert hashes(run(tiny.paths.tokens, tmp_path / "killed", **changes)) == hashes(whole)
