"""A repository whose model has two versions, a journal and a DVC remote, on real Git, DVC and registry.

Collect, clean and deploy are the real stages; validate, and what trains and judges, are as cheap as can be.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from flows import registry
from flows.git import git
from flows.pull import pull
from tasks.journal import Prediction, open_journal
from tasks.release import read_release
from tasks.shards import read_rows, write_json, write_text
from tests.conftest import REPOSITORY, Line, tiny_params
from tests.test_worktree import dvc

LINE = """
import json, shutil, sys
from pathlib import Path
import polars as pl
from tasks import problems
from tasks.clean import clean
from tasks.deploy import deploy
from tasks.params import load_model
from tasks.paths import Paths
from tasks.shards import ShardWriter, read_rows, read_shards, write_json, write_manifest, write_parquet

made, stage, name = Path("TINY"), sys.argv[1], sys.argv[2]
paths, params = Paths(name), load_model(name)
problem = problems.load(params.problem)
if stage == "prepare":
    for folder in (paths.valid, paths.quarantine):
        shutil.rmtree(folder, ignore_errors=True)
    kept, refused = [], []
    for shard in read_shards(paths.collected):
        rows = shard.read()
        broken = pl.col("text").str.len_chars() < 3
        kept.append(write_parquet(paths.valid / shard.path.name, rows.filter(~broken)))
        turned_away = rows.filter(broken).with_columns(reasons=pl.concat_list(pl.lit("too short")))
        refused.append(write_parquet(paths.quarantine / shard.path.name, turned_away))
    write_manifest(paths.valid, kept, rows.schema)
    write_manifest(paths.quarantine, refused, rows.schema)
    numbers = {"collected": sum(s.rows for s in [*kept, *refused]), "valid": sum(s.rows for s in kept)}
    write_json(paths.report("validate"), {"rows": {**numbers, "quarantined": sum(s.rows for s in refused)}})
    clean(paths.valid, paths.clean, paths.report("clean"), params=params.clean, problem=problem)
else:
    rows = read_rows(paths.clean)
    for folder, name, split in ((paths.tokens, "arrow", "train"), (paths.scores, "parquet", "test")):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        some = rows.filter(pl.col("split") == split).select("id")
        if name == "arrow":
            some.with_columns(input_ids=pl.lit([1, 2], dtype=pl.List(pl.Int32))).write_ipc(folder / "train-00000.arrow")
        else:
            writer = ShardWriter(folder, 1000, some.schema)
            writer.write(some)
            writer.finish()
    shutil.rmtree(paths.candidate, ignore_errors=True)
    shutil.copytree(made / "models/tiny/candidate", paths.candidate)
    for report in ("export", "evaluate"):
        shutil.copy(made / f"reports/tiny/{report}.json", paths.report(report))
    deploy(paths, paths.release, paths.report("deploy"), params=params, problem=problem)
"""

STAGES = """stages:
  collect:
    foreach: ${models}
    do:
      cmd: python -m tasks collect ${key}
      deps: ["${item.pin}", "data/${key}/forgotten.jsonl"]
      params: ["models.${key}.collect"]
      outs:
        - data/${key}/collect: {persist: true}
        - reports/${key}/collect.json: {cache: false}
  prepare:
    foreach: ${models}
    do:
      cmd: python line.py prepare ${key}
      deps: ["data/${key}/collect", "data/${key}/admitted.jsonl", line.py]
      outs:
        - data/${key}/validate/valid
        - data/${key}/validate/quarantine
        - data/${key}/clean
        - reports/${key}/validate.json: {cache: false}
        - reports/${key}/clean.json: {cache: false}
  deploy:
    foreach: ${models}
    do:
      cmd: python line.py deploy ${key}
      deps: ["data/${key}/clean", line.py]
      outs:
        - data/${key}/tokenize
        - data/${key}/evaluate
        - models/${key}/candidate
        - models/${key}/release
        - reports/${key}/deploy.json: {cache: false}
