"""`mill versions` and `mill show`: what the tags, the commits and the releases say of a model's versions.

All of it is read from Git and from DVC's objects: no server runs, and nothing is checked out.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.git import attempt, check_history, git
from flows.lineage import outputs_at
from flows.marks import marks
from flows.objects import objects_of
from flows.promotion import Wanted, find_wanted
from flows.registry import RegistryError, champion, decisions, models_with_versions, spoken, told_at, versions
from flows.store import version_folder
from flows.tags import Tag, promotions
from flows.worktree import home_of
from tasks.errors import DataError, ParamsError, did_you_mean
from tasks.params import load
from tasks.paths import Paths
from tasks.shards import MANIFEST, read_json

CHAMPION, WAS_CHAMPION, REGISTERED = "champion", "was champion", "registered"
REFUSED, KEPT_OUT, ASKS = "refused", "kept out", "asks a person"

_WIDTH = 120


@dataclass(frozen=True)
class Row:
    """A version, or a challenger that became none, as the table has it."""

    name: str
    when: datetime
    metric: Mapping[str, Any] | None
    stage: str
    why: str


def print_versions(root: Path, model: str | None) -> None:
    """Print a table for each model, the newest first, with the challengers that became no version among them."""
    home = _home(root)
    for number, name in enumerate(_chosen(home, model)):
        rows = rows_of(home, name)
        print("\n" * (number > 0), end="")
        if rows:
            _print_table(name, rows)
        else:
            print(f"{name} has no version yet. `mill retrain {name}` makes one.")


def rows_of(root: Path, model: str) -> list[Row]:
    """The versions of a model, and what was decided against or not yet, the newest first."""
    now, marked, moves = champion(root, model), marks(root, model), promotions(root, model)
    found, registered = [], set()
    for version in versions(root, model):
        registered.add(version.release)
        own = [move for move in moves if move.commit == version.commit]
        stage = CHAMPION if version == now else WAS_CHAMPION if own else REGISTERED
        said = [_why(own[-1]) if own else version.why, marked[version.tag].sentence if version.tag in marked else ""]
        found.append(Row(version.tag, version.when, version.metric, stage, " ".join(filter(None, said))))
    for decision in decisions(root, model):
        if decision.get("challenger") not in registered:
            found.append(_undecided(root, model, decision))
    return sorted(found, key=lambda row: row.when, reverse=True)


def print_version(root: Path, name: str) -> None:
    """Print where a version, or a release by its hash, comes from. Raises RegistryError where there is none."""
    home = _home(root)
    wanted = find_wanted(home, name)
    manifest = manifest_of(home, wanted)
    sections = [
        ("", _heading(home, wanted)),
        ("Commit", _commit(home, wanted.commit)),
        ("Metrics", _metrics(home, wanted, manifest)),
        ("Gate", _gate(home, wanted)),
        ("Parameters", _yaml(manifest.get("parameters"))),
        ("Data", list(_data(manifest))),
        ("Packages", [f"{package} {number}" for package, number in sorted(manifest.get("packages", {}).items())]),
    ]
    for title, lines in sections:
        if title:
            print(f"\n{title}")
        for line in lines or [_not_to_be_had(wanted)]:
            print(f"  {line}" if title else line)


def manifest_of(home: Path, wanted: Wanted) -> Mapping[str, Any]:
    """What a release says of itself: from the version store, DVC's cache or a remote; empty where none has it."""
    stored = version_folder(home, wanted.model, wanted.release) / MANIFEST
    found: Any = {}
    try:
        found = read_json(stored)
    except DataError:
        oid = outputs_at(home, wanted.commit, wanted.model).get(Paths(wanted.model).release.as_posix())
        with objects_of(home) as objects:
            files = (objects.files(oid) if oid else None) or {}
            content = objects.read(files[MANIFEST]) if MANIFEST in files else None
        found = json.loads(content) if content else {}
    return found if isinstance(found, dict) else {}


def _home(root: Path) -> Path:
    if attempt(root, "rev-parse", "--git-dir").returncode:
        raise RegistryError(f"{root.resolve()} is no Git repository, and versions are tags of one.")
    check_history(root)
    return home_of(root)


def _chosen(home: Path, model: str | None) -> list[str]:
    known = models_with_versions(home)
    try:
        known = list(dict.fromkeys([*load(home / "params.yaml").models, *known]))
    except ParamsError:
        if not known:  # else what the tags say can be shown, whatever is being written there
            raise
    if model is None:
        return known
    if model not in known:
        raise RegistryError(f"There is no model {model!r}.{did_you_mean(model, known)} Known: {', '.join(known)}.")
    return [model]


def _undecided(root: Path, model: str, decision: Mapping[str, Any]) -> Row:
    """A challenger that is no version."""
    told = told_at(root, decision["commit"], model)
    headline = told.get("headline")
    metric = {"name": headline["metric"], **headline} if headline else None
    stage = REFUSED if told.get("verdict") == "refused" else KEPT_OUT if decision["verdict"] == "keep" else ASKS
    return Row(decision.get("challenger", ""), decision["when"], metric, stage, decision["sentence"])


