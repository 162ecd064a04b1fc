"""Valid rows, and all the others with every reason. What decides is Great Expectations; see `tasks/expectations.py`.

A row that breaks a rule of `validate.rows` goes to quarantine, where `mill admit` finds it; mended rows come back
through `admitted.jsonl` and are judged like all others. Then the rules of `validate.table` are put to the valid rows,
the mended ones among them. Where one fails, or too much is in quarantine, the line stops: quarantine, report and Data
Docs are there to be looked at, and the valid rows are not written.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tasks.admissions import Admission, mend, read_admissions
from tasks.errors import DataError, LineStopped
from tasks.expectations import Rule, read_rules
from tasks.findings import (
    Group,
    Outcome,
    TableVerdict,
    failed,
    over_limits,
    report_of,
    summary_of,
    unmatched_warning,
    why_stopped,
)
from tasks.gx import Broken, RowJudge, Tally, judge, metrics_of, page
from tasks.params import Validate
from tasks.problems import Problem, label_lists
from tasks.progress import progress
from tasks.shards import Shard, atomic_folder, read_shards, write_json, write_manifest, write_parquet, write_text
from tasks.statistics import Merged
from tasks.values import shortened

REASONS = "reasons"


def validate(
    collected: Path,
    admissions: Path,
    valid: Path,
    quarantine: Path,
    report: Path,
    data_docs: Path,
    *,
    params: Validate,
    problem: Problem,
) -> None:
    """Sort the collected rows into `valid` and `quarantine`, shard by shard under the same names.

    Raises ParamsError for rules that cannot be, DataError for rows that cannot be read, and LineStopped where a rule on
    the table fails or a limit on quarantine is passed.
    """
    shards = read_shards(collected)
    schema = _schema(shards, collected, problem)
    on_rows, on_table = read_rules(params.rows, params.table, schema, problem.expectations)
    mended = {admission.id: admission for admission in read_admissions(admissions, schema)}
    sieve = Sieve(on_rows, on_table, schema, mended, problem)
    with atomic_folder(valid) as unfinished:
        with atomic_folder(quarantine) as refused:
            kept = _sift(shards, sieve, unfinished, refused)
        table_verdicts = _judge_table(on_table, sieve.merged, kept)
        failures = [*over_limits(sieve.outcome, params, sieve.tallies), *failed(table_verdicts)]
        write_json(report, report_of(sieve.outcome, params, sieve.tallies, table_verdicts, failures))
        row_verdicts = [judge(tally.rule, tally.metric, tally.examples) for tally in sieve.tallies]
        verdicts = [*(verdict.verdict for verdict in table_verdicts), *row_verdicts]
        write_text(data_docs / "index.html", page(data_docs.parent.name, verdicts, summary_of(sieve.outcome), failures))
        if sieve.outcome.unmatched:
            print(unmatched_warning(sieve.outcome, admissions), file=sys.stderr)
        if failures:
            raise LineStopped(why_stopped(failures, quarantine, data_docs))


@dataclass(frozen=True)
class Sifted:
    """The rows of one shard in their order, the mended ones in place, and why each one is turned away, if it is."""

    valid: pl.DataFrame
    quarantined: pl.DataFrame


class Sieve:
    """Takes one shard after the other apart, and keeps count."""

    def __init__(
        self,
        on_rows: Sequence[Rule],
        on_table: Sequence[Rule],
        schema: Mapping[str, pl.DataType],
        mended: Mapping[Any, Admission],
        problem: Problem,
    ) -> None:
        self.outcome = Outcome(num_admissions=len(mended), unmatched=list(mended))
        self.tallies = [Tally(rule) for rule in on_rows]
        self.merged = [Merged(rule.columns, rule.arguments, metrics_of(rule), schema) for rule in on_table]
        self.schema = schema
        self._rules = on_rows
        self._judge = RowJudge(on_rows)
        self._mended = mended
        self._problem = problem
        self._label = problem.label

    def sift(self, collected: pl.DataFrame, where: Path) -> Sifted:
        """The valid rows and the others. Raises DataError, naming `where`, for rows that no verdict can be had on."""
        if collected.schema != self.schema:
            raise DataError(f"{where} has other columns than the first shard. Run collect again.")
        rows = mend(collected, self._mended)
        broken = self._judge.judge(rows, where)
        reasons = reasons_of(rows, self._rules, broken)
        is_broken = reasons.list.len() > 0
        sifted = Sifted(rows.filter(~is_broken), rows.with_columns(reasons).filter(is_broken))
        for tally, found in zip(self.tallies, broken, strict=True):
            tally.add(rows, found)
        for statistics in self.merged:
            statistics.add(sifted.valid)
        self._count(rows, is_broken, self._has_label(rows, broken))
        return sifted

    def _has_label(self, rows: pl.DataFrame, broken: Sequence[Broken]) -> pl.Series:
        """Whether a row counts under its label. One that a rule on it refuses is none: a typo would be all of it."""
        if self._label is None:
            return pl.repeat(False, len(rows), eager=True)
        has_label = rows[self._label].is_not_null().to_numpy().copy()
        for rule, found in zip(self._rules, broken, strict=True):
            if rule.columns == (self._label,):
                has_label[found.positions] = False
        return pl.Series(has_label, dtype=pl.Boolean)

    def _count(self, rows: pl.DataFrame, is_broken: pl.Series, has_label: pl.Series) -> None:
        outcome = self.outcome
        outcome.everything.add(len(rows), int(is_broken.sum()))
        if self._label is not None:
            outcome.unlabelled.add(int((~has_label).sum()), int((is_broken & ~has_label).sum()))
            labels = label_lists(rows[self._label], self._problem).alias("label")
            each = pl.DataFrame([labels, is_broken.alias("broken")]).filter(has_label).explode("label").drop_nulls()
            by_label = each.group_by("label").agg(pl.len(), pl.col("broken").sum())
            for label, num_rows, num_broken in by_label.iter_rows():
                name = label if isinstance(label, str) else shortened(label)
                outcome.labels.setdefault(name, Group()).add(num_rows, num_broken)
        is_mended = rows["id"].is_in(pl.Series(list(self._mended), dtype=rows.schema["id"]).implode())
        outcome.mended.update(rows["id"].filter(is_mended))
        outcome.mended_in_vain += int((is_broken & is_mended).sum())
        outcome.unmatched = [id for id in outcome.unmatched if id not in outcome.mended]


def reasons_of(rows: pl.DataFrame, rules: Sequence[Rule], broken: Sequence[Broken]) -> pl.Series:
    """For each row every rule that it broke, with the value that broke it: a list of texts, empty for a valid row."""
    reasons: list[list[str]] = [[] for _ in range(len(rows))]
    for rule, found in zip(rules, broken, strict=True):
        said = str(rule)
        offending = rows[found.positions].select(rule.columns).iter_rows()
        for position, values in zip(found.positions, offending, strict=True):
            shown = [shortened(value) for value in values]
            if len(shown) > 1:
                shown = [f"{column}={value}" for column, value in zip(rule.columns, shown, strict=True)]
            reasons[position].append(f"{said}: {', '.join(shown)}")
    return pl.Series(REASONS, reasons, dtype=pl.List(pl.String))


def _schema(shards: Sequence[Shard], collected: Path, problem: Problem) -> Mapping[str, pl.DataType]:
    if not shards:
        raise DataError(f"{collected} holds no shards. Run collect again.")
    schema = shards[0].read().schema
    missing = [column for column in ("id", *problem.columns) if column not in schema]
    if missing:
        named = ", ".join(missing)
        raise DataError(f"{shards[0].path} has no column {named}; {problem.name} needs it. Name it in collect.columns.")
    if REASONS in schema:
        raise DataError(
            f"{collected} has a column {REASONS!r}, where quarantine keeps its own. Rename it in collect.columns."
        )
    return schema


def _sift(shards: Sequence[Shard], sieve: Sieve, valid: Path, quarantine: Path) -> list[Shard]:
    """Write every shard's two parts under its own name; give the valid ones."""
    kept, turned_away = [], []
    with progress("validate", sum(shard.rows for shard in shards), "rows") as advance:
        for shard in shards:
            sifted = sieve.sift(shard.read(), shard.path)
            kept.append(write_parquet(valid / shard.path.name, sifted.valid))
            turned_away.append(write_parquet(quarantine / shard.path.name, sifted.quarantined))
            advance(shard.rows)
    write_manifest(valid, kept, sieve.schema)
    write_manifest(quarantine, turned_away, {**sieve.schema, REASONS: pl.List(pl.String)})
    return kept


def _judge_table(rules: Sequence[Rule], merged: Sequence[Merged], kept: Sequence[Shard]) -> list[TableVerdict]:
    for rows in _again(kept) if any(statistics.has_repetitions for statistics in merged) else ():
        for statistics in merged:
            statistics.look_up(rows)
    return [
        TableVerdict(
            rule, judge(rule, statistics.metric, statistics.examples), [row["id"] for row in statistics.examples]
        )
        for rule, statistics in zip(rules, merged, strict=True)
    ]


def _again(kept: Sequence[Shard]) -> Iterator[pl.DataFrame]:
    """The valid rows once more, so that somebody who is told that values repeat can be shown some."""
    for shard in kept:
        yield shard.read()
