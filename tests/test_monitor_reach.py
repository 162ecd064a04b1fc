"""What the monitor is to reach, on the shipped model: few false alarms, an early true one, Evidently's own server."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows.monitor import monitor
from flows.monitored import Watched
from tasks.answers import open_answerer
from tasks.journal import open_journal
from tasks.monitor import Subject, judge_window, open_subject
from tasks.release import Release, read_release
from tasks.shards import write_json
from tasks.watching import Watching
from tests.conftest import REPOSITORY
from tests.model_server import use
from tests.scheduled import free_port
from tests.watched import record

pytestmark = pytest.mark.slow

MODEL = "reviews"
WATCHING = Watching(
    window=100,
    false_alarm_rate=0.01,
    smallest_effect=0.1,
    persistence=2,
    resamples=10_000,
    seed=1,
    min_labels=200,
    ask_labels=100,
    keep_pages=50,
)


@pytest.fixture(scope="module")
def release() -> Release:
    folder = REPOSITORY / "models" / MODEL / "release"
    if not folder.exists():
        pytest.skip("The shipped model is not here: dvc repro makes it.")
    return read_release(folder)


@pytest.fixture(scope="module")
def held_out() -> pl.DataFrame:
    clean = pl.read_parquet(REPOSITORY / "data" / MODEL / "clean" / "rows-*.parquet")
    return clean.filter(pl.col("split") == "test").sort("id")


@pytest.fixture(scope="module")
def tweets() -> list[str]:
    sample = pl.read_parquet(REPOSITORY / "data/samples/reviews.parquet")
    return sample.filter(pl.col("domain") == "tweets")["text"].to_list()


def answered(subject: Subject, texts: list[str]) -> tuple[pl.DataFrame, Any]:
    """Texts as rows of the journal, and their embeddings."""
    runtime = subject.runtime
    rows = runtime.tidied(pl.DataFrame({"id": [str(number) for number in range(len(texts))], "text": texts}))
    outputs = runtime.outputs(rows)
    answers = runtime.problem.answer(rows, outputs, runtime.signature, runtime.calibration)
    served = pl.concat([rows, answers], how="horizontal").with_columns(
        seq=pl.int_range(len(texts)), at_us=pl.lit(0), latency_ms=pl.lit(5.0), has_embedding=pl.lit(value=True)
    )
    return served, outputs["pooled_embedding"].astype(np.float16).astype(np.float32)


def judged(subject: Subject, rows: pl.DataFrame, embedding_ND: Any, cache: Path, streak: int = 0) -> dict[str, Any]:
    return judge_window(subject, rows, lambda numbers: embedding_ND[list(numbers)], WATCHING, streak, cache).record


def test_of_200_windows_redrawn_from_held_out_rows_at_most_two_in_a_hundred_alarm(release, held_out, tmp_path):
    subject = open_subject(release)
    rows, embedding_ND = answered(subject, held_out["text"].to_list())
    generator = np.random.default_rng(1)
    drifted, streak, alarms = 0, 0, 0
    for _ in range(200):
        found = judged(subject, rows[generator.integers(0, len(rows), 100)], embedding_ND, tmp_path, streak)
        drifted, streak = drifted + found["drifted"], found["streak"]
        alarms += found["verdict"] == "alarm"
    print(f"\nof 200 windows {drifted} have drifted and {alarms} were alarms")
    assert drifted <= 4
    assert alarms <= 4


def test_windows_of_held_out_rows_that_the_reference_does_not_have_are_no_drift(release, held_out, tmp_path):
    """Each row once, in an order of chance: in the source those of one label stand together."""
    subject = open_subject(release)
    others = held_out.filter(~pl.col("id").is_in(subject.held_out["id"].implode())).sample(
        fraction=1.0, shuffle=True, seed=1
    )
    rows, embedding_ND = answered(subject, others["text"].to_list())
    found = [
        judged(subject, rows[start : start + 100], embedding_ND, tmp_path) for start in range(0, len(rows) - 99, 100)
    ]
    print(f"\nof {len(found)} windows of other held-out rows {sum(one['drifted'] for one in found)} have drifted")
    assert sum(one["drifted"] for one in found) <= 1


def test_a_hundred_thousand_rows_make_no_noise_an_alarm(release, held_out, tweets, tmp_path):
    subject = open_subject(release)
    rows, embedding_ND = answered(subject, held_out["text"].to_list() + tweets[:400])
    generator = np.random.default_rng(2)
    usual = generator.integers(0, len(held_out), 100_000)
    shares = {}
    for share in (0.0, 0.15, 0.5):
        places = np.where(
            generator.random(100_000) < share, generator.integers(len(held_out), len(rows), 100_000), usual
        )
        found = judged(subject, rows[places], embedding_ND, tmp_path)
        beyond_chance = [test["name"] for test in found["tests"] if test["figure"] > test["chance"]]
        shares[share] = (found["drifted"], len(beyond_chance))
        print(f"\n{share:.0%} tweets of 100,000: drifted {found['drifted']}; beyond chance alone {beyond_chance}")
    assert [drifted for drifted, _ in shares.values()] == [False, False, True]
    assert shares[0.0][1] == 0
    assert shares[0.15][1] > 0, "they are certain, and too few to matter"


def test_tweets_to_a_model_of_film_reviews_are_an_alarm_within_300_predictions(release, held_out, tweets, tmp_path):
    root = served_by(release, tmp_path)
    answerer = open_answerer(root)
    journal = open_journal(f"sqlite:///{tmp_path}/.mill/journal.sqlite")
    record(journal, MODEL, answerer, held_out["text"].sample(200, seed=1).to_list())
    assert monitor(tmp_path, MODEL, say=print).verdict == "ok"
    shuffled = [tweets[place] for place in np.random.default_rng(3).permutation(len(tweets))]
    verdicts = []
    for start in (0, 100, 200):
        record(journal, MODEL, answerer, shuffled[start : start + 100])
        verdicts.append(monitor(tmp_path, MODEL, say=print).verdict)
    journal.close()
    print(verdicts)
    assert "alarm" in verdicts
    watched = Watched(tmp_path, MODEL)
    assert [record["verdict"] for record in watched.history(watched.read(), 10)] == ["ok", "ok", *verdicts]
    of_evidently(tmp_path / ".mill" / "evidently", 5)


def served_by(release: Release, root: Path) -> Release:
    """Put the release in use below root, which is watched as params.yaml has it."""
    from ruamel.yaml import YAML

    params = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())
    params["flows"]["serve"]["port"] = free_port()
    write_json(root / "params.yaml", params)
    folder = root / ".mill" / "versions" / MODEL / release.version
    folder.parent.mkdir(parents=True)
    folder.symlink_to(release.folder.resolve())
    kept = Release(folder, release.manifest)
    use(root, kept, MODEL)
    return kept


def of_evidently(workspace: Path, num_windows: int) -> None:
    """Evidently's own server shows the history of the workspace, and each report in it."""
    port = free_port()
    evidently = Path(sys.executable).with_name("evidently")
    command = [evidently, "ui", "--workspace", str(workspace), "--port", str(port)]
    env = {**os.environ, "DO_NOT_TRACK": "1"}
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def asked(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=30) as answer:
            return json.load(answer)

    try:
        until = time.monotonic() + 120
        while True:
            try:
                [project] = asked("projects")
                break
            except OSError:
                assert time.monotonic() < until, "Evidently's server does not start"
                time.sleep(0.5)
        assert project["name"] == MODEL
        runs = asked(f"projects/{project['id']}/reports")
        assert len(runs) == num_windows
        for run in runs:
            shown = asked(f"projects/{project['id']}/{run['id']}/data")
            assert "share_upper_case" in json.dumps(shown)
    finally:
        server.terminate()
        server.wait(30)
