"""Golden rows: inputs with the outputs that the release gave when it was made, to be computed again wherever it runs.

Each row is computed alone: dynamic quantisation takes its scale from the whole batch, so a row's outputs depend a
little on the rows beside it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from tasks.problems import Problem
from tasks.runtime import Runtime

# The largest difference that another processor's rounding explains, as a share of the output's largest value, or of 1
# where all are smaller. On the processor that made the release there is none.
TOLERANCE = 0.02

# Rounding far below any tolerance halves the file.
_DECIMALS = 6


def make_golden(rows: pl.DataFrame, runtime: Runtime, problem: Problem) -> dict[str, Any]:
    """The rows' inputs, what the model gives for each, and the answer that a caller gets."""
    outputs = runtime.outputs(rows, batch_size=1)
    answers = problem.answer(rows, outputs, runtime.signature, runtime.calibration)
    return {
        "tolerance": TOLERANCE,
        "rows": [
            {
                "id": row["id"],
                "inputs": {name: row[name] for name in problem.inputs},
                "outputs": {
                    name: np.round(values[number].astype(np.float64), _DECIMALS).tolist()
                    for name, values in outputs.items()
                    if values.dtype.kind != "O"  # a text is in the answer, and one rounding can turn all of it
                },
                "answer": answer,
            }
            for number, (row, answer) in enumerate(zip(rows.to_dicts(), answers.to_dicts(), strict=True))
        ],
    }


def differences(golden: Mapping[str, Any], runtime: Runtime, problem: Problem) -> list[str]:
    """Compute the golden rows again: a sentence for each output that lies outside of the tolerance."""
    # What was written then is read again, and not written anew: one rounding can turn all of a text.
    written = [problem.writes] if problem.writes else []
    schema = {"id": pl.String(), **{name: problem.columns[name] for name in problem.inputs}}
    rows = pl.DataFrame(
        [
            {"id": row["id"], **row["inputs"], **{name: row["answer"][name] for name in written}}
            for row in golden["rows"]
        ],
        schema={**schema, **dict.fromkeys(written, pl.String())},
    )
    outputs = runtime.read(rows, batch_size=1)
    return [
        f"Row {row['id']}: {name} is {off:.2%} away from what the release gave when it was made."
        for number, row in enumerate(golden["rows"])
        for name, expected in row["outputs"].items()
        if (off := _difference(outputs[name][number], np.asarray(expected))) > golden["tolerance"]
    ]


def _difference(got: Any, expected: Any) -> float:
    if got.shape != expected.shape:
        return float("inf")
    return float(np.max(np.abs(got - expected)) / max(1.0, np.max(np.abs(expected))))
