"""collect as a process of its own: interrupted, killed, and refused by its exit code."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from ruamel.yaml import YAML

from flows.pull import pull
from tasks.shards import read_rows

REPOSITORY = Path(__file__).parent.parent
NUM_ROWS = 150_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small first file that is collected already, and a large second one that is pinned."""
    params = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())["models"]["reviews"]
    collect = {"path": "in/*.csv", "format": "auto", "where": None, "rows_per_shard": 10_000}
    collect["columns"] = {"text": "text", "label": "label"}
    model = {**params, "pin": "data/notes/source.json", "source": "files", "collect": collect}
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump({"models": {"notes": model}}, file)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text("text,label\na,x\nb,y\n")
    pull("notes", tmp_path)
    with started(tmp_path) as process:
        assert process.wait() == 0
    rows = pl.select(text=pl.format("text number {}", pl.int_range(NUM_ROWS)), label=pl.lit("x"))
    rows.write_csv(tmp_path / "in/b.csv")
    pull("notes", tmp_path)
    return tmp_path


def started(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tasks", "collect", "notes"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )


def hashes(root: Path) -> dict[str, str]:
    files = sorted((root / "data/notes/collect").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def unfinished(root: Path) -> list[Path]:
    return list((root / "data/notes").glob(".unfinished-*"))


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_is_stopped_leaves_what_stood_and_the_next_one_is_whole(
    root: Path, kind: signal.Signals, code: int
) -> None:
    before = hashes(root)
    with started(root) as process:
        deadline = time.monotonic() + 60
        while not any(any(folder.glob("p00001-*.parquet")) for folder in unfinished(root)):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(kind)
        assert process.wait() == code
        said = process.stderr.read() if process.stderr else ""
    assert hashes(root) == before
    if kind == signal.SIGINT:
        assert said == "collect@notes: interrupted. What stood before still stands; run it again to go on.\n"
        assert unfinished(root) == []

    with started(root) as process:
        assert process.wait() == 0
    assert unfinished(root) == []
    assert hashes(root)["p00000-00000.parquet"] == before["p00000-00000.parquet"]
    assert len(read_rows(root / "data/notes/collect")) == NUM_ROWS + 2


def test_a_failure_is_one_sentence_on_standard_error(root: Path) -> None:
    before = hashes(root)
    (root / "in/b.csv").unlink()
    with started(root) as process:
        assert process.wait() == 1
        said = process.stderr.read() if process.stderr else ""
    assert said.startswith("collect@notes: in/b.csv is pinned, and is no longer there.")
    assert said.count("\n") == 1
    assert hashes(root) == before