"""


@dataclass(frozen=True)
class World:
    """The repository, and what is known of its rows."""

    root: Path
    first: pl.DataFrame  # id, text, label of a.csv
    second: pl.DataFrame  # of b.csv, which came with the second version

    @property
    def rows(self) -> pl.DataFrame:
        """As clean left them in the working tree, with their splits."""
        return read_rows(self.root / "data/films/clean")

    def row(self, split: str, partition: pl.DataFrame) -> str:
        """The id of a row of a split that came with a partition, and of which there is no copy."""
        found = self.rows.filter(pl.col("split") == split, pl.col("id").is_in(partition["id"].to_list()))
        return str(found.sort("id")["id"][3])

    def text(self, id: str) -> str:
        return str(pl.concat([self.first, self.second]).filter(id=id)["text"][0])

    def predict(self, number: int, text: str, version: str, **more: Any) -> str:
        """Write into the journal that a text was answered; the prediction's id."""
        journal = open_journal(f"sqlite:///{self.root}/.mill/journal.sqlite")
        made = Prediction(
            id=f"{number:032d}",
            at_us=1_790_000_000_000_000 + number,
            model="films",
            version=version,
            client="shop",
            inputs={"text": text},
            answer={"label": "positive", "probability": 0.75},
            latency_ms=2.5,
            embedding=np.ones(4, dtype=np.float32),
            **more,
        )
        journal.record([made]).result(10)
        journal.close()
        return made.id

    def run(self, message: str) -> str:
        """Bring the line up to date and commit it; the release's version."""
        dvc(self.root, "repro", "-q")
        dvc(self.root, "push", "-q")
        git(self.root, "add", "-A")
        git(self.root, "commit", "-qm", message)
        return read_release(self.root / "models/films/release").version


def make_world(folder: Path, tiny: Line, reviews: pl.DataFrame) -> World:
    """A world in `folder`: version one of a.csv, version two, the champion, of b.csv as well."""
    root = folder / "repository"
    root.mkdir(parents=True)
    git(root, "init", "-q", "-b", "main")
    git(root, "config", "user.name", "t")
    git(root, "config", "user.email", "t@localhost")
    rows = reviews.select("id", "text", "label").head(300)
    long = rows.sort(pl.col("text").str.len_chars())[-1]
    copy = long.with_columns(id=pl.lit("copy-of-it"), text=pl.col("text") + " indeed")
    short = pl.DataFrame({"id": ["too-short"], "text": ["x"], "label": ["positive"]})
    world = World(root, pl.concat([rows.head(200), short]), pl.concat([rows.slice(200), copy]))
    if long["id"][0] in world.second["id"][:-1].to_list():  # the copy comes later than what it is a copy of
        world = World(root, pl.concat([world.first, long]), world.second.filter(pl.col("id") != long["id"][0]))
    _write_params(root)
    write_text(root / "dvc.yaml", STAGES)
    write_text(root / "line.py", LINE.replace("TINY", str(tiny.paths.root)))
    write_text(
        root / ".gitignore",
        "/.mill/\n/models/\n/incoming/\n/data/*/*\n!/data/*/*.jsonl\n!/data/*/source.json\n*.html\nmeasured/\n",
    )
    write_text(
        root / ".dvc/config",
        '[core]\n    analytics = false\n    remote = near\n[remote "near"]\n    url = ../../store\n',
    )
    write_text(root / ".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    for number, partition in enumerate((world.first, world.second), start=1):
        (root / "incoming").mkdir(exist_ok=True)
        partition.write_csv(root / f"incoming/{number}.csv")
        pull("films", root)
        world.run(f"version {number}")
        release = read_release(root / "models/films/release")
        version = registry.register(root, "films", git(root, "rev-parse", "HEAD"), release=release, why="new rows")
        decision = {"model": "films", "verdict": "promote", "sentence": "It is better.", "challenger": release.version}
        told = {"champion": None, "alpha_spent": 0.0, "test_set": None, "inputs_sha256": f"{number}"}
        registry.record_decision(root, version.commit, {**decision, **told})
        registry.promote(root, version, why="better")
    return world


def copy_of(world: World, folder: Path) -> World:
    """A world of one's own to change."""
    shutil.copytree(world.root.parent, folder, symlinks=True)
    return World(folder / "repository", world.first, world.second)


def long_one(world: World) -> str:
    """The id of the row that `copy-of-it` is a copy of."""
    every = pl.concat([world.first, world.second]).filter(pl.col("id") != "copy-of-it")
    return str(every.sort(pl.col("text").str.len_chars())["id"][-1])


def _write_params(root: Path) -> None:
    from ruamel.yaml import YAML

    shipped = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())["flows"]
    params = tiny_params(floors={}, must_beat_baselines=False, golden_rows=2, reference_rows=20)
    found = params.model_dump(mode="json", by_alias=True, serialize_as_any=True)
    found["collect"] |= {"path": "incoming/*.csv", "format": "csv", "where": None, "rows_per_shard": 100}
    found["collect"]["columns"] = {"id": "id", "text": "text", "label": "label"}
    found["clean"]["min_rows"] = 50
    flows = {**shipped, "models": {"films": {**shipped["models"]["reviews"], "retrain": None}}}
    write_json(root / "params.yaml", {"models": {"films": {**found, "pin": "data/films/source.json"}}, "flows": flows})


def facts_of(root: Path, tag: str) -> dict[str, Any]:
    """What an annotated tag says to programs."""
    body = git(root, "for-each-ref", "--format=%(contents:body)", f"refs/tags/{tag}")
    return dict(json.loads(body))
