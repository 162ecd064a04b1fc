"""What stands beside the windows of a version in use: late labels, a challenger in its shadow, failed requests."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.params import load_flows
from flows.server import url_of
from flows.up import running
from tasks.monitor import Subject
from tasks.quality import compared_shadow, measured_quality, selection
from tasks.windows import Windows

# The newest ones are measured: older labels say less of now.
_MOST_LABELS = 5_000
_MOST_SHADOWS = 20_000
_ANSWER_SECONDS = 2


@dataclass(frozen=True)
class Findings:
    """All that is known of a version in use apart from its windows."""

    num_labels: int
    quality: Mapping[str, Any]
    selection: Mapping[str, float] | None
    shadow: Mapping[str, Any] | None
    failures: Mapping[str, float] | None  # requests since the last look; tasks/health.py


def find(
    journal: Windows,
    subject: Subject,
    failures: Mapping[str, float] | None,
    last: Mapping[str, Any] | None,
) -> Findings:
    """Ask the journal."""
    problem, signature = subject.runtime.problem, subject.runtime.signature
    labelled = journal.labelled(subject.version, subject.inputs, subject.answer, _MOST_LABELS)
    shadows = journal.shadows(subject.version, subject.answer, _MOST_SHADOWS)
    return Findings(
        num_labels=journal.num_labelled(subject.version),
        quality=measured_quality(labelled, signature, problem, subject.evaluate, subject.release.manifest["metrics"]),
        selection=selection(labelled, last["mean_confidence"] if last else None),
        shadow=compared_shadow(shadows, signature, problem),
        failures=failures,
    )


@dataclass(frozen=True)
class Serving:
    """What the running server says of a model."""

    requests: Mapping[str, float]  # how many there have been, by how they ended
    version: str | None  # which answers; None where none does
    failed: bool  # whether another was to take over and could not


def serving_of(root: Path, model: str) -> Serving | None:
    """Ask the running server; None where none can be asked.

    Where keys are in use, MILL_KEY has to hold one with the scope admin.
    """
    import httpx
    from prometheus_client.parser import text_string_to_metric_families

    headers = {"Authorization": f"Bearer {os.environ['MILL_KEY']}"} if os.environ.get("MILL_KEY") else {}
    try:
        answer = httpx.get(f"{_address(root)}/metrics", headers=headers, timeout=_ANSWER_SECONDS)
        answer.raise_for_status()
        families = list(text_string_to_metric_families(answer.text))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):  # ValueError: somebody else's page, and no figures
        return None
    samples = [sample for family in families for sample in family.samples if sample.labels.get("model") == model]
    versions = [sample.labels["version"] for sample in samples if sample.name == "modelmill_version"]
    return Serving(
        {sample.labels["outcome"]: sample.value for sample in samples if sample.name == "modelmill_requests_total"},
        versions[0] if versions else None,
        any(sample.name == "modelmill_version_failed" for sample in samples),
    )


def _address(root: Path) -> str:
    here = _running(root)
    if here is not None:
        return here.rstrip("/")
    serving = load_flows(root / "params.yaml").serve
    return url_of(serving.host, serving.port)


def _running(root: Path) -> str | None:
    from flows.git import GitError

    try:
        found = running(root)
    except GitError:
        return None
    return found.serves if found is not None else None
