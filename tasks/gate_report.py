"""What the gate says: one sentence of verdict, and the report as JSON.

The report is a function of its inputs, and of whether what was measured is within its limits and improves. The figures
that a clock gave stand elsewhere: in reports/<model>/measured/gate.json, and in the decision's tag.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from tasks.comparison import Compared, Comparison
from tasks.gate import Cost, Decision, Gate, Slice
from tasks.pages import figure, p_value, words
from tasks.paired import Discordance, Evidence
from tasks.spending import TestSet

_EXAMPLES = 6
_DIGITS = 6


def comparison_report(
    decision: Decision,
    compared: Compared,
    values: Mapping[tuple[str, str], tuple[int, Compared | None]],
    rules: Gate,
    changed: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """All that the rows say. `values` has each slice's number of rows and its own comparison."""
    evidence = compared.evidence
    exact = isinstance(evidence, Discordance)
    return {
        "rows": evidence.num_rows,
        "challenger": _rounded(compared.challenger),
        "champion": _rounded(compared.champion),
        "difference": _interval(evidence, decision.level),
        "confidence": _rounded(1 - 2 * decision.level),
        "level": _rounded(decision.level),
        "only_challenger_right": evidence.gained if isinstance(evidence, Discordance) else None,
        "only_champion_right": evidence.lost if isinstance(evidence, Discordance) else None,
        "superiority": {
            "test": "McNemar's exact test" if exact else "paired bootstrap, studentised",
            "p_value": _p(decision.p_better),
            "shown": decision.way == "superior",
            "smallest": _rounded(decision.smallest_gain),
        },
        "margin": {
            "test": "Tango's score test" if exact else "paired bootstrap, studentised",
            "margin": rules.margin,
            "p_value": _p(decision.p_margin),
            "shown": decision.p_margin <= decision.level,
            "smallest": _rounded(decision.smallest_margin),
            "refused": decision.margin_is_refused,
            "rows_it_takes": evidence.rows_for(rules.margin, decision.level, rules.power),
        },
        "p_worse": _p(decision.p_worse),
        "slices": [
            _slice(part, *values[part.column, part.value], rules.alpha / max(len(decision.slices), 1))
            for part in decision.slices
        ],
        "changed": {
            "improved": {"rows": int((compared.gains > 0).sum()), "examples": list(changed["improved"])},
            "worsened": {"rows": int((compared.gains < 0).sum()), "examples": list(changed["worsened"])},
        },
    }


def _slice(part: Slice, num_rows: int, compared: Compared | None, level: float) -> dict[str, Any]:
    told = {"slice": part.column, "value": part.value, "rows": num_rows, "worse": part.worse}
    if compared is None:
        return {**told, "difference": None}
    return {
        **told,
        "challenger": _rounded(compared.challenger),
        "champion": _rounded(compared.champion),
        "difference": _interval(compared.evidence, level),
        "p_value": _p(part.p_value),
        "adjusted": _p(part.adjusted),
    }


def test_set_report(test_set: TestSet, rules: Gate, spent: float, rows: Mapping[str, int]) -> dict[str, Any]:
    """Which rows decided, how often they had before, and what that has cost."""
    return {
        "name": test_set.name,
        "rows": {**rows, "kept_back": test_set.num_kept_back, "used_up": test_set.num_used_up},
        "uses_before": test_set.uses_before,
        "uses": rules.uses,
        "alpha": rules.alpha,
        "spent_before": _rounded(test_set.spent_before),
        "spent": _rounded(spent),
        "follows": test_set.follows,
    }


def sentence(decision: Decision, compared: Compared, rules: Gate, fallen: Mapping[Cost, float]) -> str:
    """The verdict in a sentence or two, without what only a clock knows."""
    evidence = compared.evidence
    found = (
        f"{words(rules.metric)} is {figure(compared.challenger)} against the champion's {figure(compared.champion)} on "
        f"{evidence.num_rows:,} held-out rows"
    )
    found = found[0].upper() + found[1:]
    better = f"p {p_value(decision.p_better)}, {decision.level:g} is needed"
    if decision.way == "superior":
        said = f"{found}: it is better, by {_size(evidence.effect)} ({better})."
    elif decision.way == "margin":
        said = (
            f"{found}: it is not worse by more than {rules.margin:g} (p {p_value(decision.p_margin)}, "
            f"{decision.level:g} is needed), and {_improvements(decision.improved, fallen)}."
        )
    elif decision.p_worse <= decision.level:
        said = f"{found}: it is worse, by {_size(-evidence.effect)} (p {p_value(decision.p_worse)})."
    else:
        said = f"{found}: it is not shown to be better ({better}); {_what_could_be_shown(decision, rules)}."
    if decision.verdict == "ask" and decision.way is not None:
        parts = ", ".join(f"{words(part.column)} {part.value}" for part in decision.worse_slices)
        return f"{said} But it is worse by more than {rules.slice_margin:g} in a part of them: {parts}."
    if decision.way is None and decision.improved:
        but = _refused(decision, evidence, rules) if decision.verdict == "ask" else _not_held(decision, rules)
        return f"{said} {_improvements(decision.improved, fallen, capital=True)}, but {but}"
    return said


