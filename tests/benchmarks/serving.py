"""The model server under load, beside a library without a server and beside other servers.

    python -m tests.benchmarks.serving [--release models/reviews/release] [--only throughput …] [--rivals litserve …]

Server, load generator and each of the others are processes of their own, on the same cores. Who is compared runs in
turn, a pass over the same texts each (`--texts` of them, for everybody), and every ratio is of two passes of one round:
what else the machine does meets both. Accuracy is measured on rows that no version has learned from.

Rivals (litserve, bentoml, ray) have their own environments: make .venv-rivals/litserve/.installed
"""

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import httpx
import polars as pl

from tasks.paired import Discordance
from tasks.release import Release, read_release
from tests.benchmarks.contestants import MODEL, Pass, Server, Worker, bodies_of, mill_server, rival
from tests.model_server import colder, use

# The queue must not turn away what a pass over the texts asks: there, all are to be answered.
_PATIENT = {"queue_seconds": 600, "queue_rows": 100_000}
_CALLERS = 128  # rows that are asked at the same time

# What ONNX Runtime alone is measured with: which is the faster depends on the processor's units.
_BATCHES = (8, 32)


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, default=Path("models/reviews/release"), help="beside its checkpoint")
    parser.add_argument("--texts", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--held-out", type=int, help="rows that accuracy is measured on; all of them where not said")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rivals", nargs="*", default=[], help="litserve bentoml ray")
    chosen = parser.parse_args()
    rows = pl.read_parquet("data/samples/reviews.parquet").filter(pl.col("domain") == "movie", pl.col("score") != 0)
    sample = rows.sample(chosen.texts, seed=1).with_columns(
        label=pl.when(pl.col("score") > 0).then(pl.lit("positive")).otherwise(pl.lit("negative"))
    )
    for part in chosen.only:
        print(f"\n{part}", flush=True)
        PARTS[part](chosen, sample)


def throughput(chosen: argparse.Namespace, sample: pl.DataFrame) -> None:
    """Texts a second: the pipeline, ONNX Runtime alone, and the server with requests of 8 texts and of one.

    Of ONNX Runtime's two sizes of a batch the one that is faster here is what the server is held against.
    """
    texts = sample["text"].to_list()
    pipeline = Worker("pipeline", chosen.release)
    alone = {f"onnxruntime, sorted, by {rows}": Worker("onnxruntime", chosen.release, rows) for rows in _BATCHES}
    passes: dict[str, list[Pass]] = {}

    def measure(name: str, go: Callable[[], Pass]) -> None:
        passes.setdefault(name, []).append(go())

    with mill_server(chosen.release, callers=_CALLERS, **_PATIENT) as server:
        for one in (pipeline, *alone.values(), server):  # to warm them
            one.go(texts[:128], 8)
        for number in range(chosen.rounds):
            measure("pipeline(batch_size=32)", lambda: pipeline.go(texts, 1))
            measure("modelmill, requests of 8", lambda: server.go(texts, 8))
            # Whichever comes second stands further from the server's pass, so they take turns in that too.
            for name in sorted(alone, reverse=number % 2 == 1):
                measure(name, partial(alone[name].go, texts, 1))
            measure("modelmill, requests of 1", lambda: server.go(texts, 1))
            print(
                f"  round {number + 1}: "
                + ", ".join(f"{name} {found[-1].texts_per_second:.0f}" for name, found in passes.items()),
                flush=True,
            )
    for worker in (pipeline, *alone.values()):
        worker.close()
    _table(passes)
    faster = max(alone, key=lambda name: statistics.median(one.texts_per_second for one in passes[name]))
    _ratio(passes, "modelmill, requests of 8", "pipeline(batch_size=32)", 4)
    _ratio(passes, "modelmill, requests of 8", faster, 0.75)
    _ratio(passes, "modelmill, requests of 1", "pipeline(batch_size=32)", 2.5)


def rivals(chosen: argparse.Namespace, sample: pl.DataFrame) -> None:
    """The same load on other servers over the same model, with batches of 32 that wait 5 ms; those keep no journal."""
    texts = sample["text"].to_list()
    for name in chosen.rivals:
        passes: dict[str, list[Pass]] = {}
        with (
            mill_server(chosen.release, callers=_CALLERS, **_PATIENT) as ours,
            rival(name, chosen.release, _CALLERS) as theirs,
        ):
            for server in (ours, theirs):
                server.go(texts[:128], 8)
            for _ in range(chosen.rounds):
                for size in (1, 8):
                    for server in (ours, theirs):
                        _note(passes, f"{server.name}, requests of {size}", server.go(texts, size))
                for server in (ours, theirs):
                    server.callers = 1
                    _note(passes, f"{server.name}, one caller", server.go(texts[:100], 1))
                    server.callers = _CALLERS
        _table(passes)
        for how in ("requests of 1", "requests of 8", "one caller"):
            _ratio(passes, f"modelmill, {how}", f"{name}, {how}")


