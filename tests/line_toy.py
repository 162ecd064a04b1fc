"""Small DVC repositories whose stages are shell commands, run by the line and by `dvc repro`."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.flow_run import Ended
from flows.line import run_line
from flows.params import LineParams
from tasks.shards import write_text
from tests.conftest import REPOSITORY

BRANCHES = """
stages:
  collect:
    foreach: [one, two]
    do:
      cmd: echo rows of ${item}; cp raw-${item}.txt c-${item}.txt
      deps: ["raw-${item}.txt"]
      outs: ["c-${item}.txt"]
  clean:
    foreach: [one, two]
    do:
      cmd: sh clean.sh ${item}
      deps: ["c-${item}.txt"]
      outs: ["d-${item}.txt"]
  deploy:
    foreach: [one, two]
    do:
      cmd: cp d-${item}.txt e-${item}.txt
      deps: ["d-${item}.txt"]
      outs: ["e-${item}.txt"]
"""

CLEAN = """
echo cleaning $1
if [ -e slow ]; then sh -c 'echo $$ > pid; sleep 60'; fi
if [ -e broken-$1 ]; then seq 1 30; echo "no such column: text" >&2; exit 3; fi
cp c-$1.txt d-$1.txt
"""

# Runs the model `one` of the repository that is its argument, in a process of its own.
SCRIPT = """
import sys
from pathlib import Path
from tests import line_toy as toy
print(toy.outcomes(toy.line(Path(sys.argv[1]), ["one"])))
"""

PARAMS = LineParams(jobs=4, lock_wait_minutes=1, collect_retries=0, collect_retry_seconds=0)


def make(root: Path, files: Mapping[str, str]) -> Path:
    """A Git and DVC repository with these files, committed."""
    for name, text in files.items():
        write_text(root / name, text)
    write_text(root / ".dvc/config", "[core]\n    analytics = false\n    autostage = false\n")
    write_text(root / ".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "all"]):
        identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        subprocess.run(["git", *identity, *command], cwd=root, check=True)
    return root


@contextmanager
def standing_in(root: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(before)


def line(root: Path, models: Sequence[str] = (), *, params: LineParams = PARAMS, **how: Any) -> Ended:
    """What `mill run` does there."""
    with standing_in(root):
        return run_line(Path(), models, known=["one", "two"], params=params, **how)


def dvc(root: Path, *arguments: str) -> int:
    """What `dvc` does there; its exit code."""
    from dvc.cli import main

    with standing_in(root):
        return int(main(list(arguments)))


def outcomes(ended: Ended) -> dict[str, list[str]]:
    """The stages by what became of them."""
    found: dict[str, list[str]] = {}
    for address, result in sorted(ended.results.items()):
        found.setdefault(result.outcome, []).append(address)
    return found


def written(root: Path) -> dict[str, bytes]:
    """All that a run writes and Git or DVC keeps: locks, .dvc files, outputs; of .gitignore the lines, in any order."""
    found = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not {".git", ".dvc", ".mill"} & set(path.relative_to(root).parts)
    }
    ignored = {name: text.splitlines(keepends=True) for name, text in found.items() if "ignore" in name}
    return found | {name: b"".join(sorted(lines)) for name, lines in ignored.items()}


def recorded_runs(root: Path) -> set[str]:
    """The names of the entries in DVC's run cache: a hash of command and inputs, and one of the outputs."""
    runs = root / ".dvc/cache/runs"
    return {path.relative_to(runs).as_posix() for path in runs.rglob("*") if path.is_file()}


def twin(root: Path, other: Path) -> Path:
    return Path(shutil.copytree(root, other, symlinks=True))


def make_branches(root: Path) -> Path:
    """Two models of three stages each; `broken-one` and `slow` are files that change what `clean` does."""
    files = {"dvc.yaml": BRANCHES, "clean.sh": CLEAN, "raw-one.txt": "1\n", "raw-two.txt": "2\n"}
    return make(root, files)


def in_a_process(root: Path, **env: str | None) -> "subprocess.Popen[str]":
    """The line of the model `one` in a process of its own, which prints the outcomes; None takes a variable away."""
    around = {**os.environ, **env}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(root)],
        cwd=REPOSITORY,
        env={name: value for name, value in around.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_run(client: Any) -> Any:
    """The run of a line that began last; other tests' runs of other flows may be there yet."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    line = FlowFilter(name=FlowFilterName(any_=["line"]))
    return client.read_flow_runs(flow_filter=line, sort=FlowRunSort.START_TIME_DESC, limit=1)[0]


class Seen:
    """What Prefect shows of the last run of the line, which has this many tasks."""

    def __init__(self, num_tasks: int) -> None:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import (
            ArtifactFilter,
            ArtifactFilterFlowRunId,
            FlowRunFilter,
            FlowRunFilterId,
            LogFilter,
            LogFilterFlowRunId,
        )

        with get_client(sync_client=True) as client:
            self.run = last_run(client)
            run = FlowRunFilter(id=FlowRunFilterId(any_=[self.run.id]))
            # What happens to tasks is told by events, which the server writes down a moment later.
            until = time.monotonic() + 20
            while True:
                tasks = client.read_task_runs(flow_run_filter=run)
                num_ended = sum(bool(task.state and task.state.is_final()) for task in tasks)
                if num_ended == len(tasks) == num_tasks or time.monotonic() > until:
                    break
                time.sleep(0.2)
            self.tasks = {task.name: task for task in tasks}
            self.names = {task.id: task.name for task in tasks}
            logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self.run.id])), limit=200)
            self._logs = [(log.task_run_id, log.message) for log in logs]
            of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[self.run.id]))
            self.artifacts = {found.key: found for found in client.read_artifacts(artifact_filter=of_run)}

    @property
    def states(self) -> dict[str, str]:
        return {name: task.state.name for name, task in sorted(self.tasks.items())}

    def message(self, name: str) -> str:
        return str(self.tasks[name].state.message)

    def log(self, name: str) -> list[str]:
        return [message for task, message in self._logs if self.names.get(task) == name]

    def before(self, name: str) -> set[str]:
        """The stages from which the graph of the flow run has an edge to this one."""
        return {self.names[found.id] for found in self.tasks[name].task_inputs.get("wait_for", [])}
