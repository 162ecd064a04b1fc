"""`mill run`: bring lines up to date with DVC, put accepted releases in use, and say what came of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.index import build_index
from flows.store import current, put_in_use
from flows.tally import Step, steps
from tasks import problems
from tasks.deploy import check_floors
from tasks.errors import MillError
from tasks.params import load, load_model
from tasks.paths import STAGES, Paths
from tasks.release import read_release

DONE, FAILED, REFUSED = 0, 1, 3


def run(models: Sequence[str]) -> int:
    """Bring the models' lines up to date, all of params.yaml without any. The exit code: 0, 1 failed, 3 refused.

    A line that fails stops no other one.
    """
    names = list(dict.fromkeys(models)) or list(load().models)
    for name in names:
        _check_floors(name)
    codes = [_run_one(Paths(name)) for name in names]
    return FAILED if FAILED in codes else max(codes)


def _check_floors(name: str) -> None:
    """Find a misspelt floor now, and not after the training that it would waste."""
    params = load_model(name)
    problem = problems.load(params.problem)
    check_floors({floor.partition("[")[0] for floor in params.deploy.floors}, problem.higher_is_better, problem)


def _run_one(paths: Paths) -> int:
    before = _ran_at(paths)
    started = time.monotonic()
    whole = _reproduce(f"{STAGES[-1]}@{paths.model}")
    seconds = time.monotonic() - started
    try:
        code, said = _settle(paths) if whole else _failed(paths)
    except MillError as error:
        code, said = FAILED, str(error)
    page = build_index(Path())
    after = _ran_at(paths)
    _print_table(paths.model, steps(paths), {stage for stage in STAGES if after[stage] != before[stage]}, seconds)
    print(f"\n{said}\nLook at {page}.", flush=True)
    return code


def _reproduce(stage: str) -> bool:
    """Let DVC bring a stage and all before it up to date, in a process group of its own; True where it did.

    An interruption is passed on once to the whole group and waited for, so that the stage ends in its own way. Where
    this process is killed, the group is interrupted as well.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    # For Ctrl-C as well: under the handler that Polars installs, waiting is not interrupted. Before anything is
    # started, since what a shell put into the background ignores SIGINT, and would hand that down.
    former = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    # The group's leader waits for the end of a pipe that this process alone holds open, and then interrupts the group;
    # SIGTERM would leave DVC's lock behind.
    guard = subprocess.Popen(["sh", "-c", "trap '' INT; read _; kill -INT 0"], stdin=subprocess.PIPE, process_group=0)
    # Its own group may not read the terminal, so it gets no input.
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", stage],
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        process_group=guard.pid,
    )
    try:
        return process.wait() == 0
    except KeyboardInterrupt:
        os.killpg(guard.pid, signal.SIGINT)
        process.wait()
        raise
    finally:
        guard.kill()
        guard.communicate()
        for number, handler in former.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _ran_at(paths: Paths) -> dict[str, int | None]:
    """When each stage last ran: it writes what it took as the last thing it does."""
    files = {stage: paths.measured(stage) for stage in STAGES}
    return {stage: file.stat().st_mtime_ns if file.exists() else None for stage, file in files.items()}


def _settle(paths: Paths) -> tuple[int, str]:
    """Put an accepted release in use. The exit code and what to say: the verdict, and why it was refused."""
    release = read_release(paths.release)
    metric = release.manifest["headline"]
    headline = f"{metric} {_spoken(release.manifest['metrics'][metric])}"
    if release.accepted:
        put_in_use(paths.model)
        return DONE, f"{paths.model} {release.version} is accepted and in use: {headline}."
    reasons = "\n".join(f"  {reason}" for reason in release.reasons)
    return REFUSED, f"{paths.model} {release.version} is refused: {headline}.\n{reasons}\n{_in_use(paths.model)}"


def _failed(paths: Paths) -> tuple[int, str]:
    stages = _stale(paths.model)
    where = f"stopped at {stages[0]}" if stages else "did not run"
    return FAILED, f"{paths.model} {where}; the reason stands above. {_in_use(paths.model)}"


def _stale(model: str) -> list[str]:
    """The stages that DVC would run next, in their order; none where DVC itself does not work."""
    command = [sys.executable, "-m", "dvc", "status", "--json", "--with-deps", f"{STAGES[-1]}@{model}"]
    answer = subprocess.run(command, capture_output=True, check=False)
    try:
        return [stage for stage in STAGES if f"{stage}@{model}" in json.loads(answer.stdout)]
    except ValueError:
        return []


def _in_use(model: str) -> str:
    try:
        live = current(model)
    except MillError as error:
        return str(error)
    return f"The version in use is still {live.version}." if live else "No version is in use yet."


def _spoken(figures: Mapping[str, float | None]) -> str:
    if figures["value"] is None:
        return "undefined"
    return f"{figures['value']:.3f} ({figures['low']:.3f} to {figures['high']:.3f})"


def _print_table(model: str, found: Sequence[Step], ran: set[str], seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{model}, {seconds:.0f} s", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for header in ("stage", "time", "rows in", "rows out", "where to look"):
        table.add_column(header, justify="left" if header in ("stage", "where to look") else "right", overflow="fold")
    for step in found:
        took = "up to date" if step.stage not in ran else "" if step.seconds is None else f"{step.seconds:.1f} s"
        table.add_row(step.stage, took, _count(step.rows_in), _count(step.rows_out), str(step.look or ""))
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    console.print()
    console.print(table)


def _count(rows: int | None) -> str:
    return "" if rows is None else f"{rows:,}"
