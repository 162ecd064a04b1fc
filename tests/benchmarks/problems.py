"""docs/problems.md: what every recipe reaches, and what it takes, by running each to its end.

    python -m tests.benchmarks.problems [--only NAME...] [--folder FOLDER] [--table]

Each recipe is added with `mill add` in a clone of what is committed here, and its line runs there: first as the recipe
says, then export, evaluate and deploy once more for each variant that was not released. One recipe runs at a time.
Where a run was ended, the same command goes on in the same clone; a new commit begins anew.

All figures are read from the reports that the line writes, and kept in docs/problems.json, so that `--only` leaves the
other rows as they stand. `--table` runs nothing and writes the table from what is kept. Exits with 1 where a line
failed.
"""

import argparse
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from flows.recipes import recipes
from tasks import problems
from tasks.compression import COMPRESSIONS
from tasks.errors import DataError, MillError, ParamsError, did_you_mean
from tasks.params import load_model, read_yaml
from tasks.paths import STAGES, Paths
from tasks.problems import Problem
from tasks.shards import read_json, write_json, write_text

REPOSITORY = Path(__file__).parent.parent.parent
KEPT, PAGE = Path("docs/problems.json"), Path("docs/problems.md")

# In this order a cell has a figure before and after compression. The last is only tried where a recipe names it.
VARIANTS = ("fp32", *COMPRESSIONS)
ALWAYS = VARIANTS[:2]

# Of a recipe's row: its figures, as JSON holds them.
Row = Mapping[str, Any]

HEAD = """# What the problems reach

Made by `python -m tests.benchmarks.problems`, which runs each recipe of `recipes/` to its end with the data shipped
here and reads the figures from the reports of its line.

- Quality is the headline metric of the exported model on held-out rows, with its 95 % interval from a bootstrap.
- A release that misses a floor of its recipe or does not beat every baseline for certain is `refused`.
- Compression keeps weights in 8 bits and turns activations to 8 bits at run time: int8 with one scale for all of them,
  int8_blocks with one for each 32. All variants answered the same rows. Size, latency and quality are fp32 → int8, and
  → int8_blocks where the recipe has it; the variant that the line released is in bold.
- Latency is the median from one input to its answer, without a server. Times are those of the stages. What they depend
  on is the machine in the last column.
"""


def main() -> int:
    """Run what is asked, write the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="recipes; all of them where not given")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "modelmill-problems")
    parser.add_argument("--table", action="store_true", help="run nothing")
    asked = parser.parse_args()
    known = recipes(REPOSITORY)
    kept = read_json(REPOSITORY / KEPT) if (REPOSITORY / KEPT).exists() else {}
    failed = []
    for name in [] if asked.table else asked.only or known:
        if name not in known:
            raise SystemExit(f"There is no recipe {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
        try:
            kept[name] = run(name, asked.folder)
        except MillError as error:
            failed.append(name)
            print(f"{name}: {error} Its row stays as it was.", file=sys.stderr)
            continue
        write_json(REPOSITORY / KEPT, kept)
    write_text(REPOSITORY / PAGE, page(kept, known))
    return 1 if failed else 0


def run(recipe: str, folder: Path) -> Row:
    """The recipe's row, from a clone below `folder`. Raises MillError where its line does not come to its end."""
    root = _clone(recipe, folder)
    paths = Paths(_model_name(recipe), root)
    _repro(paths)
    found = figures(paths)
    released = found["released"]
    for variant in read_yaml(root / "recipes" / f"{recipe}.yaml")["model"]["export"]["variants"]:
        if variant != released:
            export_only(paths, recipe, variant)
            try:
                _repro(paths)
                found["variants"] |= figures(paths)["variants"]
            except MillError as error:
                print(f"{recipe}: {variant} has no figures. {error}", file=sys.stderr)
            export_only(paths, recipe, None)
    return found


