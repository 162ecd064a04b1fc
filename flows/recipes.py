"""`mill add`: another model from a recipe, written into params.yaml and dvc.yaml, where all else stays as it stands."""

import re
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode

from flows.params import load_flows
from tasks import problems
from tasks.errors import ParamsError, did_you_mean
from tasks.mistakes import listed
from tasks.params import load, read_yaml, wrong_names
from tasks.paths import Paths
from tasks.shards import write_json, write_text

RECIPES = Path("recipes")

# In Git for each model, and empty until somebody admits, forgets or pulls something.
_NO_PARTITIONS: Mapping[str, Any] = {"partitions": []}


def recipes(root: Path = Path()) -> list[str]:
    """The names of the recipes that there are."""
    return sorted(file.stem for file in (root / RECIPES).glob("*.yaml"))


def add(name: str, recipe: str, root: Path = Path()) -> list[str]:
    """Write the recipe's entry as the model `name`, and say what was written and what is next.

    Raises ParamsError, and changes nothing, where the name is taken or wrong, or params.yaml is not written in blocks.
    """
    known = recipes(root)
    if recipe not in known:
        raise ParamsError(f"There is no recipe {recipe!r}.{did_you_mean(recipe, known)} Known: {listed(known)}.")
    params = root / "params.yaml"
    if name in load(params).models:
        raise ParamsError(f"{params} has a model {name!r} already. Choose another name.")
    if wrong := list(wrong_names({name: None}, params)):
        raise ParamsError(wrong[0])
    text = _with_model(params.read_text(encoding="utf-8"), name, _sections(root / RECIPES / f"{recipe}.yaml"), params)
    with tempfile.TemporaryDirectory() as folder:
        tried = Path(folder) / "params.yaml"
        write_text(tried, text)
        try:
            load(tried)
            load_flows(tried)
        except ParamsError as error:
            raise ParamsError(str(error).replace(str(tried), str(params))) from None
    paths = Paths(name, root)
    for file in (paths.admissions, paths.forgotten):
        if not file.exists():
            write_text(file, "\n")
    if not paths.feedback_pin.exists():
        write_json(paths.feedback_pin, _NO_PARTITIONS)
    write_text(params, text)
    written = ["params.yaml", f"data/{name}/", *_measured_too(name, root / "dvc.yaml")]
    return [
        f"{name}: written to {listed(written)} from the recipe {recipe}. Nothing else was changed.",
        "It says what is true of the recipe's data: see to its collect, validate, deploy.floors and deploy.card.",
        f"Next: mill run {name}",
    ]


def problem_lines(root: Path = Path()) -> list[str]:
    """A paragraph for each kind of problem."""
    kinds = {recipe: read_yaml(root / RECIPES / f"{recipe}.yaml")["model"]["problem"] for recipe in recipes(root)}
    lines = []
    for file in sorted(Path(problems.__file__).parent.glob("[!_]*.py")):
        problem = problems.load(file.stem)
        about = (sys.modules[type(problem).__module__].__doc__ or "").strip().splitlines()[0]
        own = [f"mill add NAME --recipe {recipe}" for recipe, kind in kinds.items() if kind == problem.name]
        targets = [name for name in problem.columns if name not in problem.inputs]
        lines += [
            f"{problem.name}: {about}",
            f"  reads    {', '.join(problem.inputs)}; learns from {', '.join(targets) or 'those alone'}",
            f"  judged   by {problem.headline}, and by "
            + ", ".join(name for name in problem.higher_is_better if name != problem.headline),
            f"  recipe   {', or '.join(own) or 'none'}",
        ]
    return lines


def _sections(file: Path) -> tuple[str, str]:
    """The text of the recipe's `model`, with the comment above it, and of its `flows`, both without indentation."""
    found = re.fullmatch(r"((?:#.*\n)*)model:\n(.*?\n)\nflows:\n(.*)", file.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise ParamsError(f"{file} is no recipe: it has a comment, then `model:`, an empty line, and `flows:`.")
    comment, model, flows = found.groups()
    return comment + "NAME:\n" + model, "NAME:\n" + flows


def _with_model(text: str, name: str, sections: tuple[str, str], file: Path) -> str:
    """The text of params.yaml with an entry below `models` and another below `flows.models`."""
    model, flows = (section.replace("NAME:", f"{name}:", 1) for section in sections)
    for path, entry in ((("models",), f"\n{model}"), (("flows", "models"), flows)):
        line, indent = _end_of(text, path, file)
        lines = text.splitlines(keepends=True)
        lines[line:line] = textwrap.indent(entry, " " * indent).splitlines(keepends=True)
        text = "".join(lines)
    return text


def _end_of(text: str, path: Sequence[str], file: Path) -> tuple[int, int]:
    """The line behind the last entry of a block, and how far its entries are indented."""
    node, end = YAML(pure=True).compose(text), len(text.splitlines())
    for key in path:
        entries = node.value if isinstance(node, MappingNode) else []
        starts = [entry.start_mark.line for entry, _ in entries]
        place = next((place for place, (entry, _) in enumerate(entries) if entry.value == key), None)
        if place is None:
            raise ParamsError(f"{file} has no {'.'.join(path)}. Write the entry by hand, after {RECIPES}/.")
        node, end = entries[place][1], (starts[place + 1] if place + 1 < len(starts) else end)
    if not isinstance(node, MappingNode) or node.flow_style or not node.value:
        raise ParamsError(f"{file}: {'.'.join(path)} is not a block of entries. Write it as one, or the entry by hand.")
    indent = node.value[0][0].start_mark.column
    lines = text.splitlines()
    while end and (not lines[end - 1].strip() or re.match(rf" {{0,{indent - 1}}}#", lines[end - 1])):
        end -= 1  # a comment further out belongs to what follows
    return end, indent


def _measured_too(name: str, file: Path) -> list[str]:
    """Add the model to what `dvc metrics show` and `dvc plots show` read besides the stages' own; nothing where those
    lines are not as they were shipped.
    """
    text = file.read_text(encoding="utf-8")
    for last, *before in (("measured/", "live/metrics.json"), ("live/plots/metrics/train/",)):
        found = re.search(rf"(?m)^  - reports/[\w-]+/{last}\n(?!  - )", text)
        if found is None:
            return []
        lines = "".join(f"  - reports/{name}/{what}\n" for what in (*before, last))
        text = text[: found.end()] + lines + text[found.end() :]
    write_text(file, text)
    return ["dvc.yaml"]
