"""Answers for people: every row gets one, or the reason why it has none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.release import Release
from tasks.runtime import Runtime, load_runtime, numbers

Embedding = NDArray[np.float16]


@dataclass(frozen=True)
class Traced:
    """What became of one row: its answer or the reason why it has none, and what the journal keeps besides."""

    answer: Mapping[str, Any]  # the problem's columns, all None where there is a reason; and how a text was drawn
    reason: str | None
    inputs: Mapping[str, Any]  # as the model read them: tidied, with pseudonyms for personal data
    embedding: Embedding | None


@dataclass(frozen=True)
class Answerer:
    """A release that is loaded, and what its answers look like."""

    runtime: Runtime
    version: str
    columns: pl.Schema
    """The answer's own columns; `reason` and `version` come behind them."""

    def answer(self, rows: pl.DataFrame, batch_size: int) -> pl.DataFrame:
        """For each row of the problem's inputs, in order: the answer, or nulls and a `reason`; and the `version`."""
        numbered = self.numbered(rows)
        asked = numbered.filter(pl.col("reason").is_null())
        answers = self._computed(asked, batch_size)[0].with_columns(asked["number"])
        return (
            numbered.select("number", "reason")
            .join(answers, on="number", how="left", maintain_order="left")
            .select(*self.columns, "reason", version=pl.lit(self.version))
        )

    def traced(self, rows: pl.DataFrame, batch_size: int) -> list[Traced]:
        """The same, a row each, with what the journal keeps."""
        numbered = self.numbered(rows)
        reasons = numbered["reason"].to_list()
        asked = numbered.filter(pl.col("reason").is_null()) if any(reasons) else numbered
        answers, embeddings = self._computed(asked, batch_size)
        computed = iter(zip(answers.to_dicts(), embeddings, strict=True))
        nothing = dict.fromkeys(self.columns), None
        traced = []
        for inputs, reason in zip(numbered[list(self.runtime.problem.inputs)].to_dicts(), reasons, strict=True):
            answer, embedding = nothing if reason else next(computed)
            traced.append(Traced(answer, reason, inputs, embedding))
        return traced

    def numbered(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows tidied, with number and id, and the reason where there can be no answer."""
        tidied = self.runtime.tidied(rows[list(self.runtime.problem.inputs)])
        reasons = self.runtime.no_answer_reasons(tidied).alias("reason")
        return tidied.with_row_index("number").hstack([numbers(len(tidied)), reasons])

    def _computed(self, asked: pl.DataFrame, batch_size: int) -> tuple[pl.DataFrame, Embedding]:
        if not len(asked):
            return pl.DataFrame(schema=self.columns), np.empty((0, 0), dtype=np.float16)
        outputs = self.runtime.outputs(asked, batch_size)
        answers = self.runtime.problem.answer(asked, outputs, self.runtime.signature, self.runtime.calibration)
        # Read for drift and not computed with: half of float32 keeps what drift sees.
        return answers, outputs["pooled_embedding"].astype(np.float16)


def open_answerer(release: Release, threads: int | None = None) -> Answerer:
    """Load a release that was checked, with the threads that it was made with, or others."""
    runtime = load_runtime(release.folder, threads or release.manifest["parameters"]["threads"])
    return Answerer(runtime, release.version, runtime.problem.answer_schema(runtime.signature))
