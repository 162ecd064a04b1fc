"""What is learned, one file per kind. This is the contract; a new file in this folder is a new kind of problem.

The stages know no problem by name. They ask `load(name)` for one, hand it rows and arrays, and write what it gives
back. Arrays are named by shape: B rows of a batch, T tokens, N rows of a split, K classes, R resamples, D width.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.params import Scratch

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import nn
    from transformers import PreTrainedModel

Arrays = Mapping[str, NDArray[Any]]

# Takes, a list of bools a row, which tokens chance may touch; gives the places that those left had, in their new order.
Draw = Callable[[pl.Series], pl.Series]

# What a trained model's numbers mean: the labels in the order of its outputs, for instance. JSON, kept with the model.
Signature = Mapping[str, Any]


# A row-level expectation in Great Expectations' words: its name, and its arguments.
Expectation = Mapping[str, Mapping[str, Any]]


class Problem(Protocol):
    """One kind of problem, from the columns that it needs to the figures that judge it.

    A problem's class inherits from this one: what most kinds have in common is written here, and stays unsaid there.
    """

    name: str
    columns: Mapping[str, pl.DataType]
    """What a row must have besides `id`. More columns may come along: groups, times, slices."""
    expects: Sequence[Expectation] = ()
    """What every row has to keep besides having all `columns`; see `expectations`."""
    texts: Sequence[str]
    """The columns that clean normalises, redacts, measures and compares. A row without one of them is no row."""
    target_texts: Sequence[str] = ()
    """Targets that are texts: normalised and redacted along with `texts`, and then realigned with them."""
    label: str | None
    """The column that validate counts quarantine by, and whose contradictions clean drops. None where there is none."""
    separator: str | None = None
    """What stands between the labels in that column where a row has any number of them; None where it has just one."""
    inputs: Sequence[str]
    """The columns that a request has."""
    signs: Sequence[str]
    """The columns that `signature` reads."""
    reasons: Sequence[str] = ()
    """Why `realign` lets a row go: names that begin like no other reason of clean."""
    higher_is_better: Mapping[str, bool]
    """Every metric, and its direction. A metric of one label, such as `f1[positive]`, stands here as `f1`."""
    headline: str
    """The metric that a summary shows."""

    @property
    def expectations(self) -> list[Expectation]:
        """What every row has to keep, whatever params say; validate puts the others into quarantine."""
        return [{"expect_column_values_to_not_be_null": {"column": name}} for name in self.columns] + [*self.expects]

    def realign(self, raw: pl.DataFrame, tidied: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
        """The tidied rows with targets that point into a text where it stands now, and why a row goes: null, or one of
        `reasons`. `raw` are the same rows before their texts were tidied.
        """
        return tidied, pl.repeat(None, len(tidied), dtype=pl.String, eager=True)

    def signature(self, train: pl.DataFrame) -> Signature:
        """Read off the train split what the outputs will mean. Raises DataError where nothing can be learned."""
        ...

    def encode(
        self, rows: pl.DataFrame, tokenizer: "Tokenizer", signature: Signature | None, max_tokens: int
    ) -> pl.DataFrame:
        """Turn rows into model inputs: `id`, `input_ids` (a list of int32), what else the model reads, and `truncated`.

        A row may become several, one after the other, with its `id` each. With a signature the columns of `targets`
        come along; without one (a request) they do not.
        """
        ...

    targets: Sequence[str]
    """The columns of encoded rows that say what the model should have given."""

    def learned(self, encoded: pl.DataFrame, seed: int) -> pl.DataFrame:
        """Those of the train split's encoded rows that are worth learning from, in their order."""
        return encoded

    def packed(self, encoded: pl.DataFrame, max_tokens: int, seed: int) -> pl.DataFrame:
        """What is learned from, rearranged so that no place of a batch is padding; or as it is."""
        return encoded

    def augment(self, encoded: pl.DataFrame, specials: Sequence[int], draw: Draw) -> pl.DataFrame:
        """Some rows of `packed` as `draw` changes them, and their targets with them. `specials` stand for no text.

        Raises ParamsError where rows like these are worth learning from only as they are.
        """
        ...

    def batch(self, encoded: pl.DataFrame, pad_id: int) -> dict[str, NDArray[Any]]:
        """Pad encoded rows into arrays of the model's own argument names, `labels` included where there are any.

        All are whole numbers but labels that a loss takes as shares.
        """
        ...

    def build(
        self, base: str | Scratch, vocabulary: int, signature: Signature, *, dropout: float, attention: str
    ) -> "PreTrainedModel":
        """The model, from pretrained weights, a checkpoint's folder, or from scratch with `vocabulary` tokens."""
        ...

    def exportable(self, model: "PreTrainedModel") -> "nn.Module":
        """A module from the arrays of `traced` to those of `outputs`, of `decoding` and of the cache, in that order.

        Arrays whose names have a point in them are of the cache and come as one list, named by what stands before it.
        """
        ...

    outputs: Sequence[str]
    """What the exported model gives for a batch, `pooled_embedding` (BD) among it."""
    decoding: Sequence[str] = ()
    """What it gives besides to those that write text token by token: `logits`, and the cache; see `tasks.writing`."""
    writes: str | None = None
    """The column of the answer that is written token by token. None where nothing is."""
    reads_whole: bool = False
    """Whether the answer to a part of a text is none: what is longer than the model then gets a reason instead."""

    def traced(self, model: "PreTrainedModel", batch: Arrays) -> Arrays:
        """The arrays with which the exported module is traced: a batch, and where it writes an empty cache."""
        return batch

    def gather(self, outputs: Arrays, encoded: pl.DataFrame) -> Arrays:
        """From the outputs for encoded rows those for the rows themselves, N of them, in their order."""
        return outputs

    def compare(self, reference: Arrays, outputs: Arrays) -> tuple[float, float]:
        """How far an exported model stands from its checkpoint on the same encoded rows.

        The largest difference in any probability, and the share of rows whose answer changes.
        """
        ...

    def perplexity(self, outputs: Arrays, encoded: pl.DataFrame) -> float | None:
        """How many tokens the model wavers between at each of the encoded rows; None where it predicts no tokens."""
        return None

    def calibrate(self, outputs: Arrays, encoded: pl.DataFrame, signature: Signature) -> dict[str, float]:
        """Fit on the encoded validation split what makes the probabilities honest: a temperature."""
        return {}

    def answer(
        self, rows: pl.DataFrame, outputs: Arrays, signature: Signature, calibration: Mapping[str, float]
    ) -> pl.DataFrame:
        """One row per input: what a caller gets back, from gathered outputs. N rows in, N rows out, in their order."""
        ...

    def answer_schema(self, signature: Signature) -> pl.Schema:
        """The columns of `answer`. A `probability` among them is how sure the model is of its answer."""
        ...

    def against_train(self, answers: pl.DataFrame, train: pl.DataFrame) -> pl.DataFrame:
        """The answers with what only a look at the train split tells of them, as further columns; or as they are.

        Of answers that were not held against it, `score` and `measure` leave out what asks for it.
        """
        return answers

    def watched(self, answers: pl.DataFrame) -> pl.DataFrame:
        """What of each answer the monitor compares: numbers and kinds, but no text. What is left out is not compared.

        Answers from the journal have `sampling` besides where something is written: how it was drawn, or null.
        """
        return answers

    def asked(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Held-out rows as callers would ask them, for the monitor to hold traffic against."""
        return rows

    def agree(self, answers: pl.DataFrame, others: pl.DataFrame) -> pl.Series:
        """Per row, whether both answer the same; where `others` are rows with their targets, whether that is right.

        False where either says nothing, null. Null on every row where a row's targets, or their absence, cannot say
        whether an answer is right: one of several right translations, a text that may go on in many ways.
        """
        ...

    def score(self, rows: pl.DataFrame, answers: pl.DataFrame, signature: Signature) -> pl.DataFrame:
        """Per row and in order: `id`, and a number or bool for every way in which the answer can be judged alone."""
        ...

    def measure(
        self,
        rows: pl.DataFrame,
        answers: pl.DataFrame,
        signature: Signature,
        weights_RN: NDArray[np.float64],
        bins: int,
    ) -> dict[str, NDArray[np.float64]]:
        """Every metric of `higher_is_better` under R weightings of the N rows: arrays of length R.

        A row of ones gives the metric itself, multinomial counts a bootstrap resample. A metric that a weighting leaves
        undefined (one class absent) is NaN there.
        """
        ...

    def baselines(
        self, train: pl.DataFrame, test: pl.DataFrame, signature: Signature, seed: int
    ) -> dict[str, pl.DataFrame]:
        """Answers to the test rows by simple means that learned from the same train rows, by the baseline's name."""
        ...

    def curves(
        self, rows: pl.DataFrame, answers: pl.DataFrame, signature: Signature, bins: int
    ) -> dict[str, list[dict[str, Any]]]:
        """Points to plot, by the plot's name: a list of records each, as DVC plots read them."""
        return {}

    def descriptors(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Numbers that describe the inputs, for the monitor: one row each, `id` first."""
        ...

    def examples(self) -> pl.DataFrame:
        """A handful of rows, enough to learn from in a test: `id`, `columns`."""
        ...


def load(name: str) -> Problem:
    """The problem of that file's name; params has checked that there is one."""
    problem: Problem = importlib.import_module(f"tasks.problems.{name}").PROBLEM
    return problem


def label_lists(labels: pl.Series, problem: Problem) -> pl.Series:
    """The labels of each row as a list: just one, or any number of them where the problem has a separator."""
    if problem.separator is None:
        return pl.select(pl.concat_list(labels)).to_series()
    none = pl.lit([], dtype=pl.List(pl.String))
    return pl.select(pl.when(labels == "").then(none).otherwise(labels.str.split(problem.separator))).to_series()
