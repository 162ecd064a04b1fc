"""Who answers texts in the benchmark of the server: processes that are asked for one pass over the texts at a time."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

REPOSITORY = Path(__file__).parents[2]
RIVALS = Path(__file__).parent / "rivals"
MODEL = "reviews"
_HERTZ = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Pass:
    """One pass over the texts."""

    texts_per_second: float
    cpu_ms_per_text: float
    load: dict[str, Any] | None = None  # what the load generator reported, where there was one


class Contestant(Protocol):
    """Somebody who answers texts."""

    name: str

    def go(self, texts: Sequence[str], texts_per_request: int) -> Pass: ...


class Worker:
    """A library without a server: `python -m tests.benchmarks.contestants NAME RELEASE ROWS`, which waits for texts.

    ROWS is how many texts it takes at once.
    """

    def __init__(self, name: str, release: Path, batch_rows: int = 32) -> None:
        self.name = name
        command = [sys.executable, "-m", "tests.benchmarks.contestants", name, str(release), str(batch_rows)]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def go(self, texts: Sequence[str], texts_per_request: int) -> Pass:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(list(texts)) + "\n")
        self._process.stdin.flush()
        found = json.loads(self._process.stdout.readline())
        return Pass(len(texts) / found["seconds"], 1000 * found["cpu"] / len(texts))

    def answers(self, texts: Sequence[str]) -> list[str]:
        """The labels that it gave in the last pass over these texts."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(list(texts)) + "\n")
        self._process.stdin.flush()
        return list(json.loads(self._process.stdout.readline())["labels"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


class Server:
    """A server, asked by the load generator."""

    def __init__(self, name: str, process: "subprocess.Popen[Any]", port: int, path: str, callers: int) -> None:
        self.name = name
        self.process = process
        self.port = port
        self.path = path
        self.callers = callers
        self.bodies = bodies_of

    def go(self, texts: Sequence[str], texts_per_request: int) -> Pass:
        bodies = self.bodies(texts, texts_per_request)
        callers = max(1, self.callers // texts_per_request) if texts_per_request > 1 else self.callers
        before = cpu_seconds(self.process.pid)
        load = self.load(bodies=bodies, callers=callers, requests=len(bodies))
        if set(load["statuses"]) != {"200"}:
            raise SystemExit(f"{self.name} did not answer everything: {load['statuses']} {load['failures']}")
        cpu = cpu_seconds(self.process.pid) - before
        return Pass(len(texts) / load["seconds"], 1000 * cpu / len(texts), load)

    def load(self, **plan: Any) -> dict[str, Any]:
        """Run the load generator with a plan, and give its report."""
        whole = {"host": "127.0.0.1", "port": self.port, "path": self.path, "timeout": 30, "seed": 1, **plan}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(whole, file)
            file.flush()
            command = [sys.executable, "-m", "tests.benchmarks.load", file.name]
            done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
        report: dict[str, Any] = json.loads(done.stdout)
        return report


def bodies_of(texts: Sequence[str], texts_per_request: int) -> list[str]:
    """The texts as requests; of one text each, an object and no list."""
    if texts_per_request == 1:
        return [json.dumps({"text": text}) for text in texts]
    rows = [{"text": text} for text in texts]
    return [json.dumps(rows[start : start + texts_per_request]) for start in range(0, len(rows), texts_per_request)]


def bodies_of_lists(texts: Sequence[str], texts_per_request: int) -> list[str]:
    """The texts as requests of one field, a list: what BentoML batches."""
    return [
        json.dumps({"texts": list(texts[start : start + texts_per_request])})
        for start in range(0, len(texts), texts_per_request)
    ]


def cpu_seconds(process: int) -> float:
    """What a process and all below it have used of the processor."""
    own = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    total = sum(map(int, own[11:15])) / _HERTZ
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    total += cpu_seconds(int(child))
    return total


@contextlib.contextmanager
def mill_server(release: Path, *, callers: int = 64, journal: bool = True, **settings: Any) -> Iterator[Server]:
    """The real server over a copy of a release, in a folder of its own."""
    from tasks.params import read_yaml
    from tasks.release import read_release
    from tasks.shards import write_json
    from tests.model_server import use

    with tempfile.TemporaryDirectory(prefix="mill-bench-") as name:
        root = Path(name)
        params = read_yaml(REPOSITORY / "params.yaml")
        params["flows"]["serve"] |= settings
        write_json(root / "params.yaml", params)
        shutil.copytree(release, root / "one")
        use(root, read_release(root / "one"), MODEL)
        start = "from flows.cli import main; main()" if journal else _WITHOUT_JOURNAL
        port = free_port()
        with (root / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", start, "serve", "--port", str(port)],
                cwd=root,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdout=log,
                stderr=log,
            )
        try:
            wait_until_ready(process, f"http://127.0.0.1:{port}/readyz", root / "log")
            server = Server("modelmill", process, port, f"/models/{MODEL}/predict", callers)
            server.root = root  # type: ignore[attr-defined]
            yield server
        finally:
            process.terminate()
            process.wait(60)


# For what the journal costs: the same server with one that keeps nothing.
_WITHOUT_JOURNAL = """
from concurrent.futures import Future
from tasks.journal import Journal
def record(self, predictions):
    written = Future()
    written.set_result(None)
    return written
Journal.record = record
from flows.cli import main
main()
"""


@contextlib.contextmanager
def rival(name: str, release: Path, callers: int = 64) -> Iterator[Server]:
    """Another server over the same model, in its own environment: tests/benchmarks/rivals/serve_NAME.py."""
    python = REPOSITORY / f".venv-rivals/{name}/bin/python"
    if not python.exists():
        raise SystemExit(f"{name} is not installed: make .venv-rivals/{name}/.installed")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix=f"mill-bench-{name}-") as folder:
        log_file = Path(folder) / "log"
        with log_file.open("w") as log:
            process = subprocess.Popen(
                [str(python), str(RIVALS / f"serve_{name}.py"), str(release.resolve()), str(port)],
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until_ready(process, f"http://127.0.0.1:{port}/predict", log_file)
            server = Server(name, process, port, "/predict", callers)
            if name == "bentoml":
                server.bodies = bodies_of_lists
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait(20)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until_ready(process: "subprocess.Popen[Any]", url: str, log: Path) -> None:
    """Wait for any answer but a 503."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 503:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{url} does not answer:\n{log.read_text()[-3000:]}")


def _pipeline(release: Path, batch_rows: int) -> Any:
    """transformers' pipeline over the checkpoint that the release was exported from, as its documentation has it."""
    import torch
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, pipeline

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    facts = json.loads((release / "runtime.json").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(release.parent / "checkpoint")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(release / "tokenizer.json"), pad_token="[PAD]", model_max_length=facts["max_tokens"]
    )
    asked = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    return lambda texts: [answer["label"] for answer in asked(texts, batch_size=batch_rows, truncation=True)]


def _onnxruntime(release: Path, batch_rows: int) -> Any:
    """ONNX Runtime alone: all texts tokenized and sorted by length, and cut into batches."""
    import polars as pl

    from tasks.runtime import load_runtime

    runtime = load_runtime(release, len(os.sched_getaffinity(0)))

    def answer(texts: list[str]) -> list[str]:
        rows = pl.DataFrame({"id": list(map(str, range(len(texts)))), "text": texts})
        logits = runtime.outputs(rows, batch_size=batch_rows)["logits"]
        return [runtime.signature["labels"][number] for number in logits.argmax(axis=1)]

    return answer


def main(name: str, release: str, batch_rows: str) -> None:
    """A worker: a list of texts on each line of standard input, and on its output what a pass over them took."""
    answer = {"pipeline": _pipeline, "onnxruntime": _onnxruntime}[name](Path(release), int(batch_rows))
    for line in sys.stdin:
        texts = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        labels = answer(texts)
        found = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "labels": labels}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
