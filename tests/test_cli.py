"""The `mill` command: quick help, plain messages, exit codes, and answers by the version in use."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import store
from tasks import problems
from tasks.deploy import deploy
from tasks.errors import ReleaseError
from tasks.paths import Paths
from tests.conftest import REPOSITORY, Line, tiny_params

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


def test_report_says_where_the_page_is(line: Line) -> None:
    done = mill("report", cwd=line.paths.root)
    assert done.stdout.strip() == "reports/index.html"
    assert Paths("tiny", line.paths.root).page("card").exists()
