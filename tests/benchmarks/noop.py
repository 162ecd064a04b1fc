"""`dvc repro` with nothing to do: this project's line beside an empty DVC pipeline of as many stages.

    python -m tests.benchmarks.noop [--runs 7]

The line has to be up to date (`make run`). The two commands run in turn, so that both meet the same machine.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    num_stages = len(_dvc(Path(), "stage", "list", "--name-only").splitlines())
    with tempfile.TemporaryDirectory() as name:
        empty = Path(name)
        _make_empty(empty, num_stages)
        seconds: dict[str, list[float]] = {"line": [], "empty": []}
        for _ in range(runs + 1):  # the first of each warms the disk's cache
            for label, folder in (("line", Path()), ("empty", empty)):
                started = time.monotonic()
                said = _dvc(folder, "repro")
                seconds[label].append(time.monotonic() - started)
                if "up to date" not in said:
                    raise SystemExit(
                        f"The {label} had something to do, so this measures nothing. Run `dvc repro` first."
                    )
    medians = {label: statistics.median(times[1:]) for label, times in seconds.items()}
    for label, median in medians.items():
        print(f"{label:6} {median:6.2f} s  ({num_stages} stages, median of {runs})")
    print(f"ratio  {medians['line'] / medians['empty']:6.2f}")


def _make_empty(folder: Path, num_stages: int) -> None:
    """A chain of stages that each write one small file."""
    lines = ["stages:"]
    for number in range(num_stages):
        before = f", deps: [s{number - 1}.txt]" if number else ""
        lines.append(f"  s{number}: {{cmd: echo {number} > s{number}.txt{before}, outs: [s{number}.txt]}}")
    (folder / "dvc.yaml").write_text("\n".join(lines) + "\n")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    _dvc(folder, "init", "-q")
    _dvc(folder, "config", "core.analytics", "false")
    _dvc(folder, "repro", "-q")


def _dvc(folder: Path, *arguments: str) -> str:
    return subprocess.run(["dvc", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
