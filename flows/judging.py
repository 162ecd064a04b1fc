"""What the gate does with a case, step by step: limits, the server, the rows that decide, the verdict.

What can be said without the test rows comes first, so that what fails there has looked at none of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from flows.boot import Booted, boot
from tasks.comparison import Compared, Comparison, Incomparable, Setting, Side, comparison_of, direction
from tasks.gate import Contender, Gate, decide, falls, improved_by, over_limits
from tasks.gate_report import comparison_report, examples, fresh_is_needed, sentence, shown, test_set_report
from tasks.judgement import slice_columns
from tasks.latency import latencies
from tasks.params import Model
from tasks.paths import Paths
from tasks.progress import progress
from tasks.release import Release
from tasks.runtime import FILES, Runtime
from tasks.shards import read_rows
from tasks.spending import Mask, among, choose, joined, marks_of

PROMOTE, KEEP, ASK = "promote", "keep", "ask"

_BATCH = 64


@dataclass(frozen=True)
class Contestant:
    """A release, and the marks of the rows that it has trained on."""

    release: Release
    runtime: Runtime
    trained: frozenset[str]

    @property
    def megabytes(self) -> float:
        """What is loaded to serve it; the rest of a release is read by other things."""
        files = self.release.manifest["files"]
        return float(sum(files[name]["bytes"] for name in FILES) / 1e6)


@dataclass(frozen=True)
class Case:
    """What is judged, and what was decided before."""

    paths: Paths
    params: Model
    rules: Gate
    test: pl.DataFrame
    challenger: Contestant
    champion: Contestant | None
    tag: str | None  # the champion's
    decisions: Sequence[Mapping[str, Any]]
    used: Mapping[str, frozenset[str]]  # the marks of each test set so far


@dataclass(frozen=True)
class Judged:
    """The verdict with its report, what a clock said, the rows that have decided by now, and rows that changed."""

    report: Mapping[str, Any]
    measured: Mapping[str, Any]
    used: Mapping[str, frozenset[str]]
    changed: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


def judge(case: Case, scratch: Path) -> Judged:
    """The verdict on the challenger. It is served once, from `scratch`."""
    sides = [case.challenger, *([case.champion] if case.champion else [])]
    times = latencies([side.runtime for side in sides], case.test)
    costs = [Contender(side.megabytes, taken) for side, taken in zip(sides, times, strict=True)]
    over = over_limits(costs[0], case.rules)
    served = None if over else boot(case.challenger.release, case.paths.model, case.paths.root / "params.yaml", scratch)
    if over:
        limits = " and ".join(f"gate.max_{name}_{'ms' if name == 'latency' else 'mb'}" for name in over)
        found = _without_rows(case, KEEP, f"It does not fit: its {' and its '.join(over)} is above {limits}.")
    elif served is not None and served.failure is not None:
        found = _without_rows(case, KEEP, f"It does not serve. {served.failure}")
    elif case.champion is None:
        said = "It is the first version: it passes its floors, is within the limits, and serves."
        found = _without_rows(case, PROMOTE, said)
    else:
        found = against(case, case.champion, costs)
    return replace(
        found, report={**_about(case, over, served), **found.report}, measured=_measured(costs, served, case.rules)
    )


def against(case: Case, champion: Contestant, costs: Sequence[Contender]) -> Judged:
    """Compare with the champion, on the rows that neither has trained on. `costs` are those of both."""
    rules, fallen = case.rules, falls(costs[0], costs[1], case.rules.alpha)
    improved = improved_by(fallen, rules)
    marks = marks_of(case.test, case.challenger.runtime.problem.inputs)
    new_N = ~(among(marks, case.challenger.trained) | among(marks, champion.trained))
    test, marks = case.test.filter(new_N), marks.filter(new_N)
    test_set = choose(marks, case.used, case.decisions, alpha=rules.alpha, uses=rules.uses, most_rows=rules.rows)
    rows = {"test": len(case.test), "trained_on": int((~new_N).sum()), "compared": int(test_set.chosen.sum())}
    told = {"improves": {name: name in improved for name in sorted(rules.improves)}}

    def ask(why: str) -> Judged:
        return _without_rows(case, ASK, why, **told, test_set=test_set_report(test_set, rules, 0.0, rows))

    if not test_set.level:
        return ask(fresh_is_needed(test_set, rules, None))
    try:
        comparison = _comparison(case, champion, test.filter(test_set.chosen))
        with progress("gate: resamples", rules.resamples, "resamples") as advance:
            compared = comparison.compare(advance=advance)
    except Incomparable as error:
        return ask(f"The two cannot be compared on the same rows. {error}")
    if compared is None:
        return ask(
            f"{rules.metric} is not defined on the {rows['compared']:,} rows that neither has trained on, or they are "
            "too few to tell."
        )
    if test_set.follows and compared.evidence.smallest_margin(test_set.level, rules.power) > rules.margin:
        # Rows that show too little are not used up for it: they wait until there are enough of them.
        return ask(fresh_is_needed(test_set, rules, compared.evidence))
    slices = _slices(case, comparison)
    evidences = {key: found.evidence if found else None for key, (_, found) in slices.items()}
    decision = decide(compared.evidence, evidences, improved, rules, test_set.level)
    places = examples(comparison, compared)
    ids = {how: [comparison.rows["id"][place] for place in found] for how, found in places.items()}
    report = {
        **told,
        "verdict": decision.verdict,
        "sentence": sentence(decision, compared, rules, fallen),
        "alpha_spent": test_set.level,
        "comparison": comparison_report(decision, compared, slices, rules, ids),
        "test_set": test_set_report(test_set, rules, test_set.level, rows),
    }
    changed = {how: shown(comparison, found) for how, found in places.items()}
    return Judged(report, {}, joined(case.used, test_set, marks), changed)


def _without_rows(case: Case, verdict: str, said: str, **told: Any) -> Judged:
    """A verdict for which no row was looked at, and nothing is spent."""
    nothing: dict[str, Any] = {"alpha_spent": 0.0, "comparison": None, "improves": {}, "test_set": None}
    return Judged({**nothing, **told, "verdict": verdict, "sentence": said}, {}, case.used)


def _comparison(case: Case, champion: Contestant, rows: pl.DataFrame) -> Comparison:
    """Both sides' answers to the rows, as exported. Raises Incomparable where they are of different kinds."""
    problem, params = case.challenger.runtime.problem, case.params
    if champion.runtime.problem.name != problem.name:
        raise Incomparable(f"The champion's problem is {champion.runtime.problem.name}, and not {problem.name}.")
    split = params.clean.split
    setting = Setting(
        metric=case.rules.metric,
        bins=params.evaluate.calibration_bins,
        resamples=case.rules.resamples,
        seed=case.rules.seed,
        group=split.column if split.by == "group" else None,
    )
    with progress("gate: predict", 2 * len(rows), "rows") as advance:
        sides = []
        for one in (case.challenger, champion):
            tidied = _tidied_for(one, case, rows)
            outputs = one.runtime.outputs(tidied, _BATCH, advance)
            answers = one.runtime.problem.answer(tidied, outputs, one.runtime.signature, one.runtime.calibration)
            sides.append(Side(answers, one.runtime.signature))
    return comparison_of(rows, sides[0], sides[1], problem, setting)


