"""A root with a version in use and a journal of what it was asked: what the monitor's tests stand on."""

import json
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from ruamel.yaml import YAML

from flows.monitor import Looked, monitor
from flows.monitored import Watched
from tasks.answers import Answerer, open_answerer
from tasks.deploy import reference
from tasks.journal import Journal, Label, Prediction, open_journal
from tasks.release import MANIFEST, Release, read_release, seal
from tasks.runtime import load_runtime
from tasks.shards import write_json
from tests.conftest import REPOSITORY, Line
from tests.model_server import colder, use
from tests.scheduled import free_port

MODEL = "tiny"
WINDOW = 40


@dataclass
class World:
    """The root, the versions by name, and the rows that the first was held to."""

    root: Path
    held_out: pl.DataFrame
    releases: dict[str, Release]
    answerers: dict[str, Answerer]
    taken: int = 0  # of the usual texts

    @property
    def journal_url(self) -> str:
        return f"sqlite:///{self.root}/.mill/journal.sqlite"

    def ask(self, texts: Sequence[str], version: str = "one", shadow_of: Sequence[str] | None = None) -> list[str]:
        """Answer texts with a version and write that down as the server does; the ids."""
        journal = open_journal(self.journal_url)
        try:
            return record(journal, MODEL, self.answerers[version], texts, shadow_of)
        finally:
            journal.close()

    def usual(self, number: int) -> list[str]:
        """So many texts as the first version was held to, others each time."""
        texts = self.held_out["text"].shuffle(seed=7).to_list()
        self.taken += number
        return [texts[at % len(texts)] for at in range(self.taken - number, self.taken)]

    def label(self, labels: dict[str, str]) -> None:
        journal = open_journal(self.journal_url)
        said = [Label(prediction, {"label": label}) for prediction, label in labels.items()]
        journal.add_labels(said, model=MODEL, client=None)
        journal.close()

    def promote(self, name: str, release: Release) -> None:
        """Put a version in use. Its release is moved to where versions are kept."""
        folder = self.root / ".mill" / "versions" / MODEL / release.version
        if not folder.exists():
            shutil.copytree(release.folder, folder)
        kept = read_release(folder)
        self.releases[name], self.answerers[name] = kept, open_answerer(kept, threads=1)
        use(self.root, kept, MODEL)


def make_world(root: Path, line: Line, **monitor: Any) -> World:
    """One version in use; `monitor` replaces what its section of params.yaml says."""
    root.mkdir(parents=True, exist_ok=True)
    write_params(root, line, **monitor)
    clean = pl.read_parquet(line.paths.clean / "*.parquet")
    world = World(root, clean.filter(pl.col("split") == "test"), {}, {})
    world.promote("one", read_release(line.paths.release))
    return world


def write_params(root: Path, line: Line, **monitor: Any) -> None:
    shipped = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())["flows"]
    of_reviews = shipped["models"]["reviews"]
    watching = {**of_reviews["monitor"], "window": WINDOW, "resamples": 1000, "min_labels": 30, "ask_labels": 12}
    own = {"gate": of_reviews["gate"], "retrain": None, "monitor": {**watching, **monitor}}
    flows = {**shipped, "evidently": None, "serve": {**shipped["serve"], "port": free_port()}, "models": {MODEL: own}}
    params = line.params.model_dump(mode="json", by_alias=True, serialize_as_any=True)
    write_json(root / "params.yaml", {"models": {MODEL: params}, "flows": flows})


def record(
    journal: Journal, model: str, answerer: Answerer, texts: Sequence[str], shadow_of: Sequence[str] | None = None
) -> list[str]:
    """Answer texts and write that down; the predictions' ids."""
    at_us = time.time_ns() // 1000
    predictions = [
        Prediction(
            id=uuid.uuid4().hex,
            at_us=at_us,
            model=model,
            version=answerer.version,
            client=None,
            inputs=row.inputs,
            answer=row.answer,
            latency_ms=5.0,
            embedding=row.embedding,
            shadow_of=shadow_of[number] if shadow_of is not None else None,
        )
        for number, row in enumerate(answerer.traced(pl.DataFrame({"text": list(texts)}), batch_size=64))
    ]
    journal.record(predictions).result()
    return [prediction.id for prediction in predictions]


def look(world: World) -> Looked:
    return monitor(world.root, MODEL, say=lambda _: None)


def records(world: World) -> list[dict[str, Any]]:
    watched = Watched(world.root, MODEL)
    return watched.history(watched.read(), 1000)


def page(world: World) -> str:
    return (world.root / "reports" / MODEL / "monitor.html").read_text()


def sealed(folder: Path) -> Release:
    """The folder as a release, after something in it was changed."""
    manifest = json.loads((folder / MANIFEST).read_text())
    seal(folder, {key: value for key, value in manifest.items() if key not in ("files", "version")})
    return read_release(folder)


def less_sure(world: World, folder: Path) -> Release:
    """A version that is much less sure of the same answers, with its own answers to the held-out rows."""
    colder(world.releases["one"], folder, 9.0)
    runtime = load_runtime(folder, 1)
    ids = pl.read_parquet(folder / "reference.parquet").select("id")
    rows = ids.join(world.held_out, on="id", maintain_order="left")
    reference(rows, runtime, runtime.problem).write_parquet(folder / "reference.parquet")
    return sealed(folder)