def _why(promotion: Tag) -> str:
    facts = promotion.facts
    how = "rollback: " if facts.get("rollback") else "forced: " if facts.get("overrides") else ""
    return f"{how}{facts.get('why') or promotion.sentence}"


def _print_table(model: str, rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=model, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in ("version", "when", "metric", "stage"):
        table.add_column(header, no_wrap=True)
    table.add_column("why", overflow="fold")
    for row in rows:
        metric = spoken(row.metric) if row.metric else ""
        table.add_row(row.name, _minute(row.when), metric, row.stage, row.why)
    Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False, markup=False).print(table)


def _minute(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _heading(home: Path, wanted: Wanted) -> list[str]:
    version, now = wanted.version, champion(home, wanted.model)
    if version is None:
        return [f"{wanted.release} of {wanted.model}, no version"]
    in_use = ", the champion" if version == now else ""
    lines = [
        f"{version.tag}, {version.release}{in_use}",
        f"registered {_minute(version.when)} UTC: {version.why or 'no reason was given'}",
    ]
    own = (move for move in promotions(home, wanted.model) if move.commit == version.commit)
    lines += [f"{move.name} {_minute(move.when)} UTC: {_why(move)}" for move in own]
    mark = marks(home, wanted.model).get(version.tag)
    return [*lines, mark.sentence] if mark else lines


def _commit(home: Path, commit: str) -> list[str]:
    subject, author, when = git(home, "log", "-1", "--format=%s%x00%an%x00%cI", commit).split("\0")
    return [commit, f"{when}, {author}", subject]


def _metrics(home: Path, wanted: Wanted, manifest: Mapping[str, Any]) -> list[str]:
    metrics = manifest.get("metrics")
    if not metrics:
        headline = told_at(home, wanted.commit, wanted.model).get("headline")
        return [spoken({"name": headline["metric"], **headline})] if headline else []
    verdict = [f"{manifest['verdict']}: {' '.join(manifest['reasons']) or 'every floor is kept'}"]
    first = manifest["headline"]
    names = [first, *(name for name in sorted(metrics) if name != first)]
    return verdict + [spoken({"name": name, **metrics[name]}) for name in names]


def _gate(home: Path, wanted: Wanted) -> list[str]:
    found = [one for one in decisions(home, wanted.model) if one.get("challenger") == wanted.release]
    lines = []
    for one in found:
        against = f"against {one['champion']}" if one.get("champion") else "with no champion to beat"
        lines.append(f"{one['tag']} {_minute(one['when'])} UTC, {against}: {one['verdict']}. {one['sentence']}")
        report = f"{one['commit'][:10]}:{(Paths(wanted.model).reports / 'gate.json').as_posix()}"
        shown = attempt(home, "show", report)
        if not shown.returncode:
            lines += [*_compared(json.loads(shown.stdout)), f"its report: git show {report}"]
    return lines or ["It was not asked."]


def _compared(report: Mapping[str, Any]) -> Iterator[str]:
    """What the gate measured, in a few lines; none where there was no champion to compare with."""
    from tasks.pages import figure, p_value, with_sign, words

    found = report.get("comparison")
    if not found:
        return
    difference, test_set = found["difference"], report["test_set"]
    yield (
        f"{words(report['metric'])} {figure(found['challenger'])} against {figure(found['champion'])}: "
        f"{with_sign(difference['value'])} ({found['confidence']:.2%} interval {with_sign(difference['low'])} to "
        f"{with_sign(difference['high'])}) on {found['rows']:,} rows"
    )
    yield (
        f"better: p {p_value(found['superiority']['p_value'])}; within the margin: p "
        f"{p_value(found['margin']['p_value'])}; {found['level']:g} is needed, use {test_set['uses_before'] + 1} of "
        f"{test_set['uses']} of the test set {test_set['name']}"
    )


def _yaml(parameters: Mapping[str, Any] | None) -> list[str]:
    from dvc.utils.serialize import dumps_yaml

    return str(dumps_yaml(parameters)).splitlines() if parameters else []


def _data(manifest: Mapping[str, Any]) -> Iterator[str]:
    for stage, told in manifest.get("data", {}).items():
        rows = sum(shard["rows"] for shard in told["shards"].values())
        yield f"{stage}: {rows:,} rows, its manifest {told['manifest_sha256']}"
        for name, shard in told["shards"].items():
            yield f"  {name}  {shard['rows']:,} rows  {shard['sha256']}"


def _not_to_be_had(wanted: Wanted) -> str:
    return (
        "The release's manifest says it, and neither the version store nor DVC's cache and remotes have that of "
        f"{wanted.release}. `git show {wanted.commit[:10]}:params.yaml` has the parameters."
    )
