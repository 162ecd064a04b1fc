"""What `mill verify` certifies: stage by stage how far what was made again is what was made before, and where."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.agreement import DIFFERENT, IDENTICAL, ROWS_SEEN, TOLERANCES, WITHIN, Agreement
from flows.reproduction import REQUIREMENTS
from tasks.shards import sha256_of, write_json, write_text

TAKEN, NOT_RUN = "taken", "not run"

# What decides how sums are rounded, among what a processor can do.
_FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16", "sve")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Stage:
    """One stage's outputs, each file with how far it agrees; `why` where there is nothing to compare."""

    name: str
    level: str
    why: str
    files: tuple[Agreement, ...]

    @property
    def agrees(self) -> bool:
        return self.level in (IDENTICAL, WITHIN, TAKEN)

    @property
    def told(self) -> str:
        """In words: what stands behind the level."""
        off = [file for file in self.files if file.level == (DIFFERENT if self.level == DIFFERENT else WITHIN)]
        if self.why or not off:
            return self.why or f"{len(self.files)} files"
        worst = off[0] if self.level == DIFFERENT else max(off, key=lambda file: file.largest)
        return f"{len(off)} of {len(self.files)} files; {worst.file}: {worst.figures}"


@dataclass(frozen=True)
class RowsSeen:
    """The hashes of the rows that a training saw, empty where it wrote none, and where the orders part, if known."""

    stage: str
    before: str
    after: str
    part: str

    @property
    def agrees(self) -> bool:
        return bool(self.before) and self.before == self.after

    @property
    def told(self) -> str:
        """One sentence."""
        if not self.before or not self.after:
            when = "at any time" if not self.before and not self.after else "now" if self.before else "then"
            return (
                f"{self.stage} has written no hash of the rows that it saw {when}, so nothing shows that they were the "
                f"same, in the same order: its report needs {ROWS_SEEN}."
            )
        same = "the same data in the same order" if self.agrees else "other data, or in another order"
        part = f", {self.part}" if self.part and not self.agrees else ""
        return f"{self.stage} saw {same}{part}: its rows hash to {self.before[:12]} and {self.after[:12]}."


@dataclass(frozen=True)
class Certificate:
    """All of it. `rows_seen` is of each stage that trains, and ran."""

    name: str
    model: str
    release: str
    commit: str
    at: str
    seconds: float
    stages: tuple[Stage, ...]
    rows_seen: tuple[RowsSeen, ...]
    where: Mapping[str, Any]

    @property
    def agrees(self) -> bool:
        return all(seen.agrees for seen in self.rows_seen) and all(stage.agrees for stage in self.stages)

    @property
    def verdict(self) -> str:
        """One sentence."""
        bad = [stage for stage in self.stages if not stage.agrees]
        if bad:
            return f"{self.name} was not made again: {bad[0].name} is {bad[0].level}. {bad[0].told}"
        if unsure := [seen for seen in self.rows_seen if not seen.agrees]:
            return f"{self.name} is not certified. {unsure[0].told}"
        moved = [stage.name for stage in self.stages if stage.level == WITHIN]
        how = f"within tolerance, from {moved[0]} on" if moved else "to the bit"
        return f"{self.name} was made again, {how}."


def describe(python: Path, folder: Path, model: str, is_fresh: bool) -> dict[str, Any]:
    """Where a line ran: processor, threads, Python and packages."""
    listing = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    packages = json.loads(subprocess.run([str(python), "-c", listing], capture_output=True, check=True).stdout)
    return {
        "processor": _processor(),
        "threads": {"model": _threads(folder, model), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "environment": "made for this" if is_fresh else "the one in which mill verify ran",
        "requirements_sha256": sha256_of(folder / REQUIREMENTS),
        "packages": dict(sorted(packages.items())),
    }


def write(certificate: Certificate, folder: Path) -> str:
    """Write the certificate as JSON and as text into a folder; give the text."""
    text = "\n".join(_lines(certificate)) + "\n"
    facts = asdict(certificate) | {
        "agrees": certificate.agrees,
        "verdict": certificate.verdict,
        "tolerances": TOLERANCES,
    }
    write_json(folder / "certificate.json", facts)
    write_text(folder / "certificate.txt", text)
    return text


def _lines(certificate: Certificate) -> Iterator[str]:
    where, processor = certificate.where, certificate.where["processor"]
    yield certificate.verdict
    yield ""
    yield f"version    {certificate.name}, {certificate.release}"
    yield f"commit     {certificate.commit}"
    yield f"made again {certificate.at}, in {certificate.seconds:.0f} s"
    yield f"processor  {processor['name']}, {processor['cores']} cores; {' '.join(processor['flags'])}"
    yield f"threads    {where['threads']['model']}"
    packages = f"{len(where['packages'])} packages, {REQUIREMENTS} {where['requirements_sha256'][:12]}"
    yield f"python     {where['python']}, {packages}, an environment that is {where['environment']}"
    yield ""
    wide = max(len(stage.name) for stage in certificate.stages)
    for stage in certificate.stages:
        yield f"{stage.name:<{wide}}  {stage.level:<16}  {stage.told}"
    yield ""
    yield from (seen.told for seen in certificate.rows_seen)
    yield "Tolerated: 1 % of a number, or 0.005; 2 % of a tensor's norm, or of what is computed of a row. No word,"
    yield "whole number or row may differ, but where what the stage reads has moved: 1 % of the rows, and counts by 1 %"
    yield "or twice their root."


def _processor() -> dict[str, Any]:
    name, flags = platform.processor() or platform.machine(), set[str]()
    if _CPUINFO.exists():
        facts = dict(line.split(":", 1) for line in _CPUINFO.read_text().splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in facts.items()}
        name = facts.get("model name", name)
        flags = set((facts.get("flags") or facts.get("Features") or "").split())
    return {"name": name, "cores": os.cpu_count(), "flags": [flag for flag in _FLAGS if flag in flags]}


def _threads(folder: Path, model: str) -> Any:
    from tasks.params import read_yaml

    return read_yaml(folder / "params.yaml")["models"][model].get("threads")
