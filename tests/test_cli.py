"""The `mill` command: quick help, plain messages, exit codes, and answers by the version in use."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import store
from tasks import problems
from tasks.deploy import deploy
from tasks.errors import ReleaseError
from tasks.paths import Paths
from tests.conftest import REPOSITORY, Line, tiny_params, write_params

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "120", "DVC_NO_ANALYTICS": "true"}

TEXT = "a thoughtful, moving film"


def mill(*arguments: str, cwd: Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments], cwd=cwd, env=ENVIRONMENT, input=stdin, capture_output=True
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def line(released: Line, copied: Callable[[Line], Line]) -> Line:
    return copied(released)


def pack(line: Line, **changed: object) -> None:
    """Deploy again under another gate, as a later run would."""
    params = tiny_params(**{"floors": {}, "must_beat_baselines": False, **changed})
    paths = line.paths
    deploy(paths, paths.release, paths.report("deploy"), params=params, problem=problems.load(params.problem))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def test_help_is_quick_because_nothing_heavy_is_imported_for_it() -> None:
    script = "import sys, contextlib\nsys.argv = ['mill', '--help']\nfrom flows.cli import main\n"
    script += "with contextlib.suppress(SystemExit): main()\nprint(sorted(set(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, cwd="/", capture_output=True, text=True)
    assert "predict" in done.stdout
    modules = set(json.loads(done.stdout.splitlines()[-1].replace("'", '"')))
    assert "typer" in modules
    assert not modules & {"torch", "transformers", "polars", "numpy", "dvc", "pydantic", "onnxruntime", "jinja2"}


def test_predicting_imports_neither_torch_nor_transformers(line: Line) -> None:
    script = f"import sys\nfrom flows.predict import predict\npredict('tiny', [{TEXT!r}], as_json=False)\n"
    script += "assert not {'torch', 'transformers', 'dvc', 'sklearn', 'scipy'} & set(sys.modules), sys.modules.keys()"
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, cwd=line.paths.root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_predict_prints_label_probability_and_version(line: Line) -> None:
    done = mill("predict", "tiny", TEXT, "tedious", cwd=line.paths.root)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = (printed.split("\t") for printed in done.stdout.splitlines())
    assert first[0] in ("negative", "positive")
    assert 0.5 <= float(first[1]) <= 1
    assert first[2] == second[2] == store.usable("tiny", line.paths.root)[0].version


def test_predict_reads_lines_and_writes_json(line: Line) -> None:
    done = mill("predict", "tiny", "-", "--json", cwd=line.paths.root, stdin=f"{TEXT}\n\nüble Länge 🎬\r\n".encode())
    answers = [json.loads(printed) for printed in done.stdout.splitlines()]
    assert [answer["reason"] for answer in answers] == [None, "text is empty", None]
    assert sum(answers[0]["probabilities"]) == pytest.approx(1)
    assert answers[1]["label"] is None
    assert "line 2: text is empty" in done.stderr
    alone = mill("predict", "tiny", TEXT, "--json", cwd=line.paths.root)
    assert json.loads(alone.stdout) == answers[0]


@pytest.mark.parametrize("text", ["<br>", "\x01", "&nbsp;", "<script>great</script>", "\u200b \ufeff"])
def test_a_text_that_is_empty_once_it_is_tidied_gets_no_answer(line: Line, text: str) -> None:
    done = mill("predict", "tiny", "--json", text, f"{text}a film", cwd=line.paths.root)
    empty, full = (json.loads(printed) for printed in done.stdout.splitlines())
    assert (empty["reason"], empty["label"], empty["probability"]) == ("text is empty", None, None)
    assert (full["reason"], full["probability"] >= 0.5) == (None, True)
    assert done.stderr == "TEXT 1: text is empty, so there is no answer.\n"


def test_bytes_that_are_no_text_are_explained(line: Line) -> None:
    done = mill("predict", "tiny", "-", cwd=line.paths.root, stdin=b"fine\nb\xe4d\n")
    assert done.returncode == 1
    assert "line 2 is not UTF-8 (byte 2)" in done.stderr
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("predict", "tinny", "x"), 1, "there is no model 'tinny'. Did you mean 'tiny'? Known: tiny."),
        (("score", "tinny", "a", "b"), 1, "Did you mean 'tiny'?"),
        (("run", "tinny"), 1, "Did you mean 'tiny'?"),
        (("prdict", "tiny"), 2, "Did you mean 'predict'?"),
        (("predict", "tiny"), 2, "Missing argument"),
    ],
)
def test_a_mistake_gets_a_message_and_no_traceback(
    line: Line, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = mill(*arguments, cwd=line.paths.root)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_outside_of_a_repository_the_message_says_where_to_go(tmp_path: Path) -> None:
    done = mill("predict", "reviews", "x", cwd=tmp_path)
    assert done.returncode == 1
    assert "params.yaml is not here. Run the command at the top of the repository." in done.stderr


def test_the_version_of_the_command_is_printed() -> None:
    assert mill("--version", cwd=REPOSITORY).stdout.startswith("mill 0.")


def test_a_refused_release_answers_nothing(line: Line) -> None:
    pack(line, floors={"accuracy": 0.99})
    done = mill("predict", "tiny", TEXT, cwd=line.paths.root)
    assert (done.returncode, done.stdout) == (1, "")
    assert "was refused: accuracy is" in done.stderr
    assert "No version was accepted before it" in done.stderr


def test_after_a_refusal_the_version_before_answers_and_is_named(line: Line) -> None:
    before = store.put_in_use("tiny", line.paths.root).version
    pack(line, floors={"accuracy": 0.99})
    done = mill("predict", "tiny", TEXT, cwd=line.paths.root)
    assert done.returncode == 0
    assert done.stdout.split("\t")[2].strip() == before
    assert "was refused: accuracy is" in done.stderr
    assert f"The version in use is {before}." in done.stderr


def test_what_is_in_use_survives_the_workspace(line: Line) -> None:
    before = store.put_in_use("tiny", line.paths.root)
    shutil.rmtree(line.paths.release)
    release, note = store.usable("tiny", line.paths.root)
    assert (release.version, note) == (before.version, None)
    assert release.folder.is_relative_to(line.paths.root / ".mill" / "versions" / "tiny")


def test_editing_the_workspace_does_not_edit_what_is_in_use(line: Line) -> None:
    release = store.put_in_use("tiny", line.paths.root)
    with (line.paths.release / "README.md").open("a") as card:
        card.write("more")
    assert store.current("tiny", line.paths.root) is not None
    assert "more" not in (release.folder / "README.md").read_text().splitlines()


@pytest.mark.parametrize("in_use", [False, True])
def test_a_flipped_byte_in_the_workspaces_model_is_refused_with_its_name(line: Line, in_use: bool) -> None:
    if in_use:
        store.put_in_use("tiny", line.paths.root)
    flip_a_byte(line.paths.release / "model.onnx")
    done = mill("predict", "tiny", TEXT, cwd=line.paths.root)
    assert (done.returncode, done.stdout) == (1, "")
    assert "models/tiny/release/model.onnx is not the file that the release was made with" in done.stderr
    assert ("is whole" in done.stderr) is in_use


def test_a_flipped_byte_in_the_version_in_use_is_refused_and_mended_by_the_release(line: Line) -> None:
    release = store.put_in_use("tiny", line.paths.root)
    flip_a_byte(release.folder / "tokenizer.json")
    with pytest.raises(ReleaseError, match=r"tokenizer\.json is not the file .* `mill run tiny`"):
        store.usable("tiny", line.paths.root)
    assert store.put_in_use("tiny", line.paths.root).version == release.version
    assert store.usable("tiny", line.paths.root)[0].version == release.version


def test_a_version_in_use_cannot_be_exchanged_for_another_one(line: Line) -> None:
    release = store.put_in_use("tiny", line.paths.root)
    pack(line, golden_rows=3)
    shutil.rmtree(release.folder)
    shutil.copytree(line.paths.release, release.folder)
    with pytest.raises(ReleaseError, match="is not the one that was put in use"):
        store.current("tiny", line.paths.root)


def test_an_accepted_release_that_is_not_in_use_yet_is_mentioned(line: Line) -> None:
    before = store.put_in_use("tiny", line.paths.root)
    pack(line, golden_rows=3)
    release, note = store.usable("tiny", line.paths.root)
    assert release.version == before.version
    assert note is not None
    assert "until `mill run tiny` replaces it" in note


def test_a_release_that_computes_otherwise_here_is_not_put_in_use(line: Line) -> None:
    release = line.paths.release
    golden = json.loads((release / "golden.json").read_text())
    golden["rows"][0]["outputs"]["logits"][0] += 1
    (release / "golden.json").write_text(json.dumps(golden))
    manifest = json.loads((release / "manifest.json").read_text())
    from tasks.release import seal

    seal(release, {key: value for key, value in manifest.items() if key not in ("files", "version")})
    with pytest.raises(ReleaseError, match="does not compute on this machine what it did where it was made"):
        store.put_in_use("tiny", line.paths.root)
    assert store.current("tiny", line.paths.root) is None


# What DVC runs for `mill run` below: the ends of a line, made of copies of finished work.
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
grep -q broken source && { echo 'collect@tiny: the source is broken' >&2; exit 1; }
grep -q slow source && { echo $$ > pid; touch started; sleep 60; }
cp source collected
echo '{"read": 10, "rows": 8}' > reports/tiny/collect.json
echo '{"wall_seconds": 1.5}' > reports/tiny/measured/collect.json
"""


