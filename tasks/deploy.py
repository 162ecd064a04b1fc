"""Pack the release, and say whether it may be used."""

import hashlib
import importlib.metadata
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tasks.card import model_card
from tasks.descriptors import describe
from tasks.errors import DataError, ParamsError, did_you_mean
from tasks.golden import make_golden
from tasks.params import Deploy, Model
from tasks.paths import Paths
from tasks.problems import Problem
from tasks.progress import progress
from tasks.release import ACCEPTED, CARD, GOLDEN, REFERENCE, REFUSED, seal
from tasks.runtime import Runtime, load_runtime
from tasks.shards import (
    MANIFEST,
    atomic_folder,
    read_json,
    read_shards,
    require_space,
    sha256_of,
    write_json,
    write_parquet,
    write_text,
)

# What a change of version could change in the model's numbers, from the data to the answer.
_PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "polars",
    "safetensors",
    "scikit-learn",
    "tokenizers",
    "torch",
    "transformers",
)


def deploy(paths: Paths, release: Path, report: Path, *, params: Model, problem: Problem) -> None:
    """Write the release folder and the verdict on it: `accepted`, or `refused` with every reason.

    A refusal is a verdict and no failure. Raises ParamsError where a floor is set for a metric that nobody measures.
    """
    reports = {stage: read_json(paths.report(stage)) for stage in ("validate", "clean", "export", "evaluate")}
    evaluation = reports["evaluate"]
    reasons = judge(evaluation, params.deploy, problem)
    verdict = REFUSED if reasons else ACCEPTED
    require_space(release, 2 * sum(file.stat().st_size for file in paths.candidate.rglob("*")))
    with atomic_folder(release) as folder, progress("deploy", params.deploy.reference_rows, "rows") as advance:
        shutil.copytree(paths.candidate, folder, dirs_exist_ok=True)
        runtime = load_runtime(folder, params.threads)
        rows = held_out(paths.clean, max(params.deploy.golden_rows, params.deploy.reference_rows))
        write_json(folder / GOLDEN, make_golden(rows.head(params.deploy.golden_rows), runtime, problem))
        compared = reference(rows.head(params.deploy.reference_rows), runtime, problem, advance)
        write_parquet(folder / REFERENCE, compared)
        write_text(folder / CARD, model_card(paths.model, verdict, reasons, reports, params, problem))
        manifest = seal(
            folder,
            {
                "model": paths.model,
                "verdict": verdict,
                "reasons": reasons,
                "parameters": params.model_dump(mode="json", by_alias=True, serialize_as_any=True),
                "headline": problem.headline,
                "metrics": evaluation["metrics"],
                "data": {"collect": _data_of(paths.collected), "clean": _data_of(paths.clean)},
                "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
            },
        )
    # Whoever runs DVC alone sees no other word of it.
    print(f"deploy: {manifest['version']} is {verdict}. {' '.join(reasons)}".rstrip(), file=sys.stderr)
    write_json(
        report,
        {
            "verdict": manifest["verdict"],
            "reasons": reasons,
            "version": manifest["version"],
            "headline": {"metric": problem.headline, **evaluation["metrics"][problem.headline]},
            "bytes": {
                "model": manifest["files"]["model.onnx"]["bytes"],
                "release": sum(file["bytes"] for file in manifest["files"].values()),
            },
        },
    )


def judge(evaluation: Mapping[str, Any], params: Deploy, problem: Problem) -> list[str]:
    """Every reason to refuse, a sentence each: the floors that are missed and by how much, the baselines not beaten.

    Where less is better the floor is a ceiling. Raises ParamsError for a floor on a metric that is not measured.
    """
    metrics, reasons = evaluation["metrics"], []
    check_floors(params.floors, metrics, problem)
    for name, floor in sorted(params.floors.items()):
        value = metrics[name]["value"]
        higher = higher_is_better(name, problem)
        limit, side = ("floor", "below") if higher else ("ceiling", "above")
        if value is None:
            reasons.append(f"{name} is not defined on the test split, and has a {limit} of {floor:g}.")
        elif (value < floor) if higher else (value > floor):
            off = round(abs(value - floor), 6)
            reasons.append(f"{name} is {value:g}: {off:g} {side} its {limit} of {floor:g}.")
    if params.must_beat_baselines:
        reasons += [
            f"The baseline {name} is not beaten: {problem.headline} is {_spoken(metrics[problem.headline])} against "
            f"{_spoken(found['metrics'][problem.headline])}, a difference of {_spoken(found['difference'])}."
            for name, found in sorted(evaluation["baselines"].items())
            if not found["beaten"]
        ]
    return reasons


def check_floors(floors: Iterable[str], metrics: Collection[str], problem: Problem) -> None:
    """Raise ParamsError for a floor on something that is not one of `metrics`."""
    for name in floors:
        if name not in metrics:
            raise ParamsError(
                f"params.yaml: deploy.floors.{name} is not a metric of {problem.name}.{did_you_mean(name, metrics)} "
                f"Known: {', '.join(sorted(metrics))}."
            )


def higher_is_better(metric: str, problem: Problem) -> bool:
    """The direction of a metric; that of one label, f1[positive], has the direction of f1."""
    return problem.higher_is_better[metric.partition("[")[0]]


def _spoken(found: Mapping[str, float | None]) -> str:
    return (
        "undefined" if found["value"] is None else f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
    )


def held_out(clean: Path, num_rows: int) -> pl.DataFrame:
    """The first test rows by a hash of their ids, so that the order and the sharding of the rows do not matter."""
    chosen = None
    for shard in read_shards(clean):
        rows = shard.read().filter(pl.col("split") == "test")
        hashes = [hashlib.sha256(row_id.encode()).hexdigest() for row_id in rows["id"]]
        rows = rows.with_columns(pl.Series("_hash", hashes, dtype=pl.String))
        chosen = pl.concat([rows] if chosen is None else [chosen, rows]).sort("_hash").head(num_rows)
    if chosen is None or chosen.is_empty():
        raise DataError(f"{clean} has no row of the test split. clean.split.test says how large it is.")
    return chosen.drop("_hash")


def reference(
    rows: pl.DataFrame, runtime: Runtime, problem: Problem, advance: Callable[[int], None] = lambda _: None
) -> pl.DataFrame:
    """Give what the monitor compares traffic with: per row its descriptors, the answer, the embedding; but no text."""
    rows = problem.asked(rows)
    outputs = runtime.outputs(rows, advance=advance)
    embedding_ND = np.asarray(outputs["pooled_embedding"], dtype=np.float32)
    answers = problem.answer(rows, outputs, runtime.signature, runtime.calibration)
    embedding = pl.Series("embedding", embedding_ND, dtype=pl.Array(pl.Float32, embedding_ND.shape[1]))
    return pl.concat([describe(rows, runtime), problem.watched(answers), embedding.to_frame()], how="horizontal")


def _data_of(folder: Path) -> dict[str, Any]:
    shards = {shard.path.name: {"rows": shard.rows, "sha256": shard.sha256} for shard in read_shards(folder)}
    return {"manifest_sha256": sha256_of(folder / MANIFEST), "shards": shards}
