"""`mill run`: bring lines up to date as a flow of Prefect, put accepted releases in use, and say what came of it."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.flow_run import Ended
from flows.index import build_index
from flows.line import INTERRUPTED, run_line
from flows.merge import model_of_stage
from flows.params import load_flows
from flows.scheduling import Result
from flows.store import current, put_in_use
from flows.tally import Step, steps
from tasks import problems
from tasks.deploy import check_floors
from tasks.errors import MillError
from tasks.params import load, load_model
from tasks.paths import STAGES, Paths
from tasks.release import read_release

DONE, FAILED, REFUSED = 0, 1, 3


def run(models: Sequence[str], *, jobs: int | None = None, force: Sequence[str] = ()) -> int:
    """Bring the models' lines up to date, without models every stage there is. The exit code: 0, 1 failed, 3 refused.

    A stage that fails stops what depends on it, and nothing else. `jobs` is how many run at once, flows.line.jobs
    without; `force` names stages to run though they are up to date.
    """
    known, chosen = list(load().models), list(dict.fromkeys(models))
    for name in chosen or known:
        _check_floors(name)
    started = time.monotonic()
    ended = run_line(Path(), chosen, known=known, params=load_flows().line, jobs=jobs, force=force)
    if ended.why_stopped == INTERRUPTED:
        raise KeyboardInterrupt
    seconds = time.monotonic() - started
    concluded = {name: _conclude(Paths(name), _of_model(ended, name, known)) for name in chosen or known}
    page = build_index(Path())
    for name, (_, said) in concluded.items():
        _print_table(name, steps(Paths(name)), _of_model(ended, name, known), seconds)
        print(f"\n{said}")
    print(f"\n{_last_words(ended)}Look at {page}.", flush=True)
    return FAILED if ended.failed or ended.why_stopped else max(code for code, _ in concluded.values())


def _check_floors(name: str) -> None:
    """Find a misspelt floor now, and not after the training that it would waste."""
    params = load_model(name)
    problem = problems.load(params.problem)
    check_floors({floor.partition("[")[0] for floor in params.deploy.floors}, problem.higher_is_better, problem)


def _of_model(ended: Ended, model: str, known: Sequence[str]) -> dict[str, Result]:
    """The results of a model's stages, by the stage's name without the model's."""
    found = {address.rpartition(":")[2]: result for address, result in ended.results.items()}
    own = {name: result for name, result in found.items() if model_of_stage(name, known) == model}
    return {name.replace(f"@{model}", ""): result for name, result in own.items()}


def _conclude(paths: Paths, results: Mapping[str, Result]) -> tuple[int, str]:
    """The exit code of a model's line, and what to say of it; an accepted release is put in use."""
    bad = {stage: result for stage, result in results.items() if not result.is_good}
    said, code = "", DONE
    if STAGES[-1] not in bad:
        try:
            code, said = _settle(paths)
        except MillError as error:
            code, said = FAILED, str(error)
    if not bad:
        return code, said
    first = next((stage for stage, result in bad.items() if result.outcome == "failed"), next(iter(bad)))
    stopped = f"{paths.model} stopped at {first}. {bad[first].message}"
    return FAILED, f"{stopped}\n{said or _in_use(paths)}"


def _settle(paths: Paths) -> tuple[int, str]:
    """Put an accepted release in use. The exit code and what to say: the verdict, and why it was refused.

    Within `mill retrain`, which sets MILL_RETRAIN, nothing is put in use: it has a gate of its own.
    """
    release = read_release(paths.release)
    metric = release.manifest["headline"]
    headline = f"{metric} {_spoken(release.manifest['metrics'][metric])}"
    if release.accepted and os.environ.get("MILL_RETRAIN"):
        return DONE, f"{paths.model} {release.version} is accepted: {headline}."
    if release.accepted:
        used = put_in_use(paths.model)
        if used is not None and used.version == release.version:
            return DONE, f"{paths.model} {release.version} is accepted and in use: {headline}."
        stays = used.version if used else f"`mill promote {paths.model} --why '…'` brings it to this machine"
        return DONE, f"{paths.model} {release.version} is accepted: {headline}. The champion stays: {stays}."
    reasons = "\n".join(f"  {reason}" for reason in release.reasons)
    return REFUSED, f"{paths.model} {release.version} is refused: {headline}.\n{reasons}\n{_in_use(paths)}"


def _last_words(ended: Ended) -> str:
    """What the models' own sentences do not say: that the run was stopped, and what failed that is of no model."""
    words = [f"The run was stopped: {ended.why_stopped}.\n"] if ended.why_stopped else []
    words += [f"{result.message}\n" for result in ended.failed if "@" not in result.address]
    return "".join(words)


def _in_use(paths: Paths) -> str:
    try:
        live = current(paths.model)
    except MillError as error:
        return str(error)
    return f"The version in use is still {live.version}." if live else "No version is in use yet."


def _spoken(figures: Mapping[str, float | None]) -> str:
    if figures["value"] is None:
        return "undefined"
    return f"{figures['value']:.3f} ({figures['low']:.3f} to {figures['high']:.3f})"


def _print_table(model: str, found: Sequence[Step], results: Mapping[str, Result], seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{model}, {seconds:.0f} s", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for header in ("stage", "time", "rows in", "rows out", "where to look"):
        table.add_column(header, justify="left" if header in ("stage", "where to look") else "right", overflow="fold")
    for step in found:
        took = _took(results.get(step.stage), step.seconds)
        table.add_row(step.stage, took, _count(step.rows_in), _count(step.rows_out), str(step.look or ""))
    for stage in sorted(results.keys() - {step.stage for step in found}):  # those that people have added
        table.add_row(stage, _took(results[stage], None), "", "", "")
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    console.print()
    console.print(table)


def _took(result: Result | None, measured: float | None) -> str:
    """What a stage took, or what became of it where it did not run; as it says itself, where it does."""
    if result is None:
        return ""
    if result.outcome == "ran":
        return f"{result.seconds if measured is None else measured:.1f} s"
    return {"cached": "up to date", "restored": "from the run cache"}.get(result.outcome, result.outcome)


def _count(rows: int | None) -> str:
    return "" if rows is None else f"{rows:,}"
