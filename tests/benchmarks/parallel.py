"""What running stages at once costs and gains: locks, the critical path, two models side by side.

    python -m tests.benchmarks.parallel [--rounds 50] [--seconds 4] [--only rounds|path|models]

Stages of a toy repository that only wait, run by `mill run` in a process of its own, with a Prefect server running (one
is started where PREFECT_API_URL names none). Exits with 1 where a limit is not kept.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

REPOSITORY = Path(__file__).parent.parent.parent

NUM_STAGES = 12
MAX_SHARE, MAX_SECONDS = 1.15, 3.0  # of the critical path, and beside it

# A model's line of four stages, beside a list of code that both wait for.
LINES = """stages:
  code:
    cmd: sleep {0}; echo code > code.txt
    outs: [code.txt]
  collect:
    foreach: ${{models}}
    do:
      cmd: sleep {0}; echo ${{key}} > collect-${{key}}.txt
      deps: [code.txt]
      outs: ["collect-${{key}}.txt"]
  train:
    foreach: ${{models}}
    do:
      cmd: sleep {0}; echo ${{key}} > train-${{key}}.txt
      deps: ["collect-${{key}}.txt"]
      outs: ["train-${{key}}.txt"]
  evaluate:
    foreach: ${{models}}
    do:
      cmd: sleep {0}; echo ${{key}} > evaluate-${{key}}.txt
      deps: ["train-${{key}}.txt"]
      outs: ["evaluate-${{key}}.txt"]
"""
DEPTH = 4  # stages that wait for one another


def main() -> int:
    """Print the figures; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=4, help="what each stage of the critical path waits")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=("rounds", "path", "models"))
    asked = parser.parse_args()
    kept = []
    with _server() as api, tempfile.TemporaryDirectory() as name:
        env = {**os.environ, "PREFECT_API_URL": api, "PYTHONPATH": str(REPOSITORY)}
        if asked.only in (None, "path"):
            kept.append(_critical_path(Path(name) / "path", env, asked.seconds, asked.runs))
        if asked.only in (None, "models"):
            kept.append(_two_models(Path(name) / "models", env, asked.seconds, asked.runs))
        if asked.only in (None, "rounds"):
            kept.append(_rounds(Path(name) / "rounds", env, asked.rounds))
    return 0 if all(kept) else 1


def _critical_path(root: Path, env: dict[str, str], seconds: float, runs: int) -> bool:
    """One line whose stages wait for one another, as often as `runs`; the worst of them counts."""
    walls = [_run(_make(root / str(number), LINES.format(seconds), ["one"]), env) for number in range(runs)]
    limit = MAX_SHARE * DEPTH * seconds + MAX_SECONDS
    print(f"critical path {DEPTH * seconds:.1f} s: {_all(walls)} s, limit {limit:.1f} s")
    return max(walls) <= limit


def _two_models(root: Path, env: dict[str, str], seconds: float, runs: int) -> bool:
    """Two models in one run, and the same two in one run each."""
    together, apart = [], []
    for number in range(runs):
        both = _make(root / f"{number}-together", LINES.format(seconds), ["one", "two"])
        together.append(_run(both, env))
        each = _make(root / f"{number}-apart", LINES.format(seconds), ["one", "two"])
        apart.append(sum(_run(each, env, model) for model in ("one", "two")))
    print(f"two models side by side {_all(together)} s, one after the other {_all(apart)} s")
    return max(together) < min(apart)


def _rounds(root: Path, env: dict[str, str], rounds: int) -> bool:
    """Independent stages all at once, again and again, in one process."""
    stages = "".join(
        f"  s{number}:\n    cmd: sleep 0.{1 + number % 9}; echo {number} > s{number}.txt\n    outs: [s{number}.txt]\n"
        for number in range(NUM_STAGES)
    )
    _make(root, f"stages:\n{stages}", ["one"])
    started = time.monotonic()
    code = f"from tests.benchmarks.parallel import run_rounds; run_rounds({rounds})"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-3000:])
        return False
    failed = int(done.stdout.split()[-1])
    seconds = (time.monotonic() - started) / rounds
    begun = rounds * NUM_STAGES
    print(f"{NUM_STAGES} stages at once, {rounds} rounds: {failed} failures of {begun}, {seconds:.1f} s a round")
    status = subprocess.run([sys.executable, "-m", "dvc", "status", "-q"], cwd=root, env=env, check=False)
    return failed == 0 and status.returncode == 0


def run_rounds(rounds: int) -> None:
    """Run all stages of the repository here as often, and print how many stages did not run through."""
    from flows.line import run_line
    from flows.params import LineParams

    params = LineParams(jobs=NUM_STAGES, lock_wait_minutes=1, collect_retries=0, collect_retry_seconds=0)
    names = [f"s{number}" for number in range(NUM_STAGES)]
    failed = 0
    for _ in range(rounds):
        ended = run_line(Path(), [], known=["one"], params=params, force=names)
        failed += NUM_STAGES - sum(result.outcome == "ran" for result in ended.results.values())
    print(failed)


def _run(root: Path, env: dict[str, str], *models: str) -> float:
    """How long `mill run` takes, as a person waits for it. There is no release at the end, which it says."""
    command = [sys.executable, "-m", "flows.cli", "run", "--jobs", str(NUM_STAGES), *models]
    started = time.monotonic()
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if "evaluate" not in done.stdout or " failed" in done.stderr:
        raise SystemExit(done.stdout + done.stderr)
    return seconds


def _make(root: Path, dvc_yaml: str, models: list[str]) -> Path:
    root.mkdir(parents=True)
    (root / "dvc.yaml").write_text(dvc_yaml)
    shipped = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())
    shipped["flows"]["models"] = dict.fromkeys(models, shipped["flows"]["models"]["reviews"])
    shipped["models"] = dict.fromkeys(models, shipped["models"]["reviews"])
    (root / "params.yaml").write_text(json.dumps(shipped))
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=root, check=True)
    return root


def _all(seconds: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in seconds)


@contextmanager
def _server() -> Iterator[str]:
    """The API of the Prefect server that the environment names, else of one started for this."""
    if os.environ.get("PREFECT_API_URL"):
        yield os.environ["PREFECT_API_URL"]
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        env: dict[str, Any] = {**os.environ, "PREFECT_HOME": home, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
        server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        api = f"http://127.0.0.1:{port}/api"
        try:
            _wait_for(api)
            yield api
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def _wait_for(api: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{api}/health", timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("Prefect's server did not start.")


if __name__ == "__main__":
    sys.exit(main())
