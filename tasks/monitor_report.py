"""A window as a report of Evidently: HTML, JSON, and a snapshot in a workspace that `evidently ui` shows.

Evidently gets the rows that the tests have looked at, and of those the columns alone that are watched: no texts, no
ids, and embeddings as their projection. It measures drift by this project's own figures and thresholds, so that both
say the same.
"""

import json
import math
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.descriptors import ANSWERS, CONFIDENCE
from tasks.drift import DISTANCE, Reference, Sample, kolmogorov_smirnov, rounded, total_variation
from tasks.monitor import Judged, Subject
from tasks.shards import write_json, write_text

if TYPE_CHECKING:
    import pandas as pd
    from evidently.core.container import MetricOrContainer
    from evidently.core.report import Snapshot
    from evidently.legacy.core import ColumnType

HTML, JSON = "evidently.html", "evidently.json"

_METHOD = "modelmill_shift"
_NAMESPACE = uuid.UUID("6f5c1f0e-0c3c-5a0e-9a53-8a2f6b3e7c10")
_LATENCY, _SURE, _RIGHT = "latency_ms", "probably_right", "right"


def make_report(
    subject: Subject,
    judged: Judged,
    latency_ms: Sequence[float],
    right: NDArray[np.float64],
    failures: Mapping[str, float] | None,
    name: str,
) -> "Snapshot":
    """The report of a window. `latency_ms` and `right` (1, 0, or NaN without a label) are of the rows looked at.

    `failures` of requests are the server's since the last look. Evidently measures columns of rows, and a request that
    failed has left none: so these go into the snapshot's metadata.
    """
    _import_evidently()
    from evidently import DataDefinition, Dataset, Report

    _register_method()
    kinds = {one.name: one.kind for one in subject.reference.watched}
    # Evidently refuses a column without any number, as that of a window to which nothing could be answered.
    current = {name: column for name, column in _columns(subject.reference, judged.sample).items() if _has_any(column)}
    held_out = _columns(subject.reference, subject.reference.sample)
    held_out = {name: column for name, column in held_out.items() if name in current}
    axes = [column for column in current if column.startswith("embedding_axis_")]
    measured = {
        _LATENCY: np.asarray(latency_ms, dtype=np.float64),
        **({_SURE: _surer(subject, judged)} if judged.record["estimate"] else {}),
        _RIGHT: right,
        **{fault: judged.faults[fault].cast(pl.Float64).to_numpy() for fault in judged.faults.columns},
    }
    numbers = [column for column in current if kinds.get(column, "number") == "number"]
    definition = DataDefinition(
        numerical_columns=[*numbers, *measured],
        categorical_columns=[column for column in current if kinds.get(column) == "category"],
    )
    metrics = [*_metrics(judged, subject, set(current) - set(axes), axes), *_measures(measured)]
    record = judged.record
    last = datetime.fromtimestamp(record["last"]["at_us"] / 1e6, tz=UTC).replace(tzinfo=None)
    with warnings.catch_warnings():
        # The reference has no latencies, and Evidently divides by how many there are.
        warnings.simplefilter("ignore", RuntimeWarning)
        return Report(metrics, include_tests=True).run(
            Dataset.from_pandas(_frame(current, measured), definition),
            Dataset.from_pandas(_frame(held_out, dict.fromkeys(measured, np.array([]))), definition),
            timestamp=last,
            name=name,
            tags=[record["verdict"], record["version"]],
            metadata={
                **{key: str(record[key]) for key in ("version", "verdict", "streak", "rows", "looked_at")},
                "labels": str(int(np.isfinite(right).sum())),
                **{f"since_last_look_{key}": f"{value:g}" for key, value in (failures or {}).items()},
            },
        )


def save_report(snapshot: "Snapshot", folder: Path) -> None:
    """The report's page and its figures, these with the metadata."""
    write_text(folder / HTML, snapshot.get_html_str(as_iframe=False))
    figures = json.loads(snapshot.json()) | {"metadata": dict(snapshot.to_snapshot_model().metadata)}
    write_json(folder / JSON, _without_nan(figures))


def keep_snapshot(
    snapshot: "Snapshot", workspace: Path, model: str, number: int, tests: Sequence[Mapping[str, Any]]
) -> None:
    """Put it into the workspace, as the same run however often it is put there: a killed monitor does it again.

    The model's dashboard there begins with the `tests` of its first window.
    """
    _import_evidently()
    from evidently.sdk.models import ProjectModel
    from evidently.ui.workspace import Workspace

    workspace.mkdir(parents=True, exist_ok=True)
    store = Workspace.create(str(workspace))
    project = _project_of(model)
    if store.get_project(project) is None:
        store.add_project(
            ProjectModel(id=project, name=model, description=f"What {model} was asked, window by window.")
        )
        _add_panels(store, project, {test["name"]: test["family"] for test in tests})
    store.state.write_snapshot(project, _snapshot_of(model, number), snapshot.to_snapshot_model())


def drop_snapshot(workspace: Path, model: str, number: int) -> None:
    """Take a window out of the workspace; one that is not there is no mistake."""
    _import_evidently()
    from evidently.ui.workspace import Workspace

    Workspace.create(str(workspace)).delete_run(_project_of(model), _snapshot_of(model, number))


def _project_of(model: str) -> uuid.UUID:
    return uuid.uuid5(_NAMESPACE, model)


def _snapshot_of(model: str, number: int) -> uuid.UUID:
    return uuid.uuid5(_NAMESPACE, f"{model} {number}")


