"""Great Expectations, asked for verdicts and for a page. Nothing else imports it.

A shard is handed over as a pandas frame whose values are what Polars holds: no whole number becomes a float because a
null stands beside it. Which rows broke a rule comes back as positions in that frame, all of them, so it does not matter
whether ids repeat. A rule that Great Expectations could not evaluate is an error, never a pass.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tasks.errors import DataError
from tasks.expectations import Rule
from tasks.values import shortened

if TYPE_CHECKING:
    import pandas as pd

# Beyond this, a float does not hold every whole number, and pandas compares whole numbers with bounds as floats.
_LARGEST_EXACT = 2**53

_MAX_EXAMPLES = 200

_EVERY_ROW = {"result_format": "COMPLETE", "return_unexpected_index_query": False, "exclude_unexpected_values": True}
_MERGED = {"result_format": "COMPLETE", "return_unexpected_index_query": False, "partial_unexpected_count": 20}


@dataclass
class Broken:
    """The rows that broke one rule."""

    positions: list[int]
    num_missing: int  # rows that the rule says nothing about, because a value is null


class RowJudge:
    """Rules on rows, put to one shard after the other."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = list(rules)
        self._columns = sorted({column for rule in rules for column in rule.columns})
        self._compared = {column for rule in rules for column in rule.columns if len(rule.columns) > 1}
        with _quietly():
            import great_expectations as gx
            from great_expectations.data_context.types.base import ProgressBarsConfig

            context = gx.get_context(mode="ephemeral")
            context.variables.progress_bars = ProgressBarsConfig(globally=False)
            asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
            self._batches = asset.add_batch_definition_whole_dataframe("rows")
            self._suite = gx.ExpectationSuite(
                name="rows", expectations=[_expectation(rule, meta={"rule": n}) for n, rule in enumerate(rules)]
            )

    def judge(self, rows: pl.DataFrame, where: Path) -> list[Broken]:
        """What broke each rule, in the rules' order. Raises DataError, naming `where`, for a rule left undecided."""
        if not self._rules:
            return []
        with _quietly():
            batch = self._batches.get_batch({"dataframe": as_pandas(rows.select(self._columns), self._compared)})
            results = batch.validate(self._suite, result_format=_EVERY_ROW).results
        configs = [result.expectation_config for result in results]
        by_rule = {config.meta["rule"]: result for config, result in zip(configs, results, strict=True) if config}
        return [_broken(rule, by_rule[number], where) for number, rule in enumerate(self._rules)]


def _broken(rule: Rule, result: Any, where: Path) -> Broken:
    found = result.result
    raised = _raised(result.exception_info)
    positions = found.get("unexpected_index_list")
    if raised is None and (positions is None or len(positions) != found["unexpected_count"]):
        raised = "it did not name every row that breaks the rule"
    if raised is not None:
        raise DataError(
            f"{rule.where}: Great Expectations could not decide {rule} on {where}: {shortened(raised)}. Nothing was "
            "let through; change the rule, or mend what it trips over in the source."
        )
    return Broken(positions, found.get("missing_count", 0))


def _raised(exception_info: Mapping[str, Any]) -> str | None:
    """The message of what was raised inside; it is kept in one of two forms."""
    entries = [exception_info] if "raised_exception" in exception_info else list(exception_info.values())
    return next((str(entry["exception_message"]) for entry in entries if entry["raised_exception"]), None)


@dataclass
class Tally:
    """What became of one rule on rows over all shards, and the first few rows that broke it, in their order."""

    rule: Rule
    num_rows: int = 0
    num_missing: int = 0
    num_broken: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, rows: pl.DataFrame, broken: Broken) -> None:
        """Take one shard and what broke the rule in it."""
        self.num_rows += len(rows)
        self.num_missing += broken.num_missing
        self.num_broken += len(broken.positions)
        wanted = broken.positions[: _MAX_EXAMPLES - len(self.examples)]
        self.examples += rows[wanted].select(*self.rule.columns, *_ids(self.rule)).to_dicts()

    def metric(self, name: str) -> Any:
        """The value of one of Great Expectations' metrics over all shards."""
        match name.split("."):
            case ["table", "row_count"]:
                return self.num_rows
            case [*_, "filtered_row_count"]:
                return self.num_rows - self.num_missing
            case ["column_values", "nonnull", "unexpected_count"] if "not_be_null" not in self.rule.name:
                return self.num_missing
            case [*_, "unexpected_count"]:
                return self.num_broken
            case _:
                raise KeyError(name)


