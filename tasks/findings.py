"""What validate found: limits that are passed, rules on the table that fail, the report, and sentences about them.

The report is deterministic and in Git, so it names rows by their ids and quotes no text of theirs: what broke a rule
can be read in quarantine and in Data Docs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.expectations import Rule
from tasks.gx import Tally
from tasks.params import Validate
from tasks.values import as_json, shortened

_MAX_NAMED = 20


@dataclass
class Group:
    """Rows that are judged together: all of them, or those of one label."""

    rows: int = 0
    quarantined: int = 0

    @property
    def share(self) -> float:
        return self.quarantined / self.rows if self.rows else 0.0

    def add(self, rows: int, quarantined: int) -> None:
        self.rows += rows
        self.quarantined += quarantined


@dataclass
class Outcome:
    """What became of the rows."""

    everything: Group = field(default_factory=Group)
    labels: dict[str, Group] = field(default_factory=dict)
    unlabelled: Group = field(default_factory=Group)  # no label, or one that a rule on the label alone refuses
    num_admissions: int = 0
    mended: set[Any] = field(default_factory=set)  # ids
    mended_in_vain: int = 0
    unmatched: list[Any] = field(default_factory=list)  # ids of admissions that no collected row has


@dataclass(frozen=True)
class TableVerdict:
    """Great Expectations' verdict on a rule on the table, and the ids of a few rows that show why it fails."""

    rule: Rule
    verdict: Any
    ids: Sequence[Any]

    @property
    def success(self) -> bool:
        return bool(self.verdict.success)

    def observed(self) -> dict[str, Any]:
        """What was seen, in the few of Great Expectations' own words that say it."""
        result = self.verdict.result
        if "element_count" in result:
            counts = {key: result.get(key, 0) for key in ("element_count", "unexpected_count", "missing_count")}
            return {**counts, "ids": [as_json(id) for id in self.ids[:_MAX_NAMED]]}
        told = ("unexpected_count", "partial_unexpected_list", "missing_count", "partial_missing_list")
        counts = {key: as_json(result[key]) for key in told if key in result}
        return counts or {"observed_value": as_json(result.get("observed_value"))}


def over_limits(outcome: Outcome, params: Validate, tallies: Sequence[Tally]) -> Iterator[str]:
    """A sentence for every limit that is passed, and what filled quarantine most."""
    groups = [("all rows", outcome.everything, "max_quarantined", params.max_quarantined)]
    groups += [
        (f"the rows labelled {shortened(label)}", group, "max_quarantined_per_label", params.max_quarantined_per_label)
        for label, group in sorted(outcome.labels.items())
    ]
    over = [entry for entry in groups if entry[1].share > entry[3]]
    for whose, group, limit, allowed in over:
        yield (
            f"{group.quarantined:,} of {group.rows:,} ({group.share:.2%}) of {whose} are in quarantine; "
            f"validate.{limit} allows {allowed:.2%}."
        )
    if over:
        worst = sorted((tally for tally in tallies if tally.num_broken), key=lambda tally: -tally.num_broken)
        yield "Most often: " + "; ".join(f"{tally.rule} ({tally.num_broken:,} rows)" for tally in worst[:3]) + "."


def failed(verdicts: Sequence[TableVerdict]) -> Iterator[str]:
    """A sentence for every rule on the table that does not hold."""
    for verdict in verdicts:
        if not verdict.success:
            seen = ", ".join(f"{key} {shortened(value)}" for key, value in verdict.observed().items())
            yield f"{verdict.rule.where}: {verdict.rule} does not hold for the valid rows: {seen}."


def report_of(
    outcome: Outcome,
    params: Validate,
    tallies: Sequence[Tally],
    verdicts: Sequence[TableVerdict],
    failures: Sequence[str],
) -> dict[str, Any]:
    """What validate.json holds."""
    everything = outcome.everything
    return {
        "rows": {
            "collected": everything.rows,
            "valid": everything.rows - everything.quarantined,
            "quarantined": everything.quarantined,
        },
        "quarantined": {
            "share": everything.share,
            "limit": params.max_quarantined,
            "limit_per_label": params.max_quarantined_per_label,
            "by_label": {label: _as_dict(group) for label, group in sorted(outcome.labels.items())},
            "without_label": _as_dict(outcome.unlabelled),
        },
        "admissions": {
            "lines": outcome.num_admissions,
            "admitted": len(outcome.mended) - outcome.mended_in_vain,
            "quarantined_again": outcome.mended_in_vain,
            "unmatched": len(outcome.unmatched),
            "unmatched_ids": [as_json(id) for id in outcome.unmatched[:_MAX_NAMED]],
        },
        "expectations": [
            {**_named(tally.rule), "broken": tally.num_broken, "null": tally.num_missing} for tally in tallies
        ],
        "table": [
            {**_named(verdict.rule), "success": verdict.success, "observed": verdict.observed()} for verdict in verdicts
        ],
        "stopped": list(failures),
    }


def summary_of(outcome: Outcome) -> list[str]:
    """What stands at the top of the page."""
    everything = outcome.everything
    lines = [
        f"{everything.rows:,} rows were collected: {everything.rows - everything.quarantined:,} are valid, "
        f"{everything.quarantined:,} ({everything.share:.2%}) are in quarantine."
    ]
    if outcome.mended:
        admitted = len(outcome.mended) - outcome.mended_in_vain
        lines.append(f"{len(outcome.mended):,} of them were mended by hand; {admitted:,} of these are valid now.")
    return lines


def unmatched_warning(outcome: Outcome, admissions: Path) -> str:
    """What to say of admissions that do nothing."""
    named = ", ".join(str(id) for id in outcome.unmatched[:_MAX_NAMED])
    more = f", … ({len(outcome.unmatched):,} in all)" if len(outcome.unmatched) > _MAX_NAMED else ""
    return (
        f"validate: no collected row has the id of these lines of {admissions}, so they do nothing: {named}{more}. "
        "Take them out if the rows are gone for good."
    )


def why_stopped(failures: Sequence[str], quarantine: Path, data_docs: Path) -> str:
    """The whole message of a line that stops: every failure, where to look, what to do."""
    said = "\n".join(f"  {failure}" for failure in failures)
    return (
        f"the line stops here.\n{said}\n"
        f"Look at {data_docs / 'index.html'}; the rows with their reasons are in {quarantine}. Then mend rows and let "
        "them back in with `mill admit`, mend the source and pull it again, or change the rule in params.yaml."
    )


def _as_dict(group: Group) -> dict[str, Any]:
    return {"rows": group.rows, "quarantined": group.quarantined, "share": group.share}


def _named(rule: Rule) -> dict[str, Any]:
    return {"where": rule.where, "expectation": rule.name, "arguments": as_json(rule.arguments)}