def _tidied_for(one: Contestant, case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with their texts as this release tidies them: those of clean where it tidies them in the same way."""
    if one.runtime.tidy == case.challenger.runtime.tidy:
        return rows
    inputs = one.runtime.problem.inputs
    valid = read_rows(case.paths.valid).with_columns(pl.col("id").cast(pl.String)).select("id", *inputs)
    return one.runtime.tidied(rows.select("id").join(valid, on="id", how="left", maintain_order="left"))


def _slices(case: Case, comparison: Comparison) -> dict[tuple[str, str], tuple[int, Compared | None]]:
    """Every slice that params name, with its rows."""
    columns = slice_columns(comparison.rows, case.params.evaluate.slices, comparison.problem.texts)
    where: dict[tuple[str, str], Mask] = {
        (column.name, value): (column == value).to_numpy() for column in columns for value in sorted(column.unique())
    }
    with progress("gate: slices", len(where), "slices") as advance:
        found = {}
        for key, where_N in where.items():
            found[key] = int(where_N.sum()), comparison.compare(where_N)
            advance(1)
    return found


def _about(case: Case, over: Sequence[str], served: Booted | None) -> dict[str, Any]:
    """What the report says whatever comes of it."""
    challenger, champion = case.challenger, case.champion
    return {
        "model": case.paths.model,
        "metric": case.rules.metric,
        "higher_is_better": direction(challenger.runtime.problem, case.rules.metric) > 0,
        "challenger": {"version": challenger.release.version, "megabytes": round(challenger.megabytes, 3)},
        "champion": champion
        and {"tag": case.tag, "version": champion.release.version, "megabytes": round(champion.megabytes, 3)},
        "within_limits": {name: name not in over for name in ("latency", "size")},
        "serves": None if served is None else served.failure is None,
    }


def _measured(costs: Sequence[Contender], served: Booted | None, rules: Gate) -> dict[str, Any]:
    """What a clock said; of latency that of a row alone, without the server."""
    latency = {
        name: {
            "p50": round(cost.p50_ms, 3),
            "p99": round(float(np.percentile(cost.latency_ms, 99)), 3),
            "rows": len(cost.latency_ms),
        }
        for name, cost in zip(("challenger", "champion"), costs, strict=False)
    }
    found: dict[str, Any] = {"latency_ms": latency}
    if len(costs) > 1:
        found["latency_falls_by"] = round(falls(costs[0], costs[1], rules.alpha)["latency"], 4)
    if served is not None:
        found["served"] = {
            "ready_seconds": served.ready_seconds,
            "rows": served.num_answered,
            "slowest_ms": served.slowest_ms,
        }
    return found