def fresh_is_needed(test_set: TestSet, rules: Gate, evidence: Evidence | None) -> str:
    """Why the test rows cannot decide any more, and what to do. `evidence` is that of those which have not decided."""
    if test_set.follows is None:
        return "There is no test row that neither of the two has trained on, so a fresh test set is needed."
    said = (
        f"The test set {test_set.follows} is worn out: it has decided as often as gate.uses allows, and a fresh one is "
        "needed. "
    )
    if evidence is None:
        said += "No test row is left that has not decided yet"
    else:
        needed = evidence.rows_for(rules.margin, test_set.level, rules.power)
        said += (
            f"{evidence.num_rows:,} test rows have not decided yet; about {needed:,} are needed to show gate.margin, "
            f"{rules.margin:g}"
        )
    return (
        f"{said}. New rows of the test split count by themselves. Without new rows, change clean.split.seed (where the "
        "split is by time, test_from) and retrain. That version cannot be judged, since the champion has trained on "
        "what comes into the test split by that: look at it, and promote it by hand. For the versions after it those "
        "rows are fresh. Where gate.rows is below the size of the test split, the rest is kept for the next time."
    )


def _size(effect: float) -> str:
    return figure(effect)


def _improvements(improved: Sequence[Cost], fallen: Mapping[Cost, float], *, capital: bool = False) -> str:
    """What falls; of latency not by how much, since a clock said so."""
    parts = [f"its {name} falls" + (f" by {fallen[name]:.0%}" if name == "size" else "") for name in improved]
    said = " and ".join(parts)
    return said[0].upper() + said[1:] if capital else said


def _what_could_be_shown(decision: Decision, rules: Gate) -> str:
    return f"a gain of {_size(decision.smallest_gain)} would be found {rules.power:.0%} of the time"


def _refused(decision: Decision, evidence: Evidence, rules: Gate) -> str:
    rows = evidence.rows_for(rules.margin, decision.level, rules.power)
    return (
        f"gate.margin, {rules.margin:g}, is smaller than what these rows can show, {_size(decision.smallest_margin)}: "
        f"it takes about {rows:,} rows, or a larger margin."
    )


def _not_held(decision: Decision, rules: Gate) -> str:
    return f"that it is not worse by more than {rules.margin:g} is not shown (p {p_value(decision.p_margin)})."


def examples(comparison: Comparison, compared: Compared) -> dict[str, list[int]]:
    """The places of some rows that got better, and of some that got worse: those that changed most, ties by a hash."""
    ids, gains = comparison.rows["id"].to_list(), compared.gains
    order = sorted(range(len(ids)), key=lambda row: (-abs(gains[row]), hashlib.sha256(ids[row].encode()).digest()))
    return {
        "improved": [row for row in order if gains[row] > 0][:_EXAMPLES],
        "worsened": [row for row in order if gains[row] < 0][:_EXAMPLES],
    }


def shown(comparison: Comparison, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Those rows for people: what was asked, what is right where a label says so, and both answers."""
    problem = comparison.problem
    texts = [name for name in problem.inputs if comparison.rows.schema[name] == pl.String]
    return [
        {
            "id": comparison.rows["id"][row],
            "texts": [comparison.rows[name][row] for name in texts],
            "actual": None if problem.label is None else comparison.rows[problem.label][row],
            "answers": [_spoken(side.answers[row]) for side in comparison.sides],
        }
        for row in rows
    ]


def _spoken(answer: pl.DataFrame) -> str:
    """An answer's own words, and how sure it is."""
    row = {name: value for name, value in answer.to_dicts()[0].items() if not isinstance(value, list | np.ndarray)}
    said = next((str(value) for value in row.values() if isinstance(value, str)), None)
    if said is None:
        return ", ".join(f"{words(name)} {value}" for name, value in row.items())
    sure = row.get("probability")
    said = said or "nothing"  # no label, or no answer
    return f"{said} ({figure(sure, 2)})" if isinstance(sure, float) else said


def _interval(evidence: Evidence, level: float) -> dict[str, float | None]:
    low, high = evidence.interval(level)
    return {"value": _rounded(evidence.effect), "low": _rounded(low), "high": _rounded(high)}


def _rounded(number: float) -> float | None:
    return round(float(number), _DIGITS) + 0.0 if np.isfinite(number) else None


def _p(value: float) -> float:
    return float(f"{value:.3g}")
