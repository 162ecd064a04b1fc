"""The monitor on the shipped model: false alarms, how soon a true one comes, and a backlog of a million predictions.

    python -m tests.benchmarks.monitor [--release models/reviews/release] [--only alarms …] [--rows 1000000]

`million` fills a journal with predictions (films of the held-out rows again and again) and runs `mill monitor` on it as
a process: wall time and the most memory that it had. Everything is below a folder that is deleted at the end.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import sqlalchemy as sa

from tasks.database import open_engine, writing
from tasks.journal import Prediction
from tasks.journal_tables import PREDICTIONS
from tasks.monitor import Subject, judge_window, open_subject
from tasks.release import Release, read_release
from tasks.watching import Watching
from tests.test_monitor_reach import MODEL, WATCHING, served_by

_ROWS_PER_COMMIT = 20_000
_WINDOWS = 200

Answered = tuple[pl.DataFrame, Any]


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, default=Path("models/reviews/release"))
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rows", type=int, default=1_000_000)
    chosen = parser.parse_args()
    release = read_release(chosen.release)
    subject = open_subject(release)
    with tempfile.TemporaryDirectory() as folder:
        texts = _texts()
        answered = {name: _answered(subject, some) for name, some in texts.items()}
        for part in chosen.only:
            print(f"\n{part}", flush=True)
            PARTS[part](subject, release, answered, Path(folder), chosen.rows)


def alarms(subject: Subject, _: Release, answered: dict[str, Answered], folder: Path, __: int) -> None:
    """Windows redrawn from the held-out rows: how many have drifted, and how many were alarms."""
    rows, embedding_ND = answered["movie"]
    generator = np.random.default_rng(1)
    for window in (100, 400):
        drifted = num_alarms = streak = 0
        for _number in range(_WINDOWS):
            some = rows[generator.integers(0, len(rows), window)]
            found = _judged(subject, some, embedding_ND, folder, streak, window)
            drifted, streak = drifted + found["drifted"], found["streak"]
            num_alarms += found["verdict"] == "alarm"
        print(f"  {_WINDOWS} windows of {window} held-out rows: {drifted} drifted, {num_alarms} alarms")


def domains(subject: Subject, _: Release, answered: dict[str, Answered], folder: Path, __: int) -> None:
    """Windows of 100 from each domain: the share that has drifted, and the accuracy as it is and as it is estimated."""
    generator = np.random.default_rng(2)
    for name, (rows, embedding_ND) in answered.items():
        found = [
            _judged(subject, rows[generator.permutation(len(rows))[:100]], embedding_ND, folder, 0, 100)
            for _number in range(50)
        ]
        whole = _judged(subject, rows, embedding_ND, folder, 0, 100)["estimate"]
        right = float((rows["label"] == rows["truth"]).mean() or 0.0)
        print(
            f"  {name:7} {np.mean([one['drifted'] for one in found]):4.0%} of windows drifted; accuracy {right:.3f}, "
            f"estimated {whole['value']:.3f} ({whole['low']:.3f} to {whole['high']:.3f})"
        )


def million(_: Subject, release: Release, answered: dict[str, Answered], folder: Path, num_rows: int) -> None:
    """A backlog, looked at by `mill monitor`: how long it takes, and how much memory."""
    root = folder / "root"
    root.mkdir()
    kept = served_by(release, root)
    started = time.perf_counter()
    _fill(root, kept.version, *answered["movie"], num_rows)
    size = (root / ".mill/journal.sqlite").stat().st_size / 1e9
    print(f"  a journal of {num_rows:,} predictions, {size:.2f} GB, written in {time.perf_counter() - started:.0f} s")
    env = {**os.environ, "PYTHONPATH": str(Path().resolve())}
    env.pop("PREFECT_API_URL", None)
    started = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", "flows.cli", "monitor", MODEL],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    print("  " + ended.stdout.replace("\n", "\n  ").rstrip() + ended.stderr)
    print(f"  exit code {ended.returncode}, {took:.1f} s (at most 90), {memory:.2f} GiB at most (at most 4)")
    shutil.rmtree(root)


def _texts() -> dict[str, pl.DataFrame]:
    """The held-out film reviews, and up to a thousand of each other domain, with their labels."""
    clean = pl.read_parquet(f"data/{MODEL}/clean/rows-*.parquet").filter(pl.col("split") == "test").sort("id")
    sample = pl.read_parquet("data/samples/reviews.parquet").filter(pl.col("score") != 0)
    sample = sample.with_columns(
        truth=pl.when(pl.col("score") > 0).then(pl.lit("positive")).otherwise(pl.lit("negative"))
    )
    others = {
        domain: sample.filter(pl.col("domain") == domain).sample(1000, seed=1).select("text", "truth")
        for domain in ("tweets", "amazon", "nyt")
    }
    return {"movie": clean.select("text", truth="label"), **others}


def _answered(subject: Subject, texts: pl.DataFrame) -> Answered:
    runtime = subject.runtime
    rows = runtime.tidied(
        texts.with_row_index("seq").with_columns(pl.col("seq").cast(pl.Int64), id=pl.format("{}", "seq"))
    )
    outputs = runtime.outputs(rows)
    answers = runtime.problem.answer(rows, outputs, runtime.signature, runtime.calibration)
    served = pl.concat([rows, answers], how="horizontal").with_columns(
        at_us=pl.lit(0), latency_ms=pl.lit(5.0), has_embedding=pl.lit(value=True)
    )
    return served, outputs["pooled_embedding"].astype(np.float16).astype(np.float32)


def _judged(
    subject: Subject, rows: pl.DataFrame, embedding_ND: Any, cache: Path, streak: int, window: int
) -> dict[str, Any]:
    def embeddings(numbers: Sequence[int]) -> Any:
        return embedding_ND[list(numbers)]

    params: Watching = WATCHING.model_copy(update={"window": window})
    return judge_window(subject, rows, embeddings, params, streak, cache).record


def _fill(root: Path, version: str, rows: pl.DataFrame, embedding_ND: Any, num_rows: int) -> None:
    """Write so many predictions, as the server's journal has them."""
    engine, name = open_engine(f"sqlite:///{root}/.mill/journal.sqlite")
    answers = rows.select("label", "probability", "probabilities").to_dicts()
    made = [
        Prediction("", 0, MODEL, version, None, {"text": text}, answer, 5.0, embedding).row()
        for text, answer, embedding in zip(rows["text"], answers, embedding_ND, strict=True)
    ]
    places = np.random.default_rng(3).integers(0, len(made), num_rows)
    for start in range(0, num_rows, _ROWS_PER_COMMIT):
        some = [
            {**made[place], "id": f"{start + number:032x}", "at_us": 1_790_000_000_000_000 + start + number}
            for number, place in enumerate(places[start : start + _ROWS_PER_COMMIT])
        ]
        with writing(engine, name) as connection:
            connection.execute(sa.insert(PREDICTIONS), some)
    engine.dispose()


PARTS = {"alarms": alarms, "domains": domains, "million": million}


if __name__ == "__main__":
    main()
