"""Which words drove an answer: what becomes of the answer's probability where a word is left out.

Erasure by word (Li, Monroe and Jurafsky 2016, "Understanding Neural Networks through Representation Erasure"): it asks
the very model that answered, and needs nothing of its inside. Words that only matter together each get little.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from tasks.answers import Answerer
from tasks.errors import DataError
from tasks.problems import Problem

# So many variants of a text are asked at most; of a longer one, runs of neighbouring words are left out together.
_MOST_PARTS = 64

_BATCH_ROWS = 32


@dataclass(frozen=True)
class Part:
    """A run of words with the white space behind it. `effect` is the probability that the answer loses without it."""

    text: str
    effect: float


NOT_EXPLAINED = "Which words drove an answer is computed where a text gets just one of several labels, and not here."


def can_explain(problem: Problem) -> bool:
    """Whether erasure says something here: the input is one text, and the answer one of several labels."""
    is_one_text = len(problem.inputs) == 1 and tuple(problem.texts) == tuple(problem.inputs)
    return is_one_text and problem.label is not None and problem.separator is None


def word_effects(answerer: Answerer, inputs: Mapping[str, Any]) -> list[Part]:
    """The parts of a tidied input in their order, each with its effect on the label that the whole text gets.

    Empty where the text is a single word, which leaves nothing to compare with. Raises DataError where erasure says
    nothing; see `can_explain`.
    """
    runtime = answerer.runtime
    if not can_explain(runtime.problem):
        raise DataError(NOT_EXPLAINED)
    (column,) = runtime.problem.inputs
    parts = _parts(str(inputs[column]))
    if len(parts) < 2:
        return []
    without = ["".join(parts[:number] + parts[number + 1 :]).strip() for number in range(len(parts))]
    texts = pl.Series(column, ["".join(parts), *without], dtype=pl.String)
    rows = pl.DataFrame({"id": [str(number) for number in range(len(texts))], column: texts})
    probabilities_NK = runtime.answer(rows, _BATCH_ROWS)["probabilities"].to_numpy()
    given = probabilities_NK[0].argmax()
    effects = probabilities_NK[0, given] - probabilities_NK[1:, given]
    return [Part(text, float(effect)) for text, effect in zip(parts, effects, strict=True)]


def _parts(text: str) -> list[str]:
    """A text cut before words, into at most so many parts of like length."""
    words = re.findall(r"\s*\S+\s*", text)
    size = -(-len(words) // _MOST_PARTS) or 1
    return ["".join(words[start : start + size]) for start in range(0, len(words), size)]
