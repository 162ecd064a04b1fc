"""The training rows that lie next to a prediction in the space of the version that gave it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from tasks.progress import progress
from tasks.release import Release
from tasks.runtime import load_runtime

# A minute or two of computing on two cores. Of more rows these are drawn.
_MAX_ROWS = 20_000
_BATCH = 64


@dataclass(frozen=True)
class Nearest:
    """The nearest first: each with its id, its cosine to the prediction, and the row itself."""

    rows: list[dict[str, Any]]
    num_compared: int
    num_rows: int


def nearest_rows(release: Release, inputs: Mapping[str, Any], clean: pl.DataFrame, number: int) -> Nearest:
    """The `number` rows of the train split whose pooled embeddings have the largest cosine to that of `inputs`.

    The release computes all of them anew: no version keeps embeddings of what it learned from. Of more than 20,000 rows
    that many are compared, drawn by the hash of their ids.
    """
    train = clean.filter(pl.col("split") == "train")
    compared = _drawn(train)
    runtime = load_runtime(release.folder, release.manifest["parameters"]["threads"])
    schema = {"id": pl.String(), **{name: runtime.problem.columns[name] for name in runtime.problem.inputs}}
    asked = pl.DataFrame([{"id": "", **inputs}], schema=schema)
    with progress("embeddings", len(compared), "rows") as advance:
        rows_ND = _directions(runtime.read(compared, _BATCH, advance)["pooled_embedding"])
    asked_1D = _directions(runtime.read(asked, 1)["pooled_embedding"])
    cosines_N = rows_ND @ asked_1D[0]
    order = np.lexsort((compared["id"].to_numpy(), -cosines_N))[:number]
    found = [
        {"id": row["id"], "cosine": float(cosines_N[place]), "row": {k: v for k, v in row.items() if k != "id"}}
        for place, row in zip(order.tolist(), compared[order.tolist()].to_dicts(), strict=True)
    ]
    return Nearest(found, len(compared), len(train))


def _drawn(rows: pl.DataFrame) -> pl.DataFrame:
    if len(rows) <= _MAX_ROWS:
        return rows
    hashes = [hashlib.sha256(str(id).encode()).hexdigest() for id in rows["id"]]
    return rows.with_columns(pl.Series("#", hashes)).sort("#").head(_MAX_ROWS).drop("#")


def _directions(embeddings: Any) -> Any:
    values_ND = np.asarray(embeddings, dtype=np.float32)
    return values_ND / np.maximum(np.linalg.norm(values_ND, axis=1, keepdims=True), 1e-12)
