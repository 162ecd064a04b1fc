"""Watch a version in use: a window of what it was asked and answered, against the release's held-out rows.

Nothing here knows where windows come from, or what follows from a verdict. A window has drifted where a figure of
tasks/drift.py is past its threshold of tasks/calibration.py, and is no smaller than the smallest effect that matters.
`watch` is a window that has drifted, `alarm` one that is the last of `persistence` drifted ones in a row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.calibration import Calibration, calibrated, size_looked_at
from tasks.confidence import estimated_accuracy
from tasks.descriptors import describe, families
from tasks.drift import Reference, Sample, evenly, in_words
from tasks.examples import driving_rows
from tasks.health import data_health, faults, latency
from tasks.labels import targets_of
from tasks.params import Evaluate
from tasks.release import REFERENCE, Release
from tasks.runtime import Runtime, load_runtime
from tasks.watching import Watching
from tasks.writing import SAMPLING

OK, WATCH, ALARM = "ok", "watch", "alarm"

NUM_EXAMPLES = 10
_MOST_KINDS_TOLD = 6


@dataclass(frozen=True)
class Subject:
    """A version that is watched: its release, and its held-out rows prepared for comparisons."""

    release: Release
    runtime: Runtime
    held_out: pl.DataFrame
    reference: Reference
    inputs: Mapping[str, pl.DataType]
    answer: Mapping[str, pl.DataType]

    @property
    def version(self) -> str:
        return self.release.version

    @property
    def targets(self) -> list[str]:
        """The columns that a label fills in; none where texts alone are learned from."""
        problem = self.runtime.problem
        return list(targets_of(problem.columns, problem.inputs))

    @property
    def evaluate(self) -> Evaluate:
        """How the release's own figures were made."""
        return Evaluate.model_validate(self.release.manifest["parameters"]["evaluate"])


def open_subject(release: Release) -> Subject:
    """Load what a version is compared with. Raises DataError where its release is not whole."""
    runtime = load_runtime(release.folder, release.manifest["parameters"]["threads"])
    held_out = pl.read_parquet(release.folder / REFERENCE)
    about = families(held_out, runtime.problem)
    return Subject(
        release,
        runtime,
        held_out,
        Reference(held_out, about),
        {name: runtime.problem.columns[name] for name in runtime.problem.inputs},
        {**runtime.problem.answer_schema(runtime.signature), **(SAMPLING if runtime.problem.writes else {})},
    )


@dataclass(frozen=True)
class Judged:
    """A window that was judged: what is kept of it, and the rows that the tests have looked at."""

    record: dict[str, Any]
    described: pl.DataFrame  # descriptors and answers of the rows looked at
    faults: pl.DataFrame  # of the same rows; tasks/health.py
    sample: Sample

    @property
    def drifted(self) -> bool:
        return bool(self.record["drifted"])


def judge_window(
    subject: Subject,
    rows: pl.DataFrame,
    embeddings: Callable[[Sequence[int]], NDArray[np.float32]],
    params: Watching,
    streak: int,
    cache: Path,
) -> Judged:
    """Judge one window of a version.

    `rows` has the columns that tasks/windows.py reads; `embeddings` reads those of some of them by their numbers.
    `streak` is how many windows before this one have drifted without a break. `cache` keeps calibrations.
    """
    looked_at, size = size_looked_at(len(rows), params.window, len(subject.held_out))
    places = evenly(len(rows), looked_at)
    chosen = rows[places]
    answers = subject.runtime.problem.watched(chosen.select(subject.answer.keys()))
    described = describe(chosen, subject.runtime).hstack(answers.get_columns())
    sample = subject.reference.sample_of(described, _embeddings_of(chosen, embeddings))
    calibration = calibrated(
        cache,
        f"{subject.version} {subject.release.manifest['files'][REFERENCE]['sha256']}",
        subject.reference,
        size,
        params.false_alarm_rate,
        params.resamples,
        params.seed,
    )
    tests = compared(subject, sample, calibration, params.smallest_effect)
    drifted = {test["name"]: test["figure"] for test in tests if test["drifted"]}
    streak = streak + 1 if drifted else 0
    repeated = ~chosen.select(pl.struct(subject.inputs.keys()).is_first_distinct()).to_series().to_numpy()
    examples = driving_rows(subject.reference, sample, drifted, repeated, NUM_EXAMPLES)
    all_described = described if looked_at == len(rows) else subject.runtime.problem.descriptors(rows)
    found = faults(rows, all_described, subject.inputs)
    record = {
        "version": subject.version,
        "rows": len(rows),
        "looked_at": looked_at,
        "first": _edge(rows, 0),
        "last": _edge(rows, -1),
        "drifted": bool(drifted),
        "streak": streak,
        "verdict": verdict(streak, params.persistence),
        "tests": tests,
        "examples": [{"id": chosen["id"][row["place"]], "why": row["why"]} for row in examples.iter_rows(named=True)],
        "estimate": estimate(subject, rows),
        "mean_confidence": _mean(rows, "probability") if "probability" in rows.columns else None,
        "health": data_health(found, all_described, subject.held_out) | {"truncated": _mean(described, "truncated")},
        "latency_ms": latency(rows),
    }
    return Judged(record, described, found[places], sample)


