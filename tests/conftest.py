"""Small real things that several test files stand on. Whoever changes one in place copies it first."""

import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import polars as pl
import pytest

from tasks import problems
from tasks.params import Model, Scratch, TrainedTokenizer, load_model
from tasks.paths import Paths
from tasks.shards import ShardWriter, write_json

if TYPE_CHECKING:
    from tests.deployments import Inbox
    from tests.registered import History

REPOSITORY = Path(__file__).parent.parent

# Tests run beside each other, and two threads of each would mostly wait for one another. Torch reads it when it loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test needs a model hub. Without a network each question would be asked again and again, for twenty seconds.
os.environ["HF_HUB_OFFLINE"] = "1"

# How the texts of a clean folder were tidied, as its manifest says it.
TIDY = {"unicode": "NFC", "strip_markup": True, "redact": ["email"], "phone_regions": []}


@dataclass(frozen=True)
class Line:
    """One model's line below a root of its own: where it stands, and what made it."""

    paths: Paths
    params: Model


@pytest.fixture(scope="session")
def reviews() -> pl.DataFrame:
    """600 of the shipped film reviews as clean rows: `id`, `text`, `label`, `split`."""
    rows = pl.read_parquet(REPOSITORY / "data/samples/reviews.parquet").filter(pl.col("domain") == "movie").sort("id")
    good, bad = rows.filter(pl.col("score") > 0).head(300), rows.filter(pl.col("score") < 0).head(300)
    both = pl.concat([good, bad]).select(pl.col("id").cast(pl.String), "text")
    label = pl.Series("label", ["positive"] * 300 + ["negative"] * 300)
    split = pl.Series("split", ["train", "train", "test", "train", "validation", "test"] * 100)
    return both.with_columns(label, split).sort("id")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, reviews: pl.DataFrame) -> Line:
    """A transformer of 2 layers and width 32, trained on the film reviews, exported and evaluated."""
    line = Line(Paths("tiny", tmp_path_factory.mktemp("line")), tiny_params())
    walk(line, reviews)
    write_json(line.paths.report("validate"), {"rows": {"collected": 600, "valid": 600, "quarantined": 0}})
    write_json(
        line.paths.report("clean"),
        {"rows_in": 603, "rows_kept": 600, "dropped": {"duplicate_of": 3}, "redacted": {"email": 1}},
    )
    return line


def walk(line: Line, rows: pl.DataFrame) -> None:
    """Take clean rows with their `split` from tokenize to evaluate."""
    from tasks.evaluate import evaluate
    from tasks.export import export
    from tasks.tokenize import tokenize
    from tasks.train import train

    paths, params = line.paths, line.params
    problem = problems.load(params.problem)
    for folder, some in ((paths.collected, rows.drop("split")), (paths.clean, rows)):
        folder.mkdir(parents=True)
        writer = ShardWriter(folder, 250, some.schema)
        writer.write(some)
        writer.finish(tidy=TIDY)
    tokenize(
        paths.clean, paths.tokens, paths.report("tokenize"), params=params.tokenize, base=params.base, problem=problem
    )
    train(
        paths.tokens,
        paths.checkpoint,
        paths.report("train"),
        paths.plots / "loss.json",
        paths.live,
        paths.work / "train",
        params=params.train,
        base=params.base,
        threads=params.threads,
        problem=problem,
    )
    export(
        paths.checkpoint,
        paths.tokens,
        paths.candidate,
        paths.report("export"),
        params=params.export,
        threads=params.threads,
        problem=problem,
    )
    evaluate(
        paths.candidate,
        paths.clean,
        paths.scores,
        paths.report("evaluate"),
        paths.report("metrics"),
        paths.plots,
        paths.page("evaluate"),
        paths.measured("serving"),
        params=params.evaluate,
        threads=params.threads,
        problem=problem,
    )


@pytest.fixture(scope="session")
def released(tiny: Line, tmp_path_factory: pytest.TempPathFactory) -> Line:
    """The tiny model with a release that is accepted, and with the params.yaml that made it."""
    from tasks.deploy import deploy

    root = tmp_path_factory.mktemp("released") / "line"
    shutil.copytree(tiny.paths.root, root)
    line = Line(Paths(tiny.paths.model, root), tiny_params(floors={}, must_beat_baselines=False))
    write_params(line)
    paths, problem = line.paths, problems.load(line.params.problem)
    deploy(paths, paths.release, paths.report("deploy"), params=line.params, problem=problem)
    return line


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Line], Line]:
    """A line of one's own to change."""

    def copy(line: Line) -> Line:
        shutil.copytree(line.paths.root, tmp_path / "line")
        return Line(Paths(line.paths.model, tmp_path / "line"), line.params)

    return copy


