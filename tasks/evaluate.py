"""Stage evaluate: the exported candidate on rows that it has not seen, beside simple baselines.

The report, the scores and the plots are functions of the candidate and the rows. What a clock says goes to `measured`.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tasks.errors import DataError
from tasks.judgement import Answers, judge, score_rows, slice_columns
from tasks.pages import Line, render
from tasks.params import Evaluate
from tasks.problems import Problem
from tasks.progress import progress
from tasks.runtime import Runtime, load_runtime
from tasks.shards import ShardWriter, atomic_folder, read_json, read_rows, write_json, write_text

_ROWS_PER_SHARD = 1_000_000
_BATCH = 64

# Latency is that of this many rows, and of fewer where the model is so slow that they would take longer.
_LATENCY_ROWS, _LATENCY_SECONDS = 300, 3.0

_MISTAKES_SHOWN = 12
_ERRORS_SHOWN = 12

Points = Sequence[Mapping[str, Any]]

# The plots of dvc.yaml, which DVC wants to find, whether the problem has them or not.
_NO_POINTS: Mapping[str, Points] = {"confusion": [], "precision_recall": [], "reliability": []}


def evaluate(
    candidate: Path,
    clean: Path,
    scores: Path,
    report: Path,
    metrics: Path,
    plots: Path,
    page: Path,
    measured: Path,
    *,
    params: Evaluate,
    threads: int,
    problem: Problem,
) -> None:
    """Write the report, the per-row scores of the test split, the plots, the page, and what the clock said.

    `metrics` holds the values alone, without intervals and slices: what DVC compares from one run to the next.

    Raises DataError where there is no test row, a slice names no column, or the candidate is not whole.
    """
    rows = read_rows(clean)
    train, test = (rows.filter(pl.col("split") == split) for split in ("train", "test"))
    if test.is_empty():
        raise DataError(f"{clean}: no row is in the test split. Raise clean.split.test, or collect more rows.")
    slices = slice_columns(test, params.slices, problem.texts)

    started = time.perf_counter()
    runtime = load_runtime(candidate, threads)
    loaded = time.perf_counter()
    with progress("evaluate", len(test), "rows") as advance:
        outputs = runtime.outputs(test, _BATCH, advance)
    answered = time.perf_counter()

    signature = runtime.signature
    uncalibrated = problem.against_train(problem.answer(test, outputs, signature, {}), train)
    calibrated = problem.answer(test, outputs, signature, runtime.calibration)
    simple = problem.baselines(train, test, signature, params.seed)
    answers = Answers(
        model=problem.against_train(calibrated, train) if runtime.calibration else uncalibrated,
        uncalibrated=uncalibrated,
        baselines={name: problem.against_train(given, train) for name, given in simple.items()},
    )
    with progress("intervals", 1 + params.resamples, "resamples") as advance:
        result = judge(test, slices, answers, signature, problem, params, advance)
    result["calibration"] = dict(runtime.calibration)
    # They count all the same: without them, a vocabulary that reads less would seem the better one.
    result["no_answer"] = int(runtime.no_answer_reasons(test).is_not_null().sum())
    result["rows"] = dict(rows["split"].value_counts().sort("split").iter_rows())
    scored = score_rows(test, slices, answers, signature, problem)
    curves = problem.curves(test, answers.model, signature, params.calibration_bins)
    serving = {
        "bytes": sum(file.stat().st_size for file in candidate.rglob("*") if file.is_file()),
        "load_seconds": round(loaded - started, 3),
        "rows_per_second": round(len(test) / (answered - loaded), 1),
        "batch_size": _BATCH,
        "latency_ms": _latency(runtime, test),
        "threads": threads,
    }

    with atomic_folder(scores) as folder:
        writer = ShardWriter(folder, _ROWS_PER_SHARD, scored.schema)
        writer.write(scored)
        writer.finish()
    for name, points in {**_NO_POINTS, **curves}.items():
        write_json(plots / f"{name}.json", points)
    write_json(measured, serving)
    write_text(
        page,
        render(
            "evaluate.html",
            model=page.parent.name,
            result=result,
            params=params,
            serving=serving,
            **tables(result, problem),
            **charts(
                curves,
                problem.curves(test, answers.uncalibrated, signature, params.calibration_bins),
                read_json(plots / "loss.json") if (plots / "loss.json").exists() else [],
            ),
            mistakes=mistakes(test, scored, problem),
        ),
    )
    write_json(metrics, {name: found["value"] for name, found in result["metrics"].items() if "[" not in name})
    write_json(report, result)


def _latency(runtime: Runtime, test: pl.DataFrame) -> dict[str, float | int]:
    """Milliseconds from one row to its answer, over rows from all parts of the test split."""
    places = np.unique(np.linspace(0, len(test) - 1, _LATENCY_ROWS).round().astype(np.int64))
    taken: list[float] = []
    begun = time.perf_counter()
    for place in np.random.default_rng(0).permutation(places):
        row = test[int(place)]
        started = time.perf_counter()
        runtime.predict(row)
        taken.append(1000 * (time.perf_counter() - started))
        if time.perf_counter() - begun > _LATENCY_SECONDS:
            break
    p50, p99 = np.percentile(taken, [50, 99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "rows": len(taken)}


def tables(result: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    """The report's metrics as the page shows them.

    `better_high` and `better_low` are whole metrics by name, in the problem's order; one that says the same as the
    headline is named in `same_as_headline` only. `by_label` has a row for each label, a column for each metric of it.
    """
    metrics = result["metrics"]
    order = {name: place for place, name in enumerate(problem.higher_is_better)}
    whole = {name: metrics[name] for name in sorted(metrics.keys() & order.keys(), key=lambda name: order[name])}
    same = [name for name in whole if name != problem.headline and whole[name] == whole[problem.headline]]
    by_label: dict[str, dict[str, Any]] = {}
    for name, found in metrics.items():
        if part := re.fullmatch(r"(\w+)\[(.*)\]", name, re.DOTALL):
            by_label.setdefault(part[2], {})[part[1]] = found
    shown = {name: found for name, found in whole.items() if name not in same}
    return {
        "better_high": {name: found for name, found in shown.items() if problem.higher_is_better[name]},
        "better_low": {name: found for name, found in shown.items() if not problem.higher_is_better[name]},
        "same_as_headline": same,
        "by_label": by_label,
    }


def charts(curves: Mapping[str, Points], uncalibrated: Mapping[str, Points], loss: Points) -> dict[str, Any]:
    """The plots as lines of the page's charts, and the confusion matrix as rows of cells with their shares."""

    def line(name: str, points: Points, x: str, y: str, sizes: Sequence[float] = ()) -> Line:
        return Line(name, [(point[x], point[y]) for point in points], sizes)

    bins = {"calibrated": curves.get("reliability", []), "before calibration": uncalibrated.get("reliability", [])}
    reliability = [
        line(name, points, "confidence", "accuracy", [point["rows"] for point in points])
        for name, points in bins.items()
    ]
    lowest = [number for one in reliability for point in one.points for number in point]
    losses = {split: [point for point in loss if point["split"] == split] for split in ("train", "validation")}
    return {
        "confusion": _matrix(curves.get("confusion", [])),
        "confused": _commonest_errors(curves.get("confusion", [])),
        "reliability": reliability if reliability[0].points else [],
        "reliability_ends": (math.floor(10 * min(lowest, default=0.0)) / 10, 1.0),
        "precision_recall": [line("model", curves["precision_recall"], "recall", "precision")]
        if curves.get("precision_recall")
        else [],
        "loss": [
            line("train", losses["train"], "step", "loss"),
            line("validation", losses["validation"], "step", "loss", [1] * len(losses["validation"])),
        ]
        if loss
        else [],
    }


