"""Answers for people: every row gets one, or the reason why it has none."""

from dataclasses import dataclass

import polars as pl

from tasks.release import Release
from tasks.runtime import Runtime, load_runtime


@dataclass(frozen=True)
class Answerer:
    """A release that is loaded, and what its answers look like."""

    runtime: Runtime
    version: str
    columns: pl.Schema
    """The answer's own columns; `reason` and `version` come behind them."""

    def answer(self, rows: pl.DataFrame, batch_size: int) -> pl.DataFrame:
        """For each row of the problem's inputs, in order: the answer, or nulls and a `reason`; and the `version`."""
        return self.traced(rows, batch_size).drop("inputs", "embedding")

    def traced(self, rows: pl.DataFrame, batch_size: int) -> pl.DataFrame:
        """The same, with what the journal keeps besides: the tidied `inputs`, and the pooled `embedding`."""
        inputs = self.runtime.problem.inputs
        missing = [pl.when(pl.col(name).is_null()).then(pl.lit(f"{name} is missing")) for name in inputs]
        blank = [
            pl.when(pl.col(name).str.strip_chars() == "").then(pl.lit(f"{name} is empty"))
            for name in inputs
            if rows.schema[name] == pl.String()
        ]
        # Tidied first: a text of markup alone is empty as well.
        numbered = (
            self.runtime.tidied(rows.select(inputs))
            .with_row_index("number")
            .with_columns(
                id=pl.col("number").cast(pl.String),
                reason=pl.coalesce([*missing, *blank, pl.lit(None, dtype=pl.String)]),
            )
        )
        asked = numbered.filter(pl.col("reason").is_null())
        return (
            numbered.select("number", "reason", inputs=pl.struct(inputs))
            .join(self._computed(asked, batch_size), on="number", how="left", maintain_order="left")
            .select(*self.columns, "reason", "inputs", "embedding", version=pl.lit(self.version))
        )

    def _computed(self, asked: pl.DataFrame, batch_size: int) -> pl.DataFrame:
        if not len(asked):
            return pl.DataFrame(schema={"number": asked.schema["number"], **self.columns, "embedding": pl.Null()})
        outputs = self.runtime.outputs(asked, batch_size)
        answers = self.runtime.problem.answer(outputs, self.runtime.signature, self.runtime.calibration)
        embedding = pl.Series("embedding", outputs["pooled_embedding"].astype("float32"))
        return answers.with_columns(asked["number"], embedding)


def open_answerer(release: Release, threads: int | None = None) -> Answerer:
    """Load a release that was checked, with the threads that it was made with, or others."""
    runtime = load_runtime(release.folder, threads or release.manifest["parameters"]["threads"])
    example = runtime.problem.examples().head(1)
    return Answerer(runtime, release.version, runtime.predict(example).schema)
