"""Which words drove an answer, on a model whose answers are known."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest

from tasks import problems
from tasks.answers import Answerer, open_answerer
from tasks.attribution import can_explain, word_effects
from tasks.problems import _classification
from tasks.release import read_release
from tests.conftest import Line


@dataclass(frozen=True)
class Counting:
    """Answers by counting good words and bad ones, so that what each is worth is known."""

    problem = problems.load("text_classification")

    def answer(self, rows: pl.DataFrame, batch_size: int) -> pl.DataFrame:
        good_N = rows["text"].str.count_matches("good").to_numpy().astype(float)
        bad_N = rows["text"].str.count_matches("bad").to_numpy().astype(float)
        return _classification.answers(
            _classification.softmax(np.stack([bad_N, good_N], axis=1)), ["negative", "positive"]
        )


def effects(text: str) -> dict[str, float]:
    answerer = Answerer(Counting(), "v", pl.Schema({}))  # type: ignore[arg-type]
    return {part.text.strip(): part.effect for part in word_effects(answerer, {"text": text})}


def test_a_word_for_the_answer_counts_for_it_one_against_it_against_and_others_not_at_all():
    found = effects("a good, good2 film and not bad")
    assert found["good,"] == pytest.approx(found["good2"])
    assert found["good,"] > 0.1
    assert found["bad"] < -0.1
    assert found["film"] == found["a"] == 0


def test_the_parts_make_up_the_text_again_however_long_it_is():
    text = "  one  two\nthree " + "word " * 500 + "end"
    answerer = Answerer(Counting(), "v", pl.Schema({}))  # type: ignore[arg-type]
    parts = word_effects(answerer, {"text": text})
    assert "".join(part.text for part in parts) == text
    assert len(parts) <= 64


def test_a_single_word_is_not_explained_by_itself():
    assert effects("good") == {}


def test_a_release_explains_the_label_that_it_gives(released: Line):
    answerer = open_answerer(read_release(released.paths.release))
    assert can_explain(answerer.runtime.problem)
    rows = pl.DataFrame({"id": ["0"], "text": ["a thoughtful and moving film that is never dull"]})
    parts = word_effects(answerer, rows.row(0, named=True))
    whole = answerer.runtime.answer(rows)
    without = answerer.runtime.answer(rows.with_columns(text=pl.lit("a thoughtful and film that is never dull")))
    label = whole["probabilities"].to_numpy()[0].argmax()
    lost = whole["probabilities"].to_numpy()[0, label] - without["probabilities"].to_numpy()[0, label]
    moving = next(part for part in parts if part.text.strip() == "moving")
    assert moving.effect == pytest.approx(lost, abs=0.02)  # int8 draws its scales from the whole batch