def _matrix(cells: Points) -> list[dict[str, Any]]:
    labels = list(dict.fromkeys(cell["actual"] for cell in cells))
    rows = {(cell["actual"], cell["predicted"]): cell["rows"] for cell in cells}
    totals = {label: sum(rows.get((label, other), 0) for other in labels) for label in labels}
    return [
        {
            "label": actual,
            "cells": [
                {
                    "label": predicted,
                    "rows": rows.get((actual, predicted), 0),
                    "share": rows.get((actual, predicted), 0) / max(totals[actual], 1),
                }
                for predicted in labels
            ],
        }
        for actual in labels
    ]


def _commonest_errors(cells: Points) -> list[Mapping[str, Any]]:
    wrong = [cell for cell in cells if cell["actual"] != cell["predicted"] and cell["rows"]]
    return sorted(wrong, key=lambda cell: (-cell["rows"], cell["actual"], cell["predicted"]))[:_ERRORS_SHOWN]


def mistakes(test: pl.DataFrame, scored: pl.DataFrame, problem: Problem) -> list[dict[str, Any]]:
    """The wrong answers that were surest of themselves, with the inputs that are text; [] where none can be wrong."""
    if not {"correct", f"answer_{problem.label}", "answer_probability"} <= set(scored.columns) or problem.label is None:
        return []
    texts = [name for name in problem.inputs if test.schema[name] == pl.String]
    wrong = (
        pl.concat([test.select(problem.label, *texts), scored.select("id", "correct", "^answer_.*$")], how="horizontal")
        .filter(~pl.col("correct"))
        .sort(["answer_probability", "id"], descending=[True, False])
        .head(_MISTAKES_SHOWN)
    )
    return [
        {
            "id": row["id"],
            "texts": [row[name] for name in texts],
            "actual": row[problem.label],
            "answered": row[f"answer_{problem.label}"],
            "probability": row["answer_probability"],
        }
        for row in wrong.iter_rows(named=True)
    ]
