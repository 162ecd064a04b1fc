"""What answers are worth: figures with intervals, overall and by slice, and paired comparisons with other answers.

Every figure carries the percentile interval of its bootstrap (Efron and Tibshirani 1993, chapter 13). All answers are
judged under the same resamples of the test rows, so that the interval of a difference is a paired one.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.errors import DataError, did_you_mean
from tasks.params import Evaluate
from tasks.problems import Problem, Signature

# Weights are resamples by rows; so many numbers of them are held at a time, 32 MB.
_WEIGHTS_AT_ONCE = 4_000_000

# Enough weightings for a metric to betray that it is no mean.
_TRIALS = 8

_MOST_SLICES = 30
_OTHERS = "(all others)"

# Metrics by name: the value itself, then its value under each resample.
Samples = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Answers:
    """Everybody's answers to the same rows, in the rows' order."""

    model: pl.DataFrame
    uncalibrated: pl.DataFrame
    baselines: Mapping[str, pl.DataFrame]


def slice_columns(test: pl.DataFrame, wanted: Sequence[str], texts: Sequence[str]) -> pl.DataFrame:
    """A column of strings for each slice that params name, in the rows' order.

    `length_quartile` is 1 to 4 by the number of characters. Of a column with more than thirty values the rarest go
    together. Raises DataError for a name that is neither a column nor known.
    """
    columns = {}
    for name in wanted:
        if name in test.columns:
            columns[name] = _fold(test[name].cast(pl.String).fill_null("(none)"))
        elif name == "length_quartile" and texts:
            lengths_N = _num_chars(test, texts)
            edges = np.quantile(lengths_N, [0.25, 0.5, 0.75])
            columns[name] = pl.Series(1 + (lengths_N[:, None] > edges).sum(axis=1)).cast(pl.String)
        else:
            known = sorted([*test.columns, *(["length_quartile"] if texts else [])])
            raise DataError(
                f"evaluate.slices names {name!r}, which is no column of the clean rows.{did_you_mean(name, known)} "
                f"Known: {', '.join(known)}. collect.columns brings further ones along."
            )
    return pl.DataFrame(columns)


def judge(
    test: pl.DataFrame,
    slices: pl.DataFrame,
    answers: Answers,
    signature: Signature,
    problem: Problem,
    params: Evaluate,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """The report: metrics, slices, baselines with paired tests, and whether every baseline is beaten.

    A baseline is beaten where the interval of the difference in the headline metric lies on the model's side of 0 and,
    if that metric is the share of answers that are right, McNemar's exact test agrees. Of any other metric that test
    says nothing: more answers may be right, and the metric worse.
    """
    everybody = np.ones(len(test), dtype=np.bool_)
    subjects: dict[Hashable, tuple[pl.DataFrame, NDArray[np.bool_]]] = {
        "model": (answers.model, everybody),
        "uncalibrated": (answers.uncalibrated, everybody),
        **{("baseline", name): (given, everybody) for name, given in answers.baselines.items()},
        **{
            (column.name, value): (answers.model, (column == value).to_numpy())
            for column in slices
            for value in sorted(column.unique())
        },
    }
    samples = _sample(test, subjects, signature, problem, params, advance)
    metrics = _intervals(samples["model"], params.confidence)
    uncalibrated = _intervals(samples["uncalibrated"], params.confidence)
    right = {
        name: _right(test, given, signature, problem, params.calibration_bins)
        for name, given in [("", answers.model), *answers.baselines.items()]
    }
    baselines = {
        name: _compare(samples["model"], samples["baseline", name], right[""], right[name], problem, params.confidence)
        for name in answers.baselines
    }
    return {
        "baselines": baselines,
        "beats_baselines": all(baseline["beaten"] for baseline in baselines.values()),
        "headline": headline(problem, metrics, baselines, len(test), params.confidence),
        "headline_metric": problem.headline,
        "metrics": metrics,
        "slices": {
            column.name: {
                value: {
                    "metrics": _intervals(samples[column.name, value], params.confidence),
                    "rows": int((column == value).sum()),
                    **_described(test.filter(column == value), column.name, problem.texts),
                }
                for value in sorted(column.unique())
            }
            for column in slices
        },
        # What calibration changes, before it.
        "uncalibrated": {name: found for name, found in uncalibrated.items() if found != metrics[name]},
    }


def headline(
    problem: Problem, metrics: Mapping[str, Any], baselines: Mapping[str, Any], num_rows: int, confidence: float
) -> str:
    """One sentence for the top of every page; it begins with the baseline that is not beaten, where there is one."""
    metric = problem.headline

    def number(found: float | None) -> str:
        return "undefined" if found is None else f"{found:.3f}"

    def spoken(found: Mapping[str, float | None]) -> str:
        ends = f"{number(found['low'])} to {number(found['high'])}"
        return f"{number(found['value'])} ({100 * confidence:g}% interval {ends})"

    def worth(name: str) -> float:
        value = baselines[name]["metrics"][metric]["value"]
        return -np.inf if value is None else _signed(problem, value)

    best_last = sorted(baselines, key=lambda name: (worth(name), name))
    unbeaten = [name for name in best_last if not baselines[name]["beaten"]]
    said = f"{metric} {spoken(metrics[metric])} on {num_rows:,} held-out rows"
    if unbeaten:
        other = baselines[unbeaten[-1]]
        said = (
            f"does not beat its baseline {unbeaten[-1]}: {said}, against {number(other['metrics'][metric]['value'])}; "
            f"the difference is {spoken(other['difference'])}"
        )
    elif best_last:
        reached = number(baselines[best_last[-1]]["metrics"][metric]["value"])
        said = f"{said}, better than every baseline; the best of them, {best_last[-1]}, reaches {reached}"
    return f"{said[0].upper()}{said[1:]}.".replace("_", " ")


def score_rows(
    test: pl.DataFrame, slices: pl.DataFrame, answers: Answers, signature: Signature, problem: Problem
) -> pl.DataFrame:
    """Per row and in order: the problem's scores, `answer_…`, each baseline's scores as `<baseline>.…`, `slice.…`.

    Of an answer only what fits a table comes along: no lists and no arrays.
    """
    model = problem.score(test, answers.model, signature)
    flat = [name for name, kind in answers.model.schema.items() if not kind.is_nested()]
    return pl.concat(
        [
            model,
            answers.model.select(pl.col(flat).name.prefix("answer_")),
            *(
                problem.score(test, given, signature).select(pl.exclude("id").name.prefix(f"{name}."))
                for name, given in sorted(answers.baselines.items())
            ),
            slices.select(pl.all().name.prefix("slice.")),
        ],
        how="horizontal",
    )


def _sample(
    test: pl.DataFrame,
    subjects: Mapping[Hashable, tuple[pl.DataFrame, NDArray[np.bool_]]],
    signature: Signature,
    problem: Problem,
    params: Evaluate,
    advance: Callable[[int], None],
) -> dict[Hashable, Samples]:
    found: dict[Hashable, list[Samples]] = {key: [] for key in subjects}
    for weights_RN in _weights(len(test), params.resamples, params.seed):
        for key, (answers, where_N) in subjects.items():
            found[key].append(
                problem.measure(
                    test.filter(where_N),
                    answers.filter(where_N),
                    signature,
                    weights_RN if where_N.all() else weights_RN[:, where_N],
                    params.calibration_bins,
                )
            )
        advance(len(weights_RN))
    return {
        key: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for key, parts in found.items()
    }


def _weights(num_rows: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """First one row of ones, which gives the figures themselves; then how often each resample draws each row."""
    yield np.ones((1, num_rows))
    generator = np.random.default_rng(seed)
    at_once = max(1, _WEIGHTS_AT_ONCE // num_rows)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        yield generator.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=size).astype(np.float64)


def _intervals(samples: Samples, confidence: float) -> dict[str, dict[str, float | None]]:
    return {name: _interval(values, confidence) for name, values in samples.items()}


def _interval(values: NDArray[np.float64], confidence: float) -> dict[str, float | None]:
    """The percentile interval over the resamples that leave the metric defined; None where the figure itself is not."""
    if np.isnan(values[0]):
        return {"value": None, "low": None, "high": None}
    resampled = values[1:][~np.isnan(values[1:])]
    low, high = np.quantile(resampled if len(resampled) else values[:1], [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"value": _rounded(values[0]), "low": _rounded(low), "high": _rounded(high)}


def _rounded(number: float) -> float:
    return round(float(number), 6) + 0.0  # -0.0 becomes 0.0


def _right(
    test: pl.DataFrame, answers: pl.DataFrame, signature: Signature, problem: Problem, bins: int
) -> NDArray[np.bool_] | None:
    """Which answers are right, where the headline is the share of those; else None."""
    scored = problem.score(test, answers, signature)
    if "correct" not in scored.columns:
        return None
    only = scored.select("id", "correct")

    def measured(weights_RN: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        return [problem.measure(test, answers, signature, weights_RN, bins)[problem.headline]]

    return scored["correct"].to_numpy() if score_behind([only], measured) else None


def score_behind(
    scores: Sequence[pl.DataFrame], measured: Callable[[NDArray[np.float64]], Sequence[NDArray[np.float64]]]
) -> str | None:
    """The per-row score whose mean a metric is, on every side; None where it is no mean. It is told by trying.

    `scores` are each side's scores of the same N rows; `measured` gives each side's metric under R weightings (RN).
    """
    num_rows = len(scores[0])
    weights_RN = np.random.default_rng(0).integers(1, 5, size=(_TRIALS, num_rows)).astype(np.float64)
    both = list(zip(scores, measured(weights_RN), strict=True))
    names = [name for name in scores[0].columns if name != "id"]
    return next((name for name in names if all(_is_mean(side[name], R, weights_RN) for side, R in both)), None)


def _is_mean(score: pl.Series, values_R: NDArray[np.float64], weights_RN: NDArray[np.float64]) -> bool:
    if not (score.dtype.is_numeric() or score.dtype == pl.Boolean) or score.null_count():
        return False
    means_R = weights_RN @ score.cast(pl.Float64).to_numpy() / weights_RN.sum(axis=1)
    return bool(np.allclose(means_R, values_R, rtol=1e-9, atol=1e-12))


def _compare(
    model: Samples,
    baseline: Samples,
    model_right_N: NDArray[np.bool_] | None,
    baseline_right_N: NDArray[np.bool_] | None,
    problem: Problem,
    confidence: float,
) -> dict[str, Any]:
    difference = _interval(model[problem.headline] - baseline[problem.headline], confidence)
    worst = difference["low"] if problem.higher_is_better[problem.headline] else difference["high"]
    beaten = worst is not None and _signed(problem, worst) > 0
    compared: dict[str, Any] = {"difference": difference, "metrics": _intervals(baseline, confidence)}
    if model_right_N is not None and baseline_right_N is not None:
        compared["mcnemar"] = mcnemar(model_right_N, baseline_right_N)
        beaten = beaten and compared["mcnemar"]["p_value"] < 1 - confidence
    return compared | {"beaten": beaten}


def mcnemar(model_right_N: NDArray[np.bool_], baseline_right_N: NDArray[np.bool_]) -> dict[str, float | int]:
    """McNemar's exact test, two-sided: of the rows where just one of two is right, is it each one equally often?"""
    from scipy.stats import binomtest

    only_model = int((model_right_N & ~baseline_right_N).sum())
    only_baseline = int((~model_right_N & baseline_right_N).sum())
    discordant = only_model + only_baseline
    p_value = float(binomtest(only_model, discordant, 0.5).pvalue) if discordant else 1.0
    return {"only_baseline_right": only_baseline, "only_model_right": only_model, "p_value": float(f"{p_value:.3g}")}


def _signed(problem: Problem, number: float) -> float:
    return number if problem.higher_is_better[problem.headline] else -number


def _fold(column: pl.Series) -> pl.Series:
    counted = column.value_counts().sort(["count", column.name], descending=[True, False])
    if len(counted) <= _MOST_SLICES:
        return column
    kept = counted[column.name].head(_MOST_SLICES).to_list()
    return pl.select(pl.when(column.is_in(kept)).then(column).otherwise(pl.lit(_OTHERS))).to_series().alias(column.name)


def _num_chars(rows: pl.DataFrame, texts: Sequence[str]) -> NDArray[np.int64]:
    return rows.select(pl.sum_horizontal(pl.col(texts).str.len_chars())).to_series().to_numpy().astype(np.int64)


def _described(rows: pl.DataFrame, name: str, texts: Sequence[str]) -> dict[str, str]:
    """What a slice's value stands for, where it does not say so itself."""
    if name != "length_quartile" or name in rows.columns:
        return {}
    lengths_N = _num_chars(rows, texts)
    return {"described": f"{lengths_N.min()} to {lengths_N.max()} characters"}