@pytest.fixture
def repository(line: Line) -> Path:
    """A DVC repository whose line is two commands; the release at its end is a real one."""
    root = line.paths.root
    line.paths.release.rename(root / "prepared")
    line.paths.report("deploy").rename(root / "deploy.json")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "collect.sh").write_text(COLLECT)
    (root / "source").write_text("good")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=root, env=ENVIRONMENT, check=True)
    return root


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


def test_run_exits_with_3_where_the_release_is_refused_and_the_version_before_stays(
    repository: Path, line: Line
) -> None:
    assert mill("run", cwd=repository).returncode == 0
    before = store.current("tiny", repository)
    assert before is not None
    pack(line, floors={"accuracy": 0.99})
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
    assert "the source is broken" in done.stderr
    assert "tiny stopped at collect" in done.stdout
    assert store.current("tiny", repository) == before
    assert "sha-" in mill("predict", "tiny", TEXT, cwd=repository).stdout


def test_a_misspelt_floor_is_found_before_anything_runs(repository: Path, line: Line) -> None:
    write_params(Line(line.paths, tiny_params(floors={"acuracy": 0.5})))
    done = mill("run", cwd=repository)
    assert done.returncode == 1
    assert "deploy.floors.acuracy is not a metric" in done.stderr
    assert not (repository / "collected").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_stage_as_well_and_exits_with_130(repository: Path, number: signal.Signals) -> None:
    (repository / "source").write_text("slow")
    running = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run"],
        cwd=repository,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (repository / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(number)
    try:
        _, stderr = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "mill run: interrupted" in stderr
    assert "Traceback" not in stderr
    (repository / "source").write_text("good")
    assert mill("run", cwd=repository).returncode == 0


def test_where_run_is_killed_the_stage_ends_as_well_and_the_next_run_goes_on(repository: Path) -> None:
    (repository / "source").write_text("slow")
    # As a script starts it in the background. Output goes nowhere, so that no broken pipe is what ends the stage.
    running = subprocess.Popen(
        ["sh", "-c", "trap '' INT; exec \"$0\" -m flows.cli run", sys.executable],
        cwd=repository,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until((repository / "started").exists, seconds=60)
    group = os.getpgid(int((repository / "pid").read_text()))
    assert group != os.getpgid(running.pid)
    assert any("sleep" in command for command in commands_of(group))
    assert any("dvc" in command for command in commands_of(group))
    running.kill()
    running.wait()
    wait_until(lambda: not commands_of(group), seconds=5)
    (repository / "source").write_text("good")
    assert mill("run", cwd=repository).returncode == 0


def commands_of(group: int) -> list[str]:
    """What runs in a process group; the dead that nobody has asked for are left out."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    processes = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [command for number, state, command in processes if int(number) == group and not state.startswith("Z")]


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"it did not come true in {seconds} s"
        time.sleep(0.05)


def test_report_says_where_the_page_is(line: Line) -> None:
    done = mill("report", cwd=line.paths.root)
    assert done.stdout.strip() == "reports/index.html"
    assert Paths("tiny", line.paths.root).page("card").exists()