def verdict(streak: int, persistence: int) -> str:
    """What so many drifted windows in a row amount to."""
    return OK if streak == 0 else WATCH if streak < persistence else ALARM


def compared(
    subject: Subject, sample: Sample, calibration: Calibration, smallest_effect: float
) -> list[dict[str, Any]]:
    """Every test of a window: its figure, the threshold, how likely chance is, and what stands behind it.

    The largest excess over the threshold comes first. `threshold` is the larger of what chance allows and the
    smallest effect; `chance` is the first of these.
    """
    figures = subject.reference.figures(sample)
    p_values, chance = calibration.p_values(figures), calibration.thresholds
    tests = []
    for one in subject.reference.watched:
        if one.name not in figures:
            continue
        figure = float(figures[one.name])
        threshold = max(chance[one.name], smallest_effect)
        tests.append(
            {
                "name": one.name,
                "family": one.family,
                "kind": one.kind,
                "figure": figure,
                "size": in_words(figure),
                "chance": round(chance[one.name], 6),
                "threshold": round(threshold, 6),
                "p_value": round(p_values[one.name], 6),
                "drifted": calibration.has_drifted(one.name, figure) and figure >= smallest_effect,
                "window": _told(one.name, one.kind, sample, subject.reference),
                "reference": _told(one.name, one.kind, subject.reference.sample, subject.reference),
            }
        )
    return sorted(tests, key=lambda test: (not test["drifted"], -test["figure"] / max(test["threshold"], 1e-9)))


def estimate(subject: Subject, rows: pl.DataFrame) -> dict[str, Any] | None:
    """The accuracy of answers that nobody has labelled; None where answers have no probability or are not right."""
    measured = subject.release.manifest["metrics"].get("accuracy")
    if measured is None or "probability" not in rows.columns or "probability" not in subject.held_out.columns:
        return None
    params = subject.evaluate
    found = estimated_accuracy(
        rows["probability"].cast(pl.Float64).fill_null(np.nan).to_numpy(),
        subject.held_out["probability"].to_numpy(),
        measured,
        params.confidence,
        params.seed,
    )
    return None if found is None else {**found, "answers": len(rows), "at_release": dict(measured)}


def sentence(model: str, record: Mapping[str, Any], params: Watching) -> str:
    """The verdict on a window in words."""
    drifted = [test for test in record["tests"] if test["drifted"]]
    if not drifted:
        return (
            f"{model}: the last {record['rows']:,} predictions are like the rows that {record['version']} was held to."
        )
    told = ", ".join(f"{test['name']} {test['figure']:.2f} ({test['size']})" for test in drifted[:3])
    more = f" and {len(drifted) - 3} more" if len(drifted) > 3 else ""
    if record["verdict"] == ALARM:
        return (
            f"{model}: drift in {record['streak']} windows in a row, the last of {record['rows']:,} predictions: "
            f"{told}{more}."
        )
    return (
        f"{model}: the last {record['rows']:,} predictions have drifted: {told}{more}. It is an alarm where "
        f"{params.persistence} windows in a row have."
    )


def _embeddings_of(
    chosen: pl.DataFrame, embeddings: Callable[[Sequence[int]], NDArray[np.float32]]
) -> NDArray[np.float32] | None:
    """Those of the rows that have one; None where they are too few to compare."""
    having = chosen.filter(pl.col("has_embedding"))["seq"].to_list()
    found = embeddings(having) if len(having) > 1 else np.empty((0, 0), dtype=np.float32)
    return found if len(found) > 1 else None


def _told(name: str, kind: str, sample: Sample, reference: Reference) -> dict[str, float]:
    """What a column looks like: of numbers the middle and where four in five lie, of kinds the commonest shares."""
    if kind == "energy":
        return {}
    column = sample.columns[name]
    if kind == "number":
        finite = column[np.isfinite(column)]
        if not len(finite):
            return {"missing": 1.0}
        low, middle, high = np.quantile(finite, [0.1, 0.5, 0.9])
        told = {"middle": float(middle), "low": float(low), "high": float(high)}
        missing = 1 - len(finite) / len(column)
        return {key: round(value, 4) for key, value in (told | ({"missing": missing} if missing else {})).items()}
    kinds = [*reference.kinds[name], "(others)"]
    shares = {kind: float((column == place).mean()) for place, kind in enumerate(kinds[:-1])}
    shares["(others)"] = float((column == -1).mean())
    commonest = sorted(shares, key=lambda kind: (-shares[kind], kind))[:_MOST_KINDS_TOLD]
    return {kind: round(shares[kind], 4) for kind in commonest if shares[kind]}


def _edge(rows: pl.DataFrame, place: int) -> dict[str, Any]:
    row = rows.row(place, named=True)
    return {"seq": row["seq"], "id": row["id"], "at_us": row["at_us"]}


def _mean(rows: pl.DataFrame, name: str) -> float:
    return round(float(rows[name].cast(pl.Float64).sum()) / max(len(rows), 1), 6) if name in rows.columns else 0.0