def _import_evidently() -> None:
    """Load it, which takes seconds, and its server with it, without what that complains of in its own dependencies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import evidently.ui.workspace  # noqa: F401


def _metrics(judged: Judged, subject: Subject, columns: set[str], axes: list[str]) -> Iterator["MetricOrContainer"]:
    # Only drift is tested: that a window has not as many rows as the reference is no failure.
    from evidently.metrics import (
        DriftedColumnsCount,
        OutRangeValueCount,
        RowCount,
        ValueDrift,
    )

    thresholds = {test["name"]: _least_drift(test) for test in judged.record["tests"]}
    yield RowCount(tests=[])
    for test in judged.record["tests"]:
        if test["name"] in columns:
            yield ValueDrift(column=test["name"], method=_METHOD, threshold=thresholds[test["name"]])
    if axes:
        yield DriftedColumnsCount(
            columns=axes, method=_METHOD, threshold=thresholds[DISTANCE], drift_share=0.5, tests=[]
        )
    for test in judged.record["tests"]:
        if test["kind"] == "number" and test["family"] == "inputs":
            held_out = subject.reference.sample.columns[test["name"]]
            low, high = float(held_out.min()), float(held_out.max())
            yield OutRangeValueCount(column=test["name"], left=low, right=high, tests=[])


def _measures(measured: Mapping[str, Any]) -> Iterator["MetricOrContainer"]:
    from evidently.metrics import InRangeValueCount, MeanValue, QuantileValue

    for quantile in (0.5, 0.99):
        yield QuantileValue(column=_LATENCY, quantile=quantile, tests=[])
    # How many labels the share of right answers rests on: the values that are there.
    yield InRangeValueCount(column=_RIGHT, left=0, right=1, tests=[])
    for name in measured:
        if name != _LATENCY and np.isfinite(measured[name]).any():
            yield MeanValue(column=name, tests=[])


def _least_drift(test: Mapping[str, Any]) -> float:
    """The smallest figure of six decimals that is drift."""
    return float(max(test["threshold"], test["chance"] + 1e-6))


def _has_any(column: NDArray[Any]) -> bool:
    return column.dtype == object or bool(np.isfinite(column).any())


def _columns(reference: Reference, sample: Sample) -> dict[str, NDArray[Any]]:
    """What is watched, and each axis of the projection, by name. Kinds have their names."""
    columns: dict[str, NDArray[Any]] = {}
    for one in reference.watched:
        if one.name not in sample.columns:
            continue
        column = sample.columns[one.name]
        if one.kind == "category":
            columns[one.name] = np.array([*reference.kinds[one.name], "(others)"], dtype=object)[column]
        else:
            columns[one.name] = np.where(np.isfinite(column), column, np.nan)
    if sample.embedding is not None:
        for number, axis in enumerate(sample.embedding.T, 1):
            columns[f"embedding_axis_{number:02}"] = axis
    return columns


def _frame(columns: Mapping[str, NDArray[Any]], measured: Mapping[str, NDArray[Any]]) -> "pd.DataFrame":
    """A frame of columns that may be of unlike lengths: what is missing of one is NaN."""
    import pandas as pd

    return pd.concat([pd.Series(column, name=name) for name, column in {**columns, **measured}.items()], axis=1)


def _surer(subject: Subject, judged: Judged) -> NDArray[np.float64]:
    accuracy = judged.record["estimate"]["at_release"]["value"]
    threshold = np.quantile(subject.held_out["probability"].to_numpy(), 1 - accuracy, method="higher")
    return np.asarray(judged.described["probability"].to_numpy() >= threshold, dtype=np.float64)


def _register_method() -> None:
    """Make the figures of tasks/drift.py a method of Evidently's, by name."""
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    register_stattest(
        StatTest(
            name=_METHOD,
            display_name="share of rows that would have to be others, at least",
            allowed_feature_types=[ColumnType.Numerical, ColumnType.Categorical],
        ),
        _shift,
    )


def _shift(
    reference: "pd.Series[Any]", current: "pd.Series[Any]", kind: "ColumnType", threshold: float
) -> tuple[float, bool]:
    from evidently.legacy.core import ColumnType

    if kind == ColumnType.Numerical:
        figure = kolmogorov_smirnov(current.to_numpy(dtype=np.float64), reference.to_numpy(dtype=np.float64))
    else:
        places = {name: place for place, name in enumerate(sorted({*reference.unique(), *current.unique()}))}
        figure = total_variation(current.map(places).to_numpy(), reference.map(places).to_numpy())
    figure = float(rounded(figure))
    return figure, figure >= threshold


def _add_panels(store: Any, project: uuid.UUID, families: Mapping[str, str]) -> None:
    from evidently.sdk.models import DashboardPanelPlot, PanelMetric

    def panel(title: str, subtitle: str, metric: str, **labels: str) -> DashboardPanelPlot:
        return DashboardPanelPlot(
            title=title,
            subtitle=subtitle,
            size="half",
            values=[PanelMetric(legend=title, metric=metric, metric_labels=labels)],
            plot_params={"plot_type": "line"},
        )

    dashboard = store.get_project(project).dashboard
    dashboard.add_panel(panel("Predictions", "in each window", "RowCount"))
    if DISTANCE in families:
        dashboard.add_panel(panel("Embedding", "distance from the reference's middle", "ValueDrift", column=DISTANCE))
    for title, about in (("Confidence", CONFIDENCE), ("Answers", ANSWERS)):
        for name in (name for name, family in families.items() if family == about):
            dashboard.add_panel(panel(f"{title}: {name}", "shift", "ValueDrift", column=name))


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(inside) for key, inside in value.items()}
    return [_without_nan(inside) for inside in value] if isinstance(value, list) else value
