"""Releases for the gate to judge, and its rules: what its tests stand on."""

import shutil
from pathlib import Path
from typing import Any

from tasks.release import MANIFEST, Release, read_release, seal
from tasks.shards import read_json, write_json
from tests.conftest import Line

# Of a champion that is worse and larger, on two hundred rows.
GATE = {"uses": 1, "margin": 0.08, "improves": {"size": 0.1}, "slice_margin": 0.3}


def sealed(source: Path, folder: Path, runtime: dict[str, Any] | None = None, padding: int = 0, **told: Any) -> Release:
    """A release like another, with some of its runtime.json changed, larger by some bytes, or told otherwise."""
    shutil.copytree(source, folder)
    facts = {key: value for key, value in read_json(folder / MANIFEST).items() if key not in ("files", "version")}
    if runtime:
        write_json(folder / "runtime.json", {**read_json(folder / "runtime.json"), **runtime})
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" " * padding)
    seal(folder, {**facts, "model": "films", **told})
    return read_release(folder)


def changed_gate(params: Path, **changed: Any) -> None:
    content = read_json(params)
    content["flows"]["models"]["films"]["gate"] |= changed
    write_json(params, content)


def better_one(line: Line, folder: Path) -> Release:
    return sealed(line.paths.release, folder)


def upside_down_one(line: Line, folder: Path) -> Release:
    """As good as the tiny model is bad: it says the other label, for it has learned much."""
    return sealed(line.paths.release, folder, runtime={"signature": {"labels": ["positive", "negative"]}})
