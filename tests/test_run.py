"""`mill run` on a line of two commands: exit codes, what is put in use, and what is left when it is stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import store
from tasks import problems
from tasks.deploy import deploy
from tests.conftest import REPOSITORY, Line, tiny_params, write_params
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("served")

# The ends of a line, made of copies of finished work.
DVC_YAML = """
stages:
  collect:
    foreach: [tiny]
    do:
      cmd: sh collect.sh
      deps: [source]
      outs: [collected]
      metrics: [{reports/tiny/collect.json: {cache: false}}]
  deploy:
    foreach: [tiny]
    do:
      cmd: >-
        cp -r prepared models/tiny/release && cp deploy.json reports/tiny/deploy.json
        && echo '{"wall_seconds": 2.5}' > reports/tiny/measured/deploy.json
      deps: [collected, prepared]
      outs: [models/tiny/release]
      metrics: [{reports/tiny/deploy.json: {cache: false}}]
"""

COLLECT = """
grep -q broken source && { echo 'the source is broken' >&2; exit 1; }
grep -q slow source && { echo $$ > pid; touch started; sleep 60; }
cp source collected
echo '{"read": 10, "rows": 8}' > reports/tiny/collect.json
echo '{"wall_seconds": 1.5}' > reports/tiny/measured/collect.json
"""


@pytest.fixture
def line(released: Line, copied: Callable[[Line], Line]) -> Line:
    return copied(released)


@pytest.fixture
def repository(line: Line) -> Path:
    """A DVC repository whose line is two commands; the release at its end is a real one."""
    root = line.paths.root
    line.paths.release.rename(root / "prepared")
    line.paths.report("deploy").rename(root / "deploy.json")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "collect.sh").write_text(COLLECT)
    (root / "source").write_text("good")
    with_flows(root)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=root, env=around(), check=True)
    return root


def with_flows(root: Path) -> None:
    """Give params.yaml the flows of the shipped one, with no pause before `collect` is tried again."""
    from ruamel.yaml import YAML

    flows = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())["flows"]
    flows["line"] |= {"collect_retries": 1, "collect_retry_seconds": 0}
    flows["models"] = {"tiny": flows["models"]["reviews"]}
    params = json.loads((root / "params.yaml").read_text())
    (root / "params.yaml").write_text(json.dumps({**params, "flows": flows}))


def around(**env: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "120", "DVC_NO_ANALYTICS": "true", **env}


def mill(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=around(**env), capture_output=True, text=True, check=False)


def test_run_brings_a_line_up_to_date_and_puts_its_release_in_use(repository: Path) -> None:
    first = mill("run", cwd=repository)
    assert first.returncode == 0, first.stderr
    version = json.loads((repository / "deploy.json").read_text())["version"]
    assert f"tiny {version} is accepted and in use: accuracy 0." in first.stdout
    collect = next(row for row in first.stdout.splitlines() if row.startswith("collect "))
    assert collect.split()[1:5] == ["1.5", "s", "10", "8"]
    assert (repository / "reports" / "index.html").exists()
    assert store.current("tiny", repository) is not None

    second = mill("run", "tiny", cwd=repository)
    assert second.returncode == 0
    collect = next(row for row in second.stdout.splitlines() if row.startswith("collect "))
    assert "up to date" in collect

    third = mill("run", "tiny", "--force", "deploy", cwd=repository)
    assert third.returncode == 0
    deployed = next(row for row in third.stdout.splitlines() if row.startswith("deploy "))
    assert deployed.split()[1:3] == ["2.5", "s"]


def test_within_a_retrain_nothing_is_put_in_use(repository: Path) -> None:
    done = mill("run", "tiny", cwd=repository, MILL_RETRAIN="1")
    assert done.returncode == 0, done.stderr
    assert "is accepted: accuracy 0." in done.stdout
    assert store.current("tiny", repository) is None


def test_run_exits_with_3_where_the_release_is_refused_and_the_version_before_stays(
    repository: Path, line: Line
) -> None:
    assert mill("run", cwd=repository).returncode == 0
    before = store.current("tiny", repository)
    assert before is not None
    params = tiny_params(floors={"accuracy": 0.99}, must_beat_baselines=False)
    deploy(
        line.paths,
        line.paths.release,
        line.paths.report("deploy"),
        params=params,
        problem=problems.load(params.problem),
    )
    shutil.rmtree(repository / "prepared")
    line.paths.release.rename(repository / "prepared")
    done = mill("run", cwd=repository)
    assert done.returncode == 3
    assert "is refused: accuracy" in done.stdout
    assert "below its floor of 0.99" in done.stdout
    assert f"The version in use is still {before.version}." in done.stdout
    assert store.current("tiny", repository) == before


def test_run_exits_with_1_where_a_stage_fails_and_the_version_in_use_stays(repository: Path) -> None:
    assert mill("run", cwd=repository).returncode == 0
    before = store.current("tiny", repository)
    (repository / "source").write_text("broken")
    done = mill("run", cwd=repository)
    assert done.returncode == 1
    assert "tiny stopped at collect. collect@tiny failed: exit code 1. Its output ends with:" in done.stdout
    assert "the source is broken" in done.stdout
    assert done.stderr.count("the source is broken") >= 2  # of all stages collect alone is tried again
    assert store.current("tiny", repository) == before
    assert "sha-" in mill("predict", "tiny", "a film", cwd=repository).stdout


def test_a_misspelt_floor_is_found_before_anything_runs(repository: Path, line: Line) -> None:
    write_params(Line(line.paths, tiny_params(floors={"acuracy": 0.5})))
    with_flows(repository)
    done = mill("run", cwd=repository)
    assert done.returncode == 1
    assert "deploy.floors.acuracy is not a metric" in done.stderr
    assert not (repository / "collected").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "tinny"), "Did you mean 'tiny'?"),
        (("run", "--force", "colect"), "--force colect: this run has no such stage. Did you mean 'collect'?"),
    ],
)
def test_a_mistake_gets_a_message_and_runs_nothing(repository: Path, arguments: tuple[str, ...], said: str) -> None:
    done = mill(*arguments, cwd=repository)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (repository / "collected").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_interruption_ends_the_stage_as_well_and_exits_with_130(repository: Path, number: signal.Signals) -> None:
    (repository / "source").write_text("slow")
    running = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run"],
        cwd=repository,
        env=around(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until((repository / "started").exists, seconds=60)
    group = os.getpgid(int((repository / "pid").read_text()))
    running.send_signal(number)
    try:
        _, stderr = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "mill run: interrupted" in stderr
    assert "Traceback" not in stderr
    assert not commands_of(group)
    (repository / "source").write_text("good")
    assert mill("run", cwd=repository).returncode == 0


def test_where_run_is_killed_the_stage_ends_as_well_and_the_next_run_goes_on(repository: Path) -> None:
    (repository / "source").write_text("slow")
    # As a script starts it in the background. Output goes nowhere, so that no broken pipe is what ends the stage.
    running = subprocess.Popen(
        ["sh", "-c", "trap '' INT; exec \"$0\" -m flows.cli run", sys.executable],
        cwd=repository,
        env=around(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until((repository / "started").exists, seconds=60)
    group = os.getpgid(int((repository / "pid").read_text()))
    assert group != os.getpgid(running.pid)
    assert any("collect.sh" in command for command in commands_of(group))
    running.kill()
    running.wait()
    # What is left is the group's guard, which waits to kill what does not listen.
    wait_until(lambda: not [command for command in commands_of(group) if "collect.sh" in command], seconds=5)
    (repository / "source").write_text("good")
    assert mill("run", cwd=repository).returncode == 0


def commands_of(group: int) -> list[str]:
    """What runs in a process group; the dead that nobody has asked for are left out."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    processes = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [command for number, state, command in processes if int(number) == group and not state.startswith("Z")]
