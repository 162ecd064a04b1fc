"""What labels that came later say of a version: its metrics with intervals, and whom a challenger would have beaten."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.judgement import Answers, judge, mcnemar
from tasks.labels import read_labels, targets_of
from tasks.params import Evaluate
from tasks.problems import Problem, Signature, label_lists

# With fewer, an interval says nothing.
_LEAST_LABELS = 10


def measured_quality(
    labelled: pl.DataFrame,
    signature: Signature,
    problem: Problem,
    params: Evaluate,
    at_release: Mapping[str, Mapping[str, float | None]],
) -> dict[str, Any]:
    """The release's metrics on the rows whose label has come, with intervals as evaluate makes them.

    `labelled` has the inputs, the answer, and `label_json`. `labels` says how many, `unknown` how many have a label
    that the model does not have; `metrics` is None where they are too few. `changed` compares the headline metric with
    what it was on the held-out rows: better or worse where their intervals have nothing in common, else no difference.
    """
    truth = targets(labelled, problem)
    known = _known(truth, signature, problem)
    rows, answers = truth.filter(known), labelled.filter(known)
    found: dict[str, Any] = {
        "labels": len(labelled),
        "unknown": len(labelled) - len(rows),
        "headline": problem.headline,
        "metrics": None,
        "at_release": dict(at_release.get(problem.headline, {})),
        "changed": None,
    }
    if len(rows) < _LEAST_LABELS:
        return found
    params = params.model_copy(update={"slices": []})
    given = Answers(model=answers, uncalibrated=answers, baselines={})
    report = judge(rows, pl.DataFrame(), given, signature, problem, params)
    found["metrics"] = report["metrics"]
    found["changed"] = _changed(report["metrics"][problem.headline], found["at_release"], problem)
    return found


def selection(labelled: pl.DataFrame, mean_confidence: float | None) -> dict[str, float] | None:
    """How sure the model was of the answers that were labelled, and of all: labels are mostly no random sample."""
    if "probability" not in labelled.columns or labelled.is_empty() or mean_confidence is None:
        return None
    return {"labelled": round(float(labelled["probability"].to_numpy().mean()), 4), "all": mean_confidence}


def compared_shadow(shadows: pl.DataFrame, signature: Signature, problem: Problem) -> dict[str, Any] | None:
    """The newest challenger's unseen answers beside those that were given; None where there are none.

    `agree` is the share of rows with the same answer, as the problem counts it. Where labels have come, how often each
    is right, and McNemar's exact test of the difference; neither where the problem's labels cannot say what is right.
    """
    if shadows.is_empty():
        return None
    newest = shadows["challenger"][0]
    rows = shadows.filter(pl.col("challenger") == newest)
    same = problem.agree(rows, _of_shadow(rows)).to_numpy()
    found: dict[str, Any] = {
        "challenger": newest,
        "rows": len(rows),
        "agree": round(float(same.mean()), 6),
        "labels": 0,
    }
    labelled = rows.filter(pl.col("label_json").is_not_null())
    truth = targets(labelled, problem)
    known = _known(truth, signature, problem)
    truth, labelled = truth.filter(known), labelled.filter(known)
    found["labels"] = len(labelled)
    right = problem.agree(labelled, truth)
    if right.is_null().all():  # of no rows as well
        return found
    right_N, shadow_right_N = right.to_numpy(), problem.agree(_of_shadow(labelled), truth).to_numpy()
    return found | {
        "accuracy": round(float(right_N.mean()), 6),
        "challenger_accuracy": round(float(shadow_right_N.mean()), 6),
        "mcnemar": mcnemar(shadow_right_N, right_N),
    }


def right_where_labelled(
    rows: pl.DataFrame, labels: pl.DataFrame, signature: Signature, problem: Problem
) -> NDArray[np.float64]:
    """1 where a label says that the answer is right, 0 where it is wrong, NaN where nobody has said so, or can: by row.

    `labels` has `id` and `label_json`. A label that the model does not have says nothing.
    """
    labelled = rows.join(labels, on="id", maintain_order="left")
    truth = targets(labelled, problem)
    known = _known(truth, signature, problem)
    agreed = problem.agree(labelled.filter(known), truth.filter(known)).cast(pl.Float64)
    said = pl.DataFrame({"id": labelled.filter(known)["id"], "right": agreed})
    return (
        rows.select("id").join(said, on="id", how="left", maintain_order="left")["right"].fill_null(np.nan).to_numpy()
    )


def _of_shadow(rows: pl.DataFrame) -> pl.DataFrame:
    """The challenger's answers, under their own names."""
    return rows.select(pl.col("^shadow\\..*$").name.map(lambda name: name.removeprefix("shadow.")))


def targets(labelled: pl.DataFrame, problem: Problem) -> pl.DataFrame:
    """The rows as the problem judges them: `id`, the inputs that are there, and what `label_json` says was right.

    Null where it says nothing that the column could hold.
    """
    inputs = [name for name in problem.inputs if name in labelled.columns]
    said = read_labels(labelled["label_json"], targets_of(problem.columns, problem.inputs))
    return pl.concat([labelled.select("id", *inputs), said], how="horizontal")


def _known(truth: pl.DataFrame, signature: Signature, problem: Problem) -> pl.Series:
    """Which rows have a label, and one that the model can give."""
    targets = targets_of(problem.columns, problem.inputs)
    if not targets:  # all of nothing has no length
        return pl.repeat(False, len(truth), dtype=pl.Boolean, eager=True)
    whole = truth.select(pl.all_horizontal(pl.col(name).is_not_null() for name in targets)).to_series()
    if problem.label is None or "labels" not in signature:
        return whole
    is_known = pl.element().is_in(list(signature["labels"]))
    return whole & label_lists(truth[problem.label], problem).list.eval(is_known).list.all().fill_null(value=False)


def _changed(now: Mapping[str, float | None], then: Mapping[str, float | None], problem: Problem) -> str | None:
    ends = [found.get(end) for found in (now, then) for end in ("low", "high")]
    if any(end is None for end in ends):
        return None
    now_low, now_high, then_low, then_high = (float(np.float64(end)) for end in ends if end is not None)
    if now_low <= then_high and then_low <= now_high:
        return "no difference"
    return "better" if (now_low > then_high) == problem.higher_is_better[problem.headline] else "worse"
