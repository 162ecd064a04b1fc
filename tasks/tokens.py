"""Token shards as train and export read them: mapped from disk, never copied into memory as a whole."""

from pathlib import Path

import polars as pl

from tasks.errors import DataError
from tasks.shards import read_json


def load_tokens(tokens: Path, split: str) -> pl.DataFrame:
    """The encoded rows of one split. Raises DataError where there are none."""
    paths = [tokens / entry["name"] for entry in read_json(tokens / "manifest.json")["shards"]]
    parts = [_map(path) for path in paths if path.name.startswith(f"{split}-")]
    if not any(len(part) for part in parts):
        raise DataError(f"{tokens}: the {split} split has no rows. Collect more, or change clean.split.")
    return pl.concat(parts, rechunk=False)


def _map(path: Path) -> pl.DataFrame:
    import pyarrow as pa

    # read_ipc copies since Polars 2; a mapped Arrow table does not.
    return pl.DataFrame(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