def metrics_of(rule: Rule) -> list[str]:
    """The names of the metrics that decide a rule."""
    with _quietly():
        return list(_dependencies(_expectation(rule)).metric_configurations)


def judge(rule: Rule, metric: Callable[[str], Any], examples: Sequence[Mapping[str, Any]]) -> Any:
    """Great Expectations' verdict, an ExpectationValidationResult, on metrics that were merged from all shards.

    What judges a batch judges here; only where its metrics come from is another place. `examples` are rows to show.
    """
    several = len(rule.columns) > 1
    # Great Expectations writes values into a page as they are.
    shown = [
        {name: escape(str(value) if name in _ids(rule) else shortened(value)) for name, value in row.items()}
        for row in examples
    ]
    values = [tuple(row[name] for name in rule.columns) for row in shown]
    with _quietly():
        expectation = _expectation(rule)
        metrics: dict[Any, Any] = {}
        for name, configuration in _dependencies(expectation).metric_configurations.items():
            if name.endswith(".unexpected_values"):
                value: Any = values if several else [only for (only,) in values]
            elif name.endswith(".unexpected_index_list"):
                value = shown if _ids(rule) else None
            elif name.endswith(".unexpected_index_query"):
                value = None
            else:
                value = metric(name)
            metrics[configuration.id] = value
        result = expectation.metrics_validate(metrics, runtime_configuration={"result_format": _MERGED})
    if result.result.get("unexpected_index_list"):
        result.result["unexpected_index_column_names"] = ["id"]
    return result


def page(title: str, results: Sequence[Any], summary: Sequence[str], failures: Sequence[str]) -> str:
    """Data Docs as Great Expectations renders them, in one HTML file that loads nothing from anywhere.

    `summary` stands at the top, and `failures`, each one a reason for which the line stopped.
    """
    with _quietly():
        import great_expectations as gx
        from great_expectations.core import ExpectationSuiteValidationResult
        from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
        from great_expectations.render.view.view import DefaultJinjaPageView

        successful = sum(1 for result in results if result.success)
        document = ValidationResultsPageRenderer(run_info_at_end=True).render(
            ExpectationSuiteValidationResult(
                success=successful == len(results),
                results=list(results),
                suite_name=title,
                statistics={
                    "evaluated_expectations": len(results),
                    "successful_expectations": successful,
                    "unsuccessful_expectations": len(results) - successful,
                    "success_percent": 100 * successful / len(results) if results else None,
                },
                meta={"great_expectations_version": gx.__version__},
            )
        )
        view = DefaultJinjaPageView(custom_views_directory=str(Path(__file__).parent / "templates"))
        html: str = view.render(  # type: ignore[no-untyped-call]
            document, template="data_docs.html", summary=summary, failures=failures
        )
    return html


def as_pandas(rows: pl.DataFrame, compared: Collection[str]) -> "pd.DataFrame":
    """The same values in pandas: dtypes hold them exactly, or are `object`, and null is None or NaN.

    Columns that are `compared` with each other are all `object`: only then does pandas take a null for no match. Beside
    another dtype it raises, so a row's verdict would depend on the rows that share its shard.
    """
    import pandas as pd

    series = {column.name: _series(column, column.name in compared) for column in rows.iter_columns()}
    return pd.DataFrame(series, index=range(len(rows)))


def _series(column: pl.Series, as_objects: bool) -> "pd.Series[Any]":
    import pandas as pd

    if column.dtype == pl.Datetime("ns"):
        return column.to_pandas().astype(object)  # Python's own times end at the microsecond
    if column.dtype.is_float() and not as_objects:
        return pd.Series(column.cast(pl.Float64).to_numpy(), dtype="float64")
    if column.dtype.is_integer() and not as_objects and column.null_count() == 0:
        low, high = column.min(), column.max()
        if low is None or (low >= -_LARGEST_EXACT and high <= _LARGEST_EXACT):  # type: ignore[operator]
            return pd.Series(column.cast(pl.Int64).to_numpy(), dtype="int64")
    return pd.Series(column.to_list(), dtype=object)


def _expectation(rule: Rule, **more: Any) -> Any:
    from great_expectations.expectations.registry import get_expectation_impl

    return get_expectation_impl(rule.name)(**rule.arguments, **more)


def _dependencies(expectation: Any) -> Any:
    return expectation.get_validation_dependencies(runtime_configuration={"result_format": _MERGED})


def _ids(rule: Rule) -> list[str]:
    """What names a row beside the values that broke the rule."""
    return ["id"] if "id" not in rule.columns else []


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Great Expectations without its log, its warnings and its reports home; the stage speaks for it."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