def figures(paths: Paths) -> dict[str, Any]:
    """A recipe's row as its line's reports have it. Raises DataError where one is missing."""
    params = load_model(paths.model, paths.root / "params.yaml")
    problem = problems.load(params.problem)
    evaluation, exported = _report(paths.report("evaluate"), paths), _report(paths.report("export"), paths)
    serving = _report(paths.measured("serving"), paths)
    seconds = {stage: _report(paths.measured(stage), paths)["wall_seconds"] for stage in STAGES}
    architecture, num_weights = _model(paths)
    released = exported["released"]
    quality = evaluation["metrics"][problem.headline]
    return {
        "baseline": _best_baseline(evaluation, problem),
        "machine": _machine(_report(paths.report("train"), paths)["precision"], params.threads),
        "metric": problem.headline,
        "model": architecture,
        "problem": problem.name,
        "quality": quality,
        "released": released,
        "seconds": {"line": round(sum(seconds.values()), 1), "train": round(seconds["train"], 1)},
        "variants": {
            released: {
                "bytes": exported["variants"][released]["bytes"],
                "latency_ms": serving["latency_ms"]["p50"],
                "quality": quality["value"],
            }
        },
        "verdict": _report(paths.report("deploy"), paths)["verdict"],
        "weights": num_weights,
    }


def page(kept: Mapping[str, Row], known: Iterable[str]) -> str:
    """The document: a row for each recipe that was run, and a sentence on each that was not."""
    names = sorted(known)
    columns = (
        "recipe",
        "model",
        "quality (95 % interval)",
        "best baseline, difference to it",
        "verdict",
        "train",
        "whole line",
        "size, MB",
        "latency, ms",
        "quality of each variant",
        "machine",
    )
    lines = [HEAD, f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cells(name, kept[name]))} |" for name in names if name in kept]
    missing = [name for name in names if name not in kept]
    if missing:
        lines += ["", "Not run yet, and so without a row:", ""]
        lines += [f"- {name}: `python -m tests.benchmarks.problems --only {name}`" for name in missing]
    return "\n".join(lines) + "\n"


def _cells(name: str, row: Row) -> list[str]:
    baseline = row["baseline"]
    higher = problems.load(row["problem"]).higher_is_better[row["metric"]]
    return [
        name,
        f"{row['model']}, {row['weights'] / 1e6:.1f} M",
        f"{row['metric']} {_interval(row['quality'])}{'' if higher else ', less is better'}",
        f"{baseline['name']} {_number(baseline['value'])}, {_interval(baseline['difference'], signed=True)}",
        row["verdict"],
        _duration(row["seconds"]["train"]),
        _duration(row["seconds"]["line"]),
        _each(row, "bytes", lambda found: f"{found / 1e6:.1f}"),
        _each(row, "latency_ms", lambda found: f"{found:.3g}" if found < 1000 else f"{found:,.0f}"),
        _each(row, "quality", _number),
        row["machine"],
    ]