def write_params(line: Line) -> None:
    """A params.yaml at the root with this model alone. JSON is YAML."""
    dumped = line.params.model_dump(mode="json", by_alias=True, serialize_as_any=True)
    write_json(line.paths.root / "params.yaml", {"models": {line.paths.model: dumped}})


def tiny_params(**deploy: Any) -> Model:
    """The parameters of `reviews` with a scratch architecture and no feedback; `deploy` replaces what deploy says."""
    return shrunk(load_model("reviews", REPOSITORY / "params.yaml"), **deploy)


def shrunk(params: Model, **deploy: Any) -> Model:
    """The parameters with an architecture of their family that learns in seconds, and no feedback."""
    architecture = params.base.architecture if isinstance(params.base, Scratch) else "bert"
    base = Scratch(architecture=architecture, hidden_size=32, layers=2, heads=2, feed_forward_size=64, max_positions=64)
    learned = params.tokenize.tokenizer
    algorithm = learned.algorithm if isinstance(learned, TrainedTokenizer) else "wordpiece"
    tokenizer = TrainedTokenizer(algorithm=algorithm, vocabulary=600)
    return params.model_copy(
        update={
            "base": base,
            "threads": 1,
            "feedback": None,
            "tokenize": params.tokenize.model_copy(update={"tokenizer": tokenizer, "max_tokens": 48}),
            "train": params.train.model_copy(
                update={"epochs": 3, "batch_size": 16, "freeze": [], "learning_rate": 3e-3}
            ),
            "deploy": params.deploy.model_copy(update=deploy),
        }
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Make a disk of so much room ("600k"), where this user may mount one."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        disk = tmp_path / f"disk-{len(mounted)}"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(disk)
        return disk

    yield mount
    for disk in mounted:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server of the tests' own."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    env = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    env["PREFECT_SERVER_UI_API_URL"] = url  # its pages ask port 4200 otherwise
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1).close()
            break
        except OSError:
            time.sleep(0.3)
    else:
        raise AssertionError((home / "server.log").read_text())
    yield url
    if "prefect.events.worker" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        # Otherwise they look for the server for a minute when this process ends.
        EventsWorker.drain_all(10)
        APILogWorker.drain_all(10)
    server.terminate()
    server.wait(30)


@pytest.fixture
def prefect_api(prefect_server: str) -> str:
    """The tests' own Prefect server, without what earlier tests had it run by itself."""
    from prefect.client.orchestration import SyncPrefectClient

    with SyncPrefectClient(prefect_server) as client:
        for automation in client.read_automations():
            client.delete_automation(automation.id)
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)
    return prefect_server


@pytest.fixture
def served(prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Flows of this test, and of processes that it starts, run on the tests' own Prefect server."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    _log_to(sys.stderr)
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        yield prefect_api
    _log_to(sys.__stderr__)


@pytest.fixture
def client(served: str) -> Iterator[Any]:
    """Prefect's, of the tests' own server."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as found:
        yield found


@pytest.fixture
def inbox() -> Iterator["Inbox"]:
    """Where messages arrive for as long as the test takes."""
    from tests.deployments import Inbox

    found = Inbox()
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


def _log_to(stream: TextIO | None) -> None:
    """Prefect's console keeps the stream of the test in which it was first needed, which is closed when that ends."""
    from prefect.logging.handlers import PrefectConsoleHandler

    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if isinstance(handler, PrefectConsoleHandler) and stream is not None:
            handler.console.file = stream


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, released: Line) -> "History":
    """A repository in which three releases of the model films were made and committed; the third was refused."""
    from tests.registered import make_history

    return make_history(tmp_path_factory.mktemp("made"), released)


@pytest.fixture
def history(made: "History", tmp_path: Path) -> "History":
    """A copy of it of one's own."""
    root = Path(shutil.copytree(made.root, tmp_path / "repository", symlinks=True))
    return replace(made, root=root)