def _note(passes: dict[str, list[Pass]], name: str, found: Pass) -> None:
    passes.setdefault(name, []).append(found)
    said = found.load["ms"]["200"] if found.load is not None else {}
    print(f"  {name}: {found.texts_per_second:.0f} texts/s, ms a request {said}", flush=True)


def latency(chosen: argparse.Namespace, sample: pl.DataFrame) -> None:
    """p99 at half of what the server can, beside a single request; and at three times of it, who is sent away."""
    texts = sample["text"].to_list()
    for size in (1, 8):
        with mill_server(chosen.release, callers=_CALLERS) as server:
            bodies = bodies_of(texts, size)
            server.load(bodies=bodies, callers=2, requests=len(bodies))
            ratios: dict[str, list[float]] = {"evenly spaced": [], "at random times": []}
            for _ in range(chosen.rounds):
                most = server.load(bodies=bodies, callers=max(2, 64 // size), requests=len(bodies))
                alone = server.load(bodies=bodies, callers=1, requests=min(100, len(bodies)))
                pair = server.load(bodies=bodies, callers=2, requests=min(200, len(bodies)))
                single, rate = alone["ms"]["200"]["p50"], most["answered_per_second"] / 2
                rates = [one["answered_per_second"] for one in (alone, pair, most)]
                print(
                    f"  requests of {size}: {rates[0]:.0f}/s to one caller, {rates[1]:.0f} to two, "
                    f"{rates[2]:.0f} at most; one alone p50 {single:.1f} ms",
                    flush=True,
                )
                for how, found in ratios.items():
                    is_even = how == "evenly spaced"
                    half = server.load(bodies=bodies, rate=rate, requests=max(100, int(10 * rate)), even=is_even)
                    ms = half["ms"]["200"]
                    found.append(ms["p99"] / single)
                    print(f"    half, {how}: p50 {ms['p50']:.1f}, p99 {ms['p99']:.1f} ms {_said(half)}", flush=True)
            for how, found in ratios.items():
                print(
                    f"  p99 at half, {how}, in single requests (at most 4): median {statistics.median(found):.2f}"
                    f" ({min(found):.2f} to {max(found):.2f})"
                )
            flood = server.load(bodies=bodies, rate=6 * rate, requests=int(60 * rate), timeout=10)
            after = server.load(bodies=bodies, callers=1, requests=min(100, len(bodies)))
            away = flood["ms"].get("429", {}).get("p99", 0.0)
            print(
                f"  at three times, 10 s: {_said(flood)}; p99 of answers {flood['ms']['200']['p99']:.0f} ms, of those "
                f"sent away {away:.0f} ms; afterwards one alone p50 {after['ms']['200']['p50']:.1f} ms {_said(after)}",
                flush=True,
            )


def journal(chosen: argparse.Namespace, sample: pl.DataFrame) -> None:
    """What the journal adds to a request: the same server with one that keeps nothing, in turn."""
    bodies = bodies_of(sample["text"].to_list(), 1)
    with mill_server(chosen.release) as kept, mill_server(chosen.release, journal=False) as bare:
        for callers in (1, 8):
            extra = []
            for _ in range(2 * chosen.rounds):
                found = [
                    server.load(bodies=bodies, callers=callers, requests=150)["ms"]["200"]["p50"]
                    for server in (kept, bare)
                ]
                extra.append(found[0] - found[1])
            print(
                f"  {callers} callers: {statistics.median(extra):+.2f} ms at p50 (at most +5), median of {len(extra)}"
            )


def swaps(chosen: argparse.Namespace, sample: pl.DataFrame) -> None:
    """A hundred swaps between two versions under load: no failure, no answer whose version and content disagree."""
    # One version is sure of what it says, the other says the same and is hardly surer than chance. The limit between
    # them leaves room for what a row's numbers owe to the rows beside it.
    with mill_server(chosen.release, **_PATIENT) as server:
        root: Path = server.root  # type: ignore[attr-defined]
        one = read_release(root / "one")
        two = colder(one, root / "two", 500.0)
        asked = [
            text
            for text, answer in zip(sample["text"], _answers(server, sample["text"].to_list()), strict=True)
            if answer["probability"] > 0.9
        ]
        reports: list[dict[str, object]] = []
        stop = threading.Event()

        def keep_asking() -> None:
            while not stop.is_set():
                reports.append(server.load(bodies=bodies_of(asked, 1), callers=8, requests=1000, keep=True))

        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            took = _swap(server, root, [(two, one)[number % 2] for number in range(chosen.swaps)])
        finally:
            stop.set()
            asking.join()
    kept = [json.loads(content) for report in reports for content in report["kept"]]  # type: ignore[attr-defined]
    statuses: dict[str, int] = {}
    for report in reports:
        for status, count in report["statuses"].items():  # type: ignore[attr-defined]
            statuses[status] = statuses.get(status, 0) + count
    mixed = sum((answer["version"] == one.version) != (answer["probability"] > 0.53) for answer in kept)
    print(f"  {chosen.swaps} swaps under load: statuses {statuses}, {mixed} of {len(kept):,} answers mixed")
    print(f"  from live.json to being in use: median {statistics.median(took):.2f} s, at most {max(took):.2f} s")


def _swap(server: Server, root: Path, releases: Sequence[Release]) -> list[float]:
    """Put versions in use, one after the other, and say how long each took to be the one that answers."""
    took = []
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
        for release in releases:
            started = time.perf_counter()
            use(root, release, MODEL)
            while client.get(f"/models/{MODEL}").json()["version"] != release.version:
                time.sleep(0.005)
            took.append(time.perf_counter() - started)
    return took


def accuracy(chosen: argparse.Namespace, _: pl.DataFrame) -> None:
    """How often the served version is right on held-out rows, beside the checkpoint that it was exported from."""
    clean = pl.read_parquet(f"data/{MODEL}/clean/rows-*.parquet").filter(pl.col("split") == "test").sort("id")
    rows = clean if chosen.held_out is None else clean.sample(min(chosen.held_out, len(clean)), seed=1)
    texts = rows["text"].to_list()
    worker = Worker("pipeline", chosen.release)
    checkpoint = rows["label"] == pl.Series(worker.answers(texts))
    worker.close()
    with mill_server(chosen.release, **_PATIENT) as server:
        served = rows["label"] == pl.Series([answer["label"] for answer in _answers(server, texts)])
    found = Discordance(len(rows), int((served & ~checkpoint).sum()), int((checkpoint & ~served).sum()))
    low, high = found.interval(0.025)
    print(
        f"  right of {len(rows):,} held-out rows: checkpoint {checkpoint.mean():.2%}, served {served.mean():.2%}; "
        f"difference {100 * found.effect:+.2f} points, 95 % paired interval {100 * low:+.2f} to {100 * high:+.2f} "
        "(within 0.5 is wanted)"
    )


PARTS: dict[str, Callable[[argparse.Namespace, pl.DataFrame], None]] = {
    "throughput": throughput,
    "rivals": rivals,
    "latency": latency,
    "journal": journal,
    "swaps": swaps,
    "accuracy": accuracy,
}


def _answers(server: Server, texts: Sequence[str]) -> list[dict[str, object]]:
    report = server.load(bodies=bodies_of(texts, 1), callers=1, requests=len(texts), keep=True)
    return [json.loads(content) for content in report["kept"]]


def _table(passes: dict[str, list[Pass]]) -> None:
    print(f"\n{'':34}{'texts/s':>10}{'from':>8}{'to':>8}{'CPU ms/text':>14}")
    for name, found in passes.items():
        rates = [one.texts_per_second for one in found]
        cpu = statistics.median(one.cpu_ms_per_text for one in found)
        print(f"{name:34}{statistics.median(rates):10.0f}{min(rates):8.0f}{max(rates):8.0f}{cpu:14.2f}")


def _ratio(passes: dict[str, list[Pass]], one: str, other: str, least: float | None = None) -> None:
    """The ratio of passes in the same round: in texts a second, and in what a text costs of the processor."""
    rounds = list(zip(passes[one], passes[other], strict=True))
    rates = [a.texts_per_second / b.texts_per_second for a, b in rounds]
    costs = [b.cpu_ms_per_text / a.cpu_ms_per_text for a, b in rounds]
    found = statistics.median(rates)
    wanted = "" if least is None else f", at least {least:g} is wanted: {'reached' if found >= least else 'MISSED'}"
    print(
        f"{one} / {other}: {found:.2f} ({min(rates):.2f} to {max(rates):.2f}){wanted}; "
        f"by processor time {statistics.median(costs):.2f}",
        flush=True,
    )


def _said(report: dict[str, object]) -> str:
    return f"{report['statuses']}" + (f" {report['failures']}" if report["failures"] else "")


if __name__ == "__main__":
    main()
