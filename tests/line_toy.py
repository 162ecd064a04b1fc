"""Small DVC repositories whose stages are shell commands, run by the line and by `dvc repro`."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.flow_run import Ended
from flows.line import run_line
from flows.params import LineParams
from tasks.shards import write_text

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