def _each(row: Row, key: str, spoken: Callable[[Any], str]) -> str:
    """A figure of each variant, that of the released one in bold; a dash where one that always is was not measured."""
    shown = []
    for variant in (name for name in VARIANTS if name in ALWAYS or name in row["variants"]):
        said = spoken(row["variants"][variant][key]) if variant in row["variants"] else "–"
        shown.append(f"**{said}**" if variant == row["released"] else said)
    return " → ".join(shown)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _interval(found: Mapping[str, float | None], *, signed: bool = False) -> str:
    if found["value"] is None:
        return "undefined"
    sign = "+" if signed else ""
    return f"{found['value']:{sign}.3f} ({found['low']:{sign}.3f} to {found['high']:{sign}.3f})"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _best_baseline(evaluation: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    """The baseline that comes nearest to the model, or furthest beyond it. Raises DataError where there is none."""
    sign = 1 if problem.higher_is_better[problem.headline] else -1
    reached = {
        name: sign * found["metrics"][problem.headline]["value"]
        for name, found in evaluation["baselines"].items()
        if found["metrics"][problem.headline]["value"] is not None
    }
    if not reached:
        raise DataError(f"No baseline of {problem.name} has a {problem.headline}.")
    best = max(sorted(reached), key=lambda name: reached[name])
    found = evaluation["baselines"][best]
    return {
        "beaten": found["beaten"],
        "difference": found["difference"],
        "name": best,
        "value": found["metrics"][problem.headline]["value"],
    }


def _report(file: Path, paths: Paths) -> Any:
    if not file.exists():
        raise DataError(f"{file} is not here: the line of {paths.model} has not come to its end. Run it again.")
    return read_json(file)


def _model(paths: Paths) -> tuple[str, int]:
    """The class of the trained model and how many weights it has, from its checkpoint."""
    from safetensors import safe_open

    config = _report(paths.checkpoint / "config.json", paths)
    with safe_open(paths.checkpoint / "model.safetensors", framework="np") as weights:
        names = weights.keys()
        return config["architectures"][0], sum(math.prod(weights.get_slice(name).get_shape()) for name in names)


def _machine(precision: str, threads: int) -> str:
    """What the times depend on, as far as it can be told."""
    cpus = Path("/proc/cpuinfo")
    found = re.search(r"(?m)^model name\s*: (.*)$", cpus.read_text()) if cpus.exists() else None
    return f"{found[1].strip() if found else platform.machine()}, {threads} threads, {precision}"


def _clone(recipe: str, folder: Path) -> Path:
    """A clone of what is committed here with the recipe added: the one of an earlier run, if there is one."""
    commit = _said("git", "rev-parse", "--short=12", "HEAD", cwd=REPOSITORY).strip()
    root = folder.resolve() / commit / recipe
    if not (root / ".git").exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        _said("git", "clone", "-q", str(REPOSITORY), str(root), cwd=root.parent)
    if _model_name(recipe) not in read_yaml(root / "params.yaml")["models"]:
        _said(sys.executable, "-m", "flows.cli", "add", _model_name(recipe), "--recipe", recipe, cwd=root)
    return root


def _model_name(recipe: str) -> str:
    return recipe.replace("_", "-")


def export_only(paths: Paths, recipe: str, variant: str | None) -> None:
    """Have export make this variant alone, wide of its limits; without one, what the recipe says."""
    from ruamel.yaml import YAML

    yaml, file = YAML(), paths.root / "params.yaml"
    params = yaml.load(file.read_text(encoding="utf-8"))
    says = read_yaml(paths.root / "recipes" / f"{recipe}.yaml")["model"]["export"]
    wide = {
        "variants": [variant],
        "max_probability_difference": 1.0,
        "max_changed_answers": 1.0,
        "max_perplexity_difference": None,
    }
    params["models"][paths.model]["export"] = {**says, **(wide if variant else {})}
    with file.open("w", encoding="utf-8") as unfinished:
        yaml.dump(params, unfinished)


def _repro(paths: Paths) -> None:
    """Bring the line up to date, one stage at a time; what it says is in a log beside the clone.

    A stage out of DVC's run cache would leave beside its reports what the clock said of another variant.
    """
    with (paths.root.parent / f"{paths.model}.log").open("a", encoding="utf-8") as log:
        command = [sys.executable, "-m", "dvc", "repro", "--no-run-cache", f"deploy@{paths.model}"]
        done = subprocess.run(command, cwd=paths.root, env=_environment(), stdout=log, stderr=log, check=False)
    if done.returncode:
        raise DataError(f"Its line failed; see {log.name}. The same command goes on there.")


def _said(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ParamsError(f"{' '.join(command)} failed in {cwd}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _environment() -> dict[str, str]:
    """The stages' commands say `python`, which has to be this one; the clone's own code is what runs."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return own | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


if __name__ == "__main__":
    sys.exit(main())
