"""Which files of this package a stage's result depends on, found by walking the imports.

DVC takes the lists as dependencies, so that a change of code makes stale what it can change and nothing else.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from tasks.errors import MillError
from tasks.paths import STAGES
from tasks.shards import atomic_folder

# What a stage may import without depending on it: these say things to people and change no output.
SPEAK_ONLY = frozenset({"tasks", "tasks.__main__", "tasks.errors", "tasks.pages", "tasks.paths", "tasks.progress"})

# What a problem imports to build a model or to judge one, which only these stages ask it for. A test of the running
# line proves that the others never load it.
ASKED_FOR_BY = {
    "tasks.pretrained": frozenset({"tokenize", "train", "export", "deploy"}),
}


def code(package: Path, lists: Path) -> None:
    """Write to the folder `lists` which files matter to what, each with its SHA-256, as `sha256sum --check` reads them.

    `<problem>/<stage>.sha256` for each problem and stage, and `sources/<source>.sha256`. Raises MillError where a file
    of the package is not valid Python.
    """
    with atomic_folder(lists) as unfinished:
        for name, modules in _closures(package):
            file = unfinished / f"{name}.sha256"
            file.parent.mkdir(exist_ok=True)
            file.write_text("".join(_line(package, module) for module in sorted(modules)))


def _closures(package: Path) -> Iterator[tuple[str, set[str]]]:
    """A name for each thing that depends on code, and the modules that it imports, early or late."""
    from grimp import build_graph
    from grimp.exceptions import SourceSyntaxError

    try:
        graph = build_graph("tasks", cache_dir=None)
    except SourceSyntaxError as error:
        raise MillError(f"{error.filename}, line {error.lineno}: not valid Python: {error.text}") from None

    def closure(roots: Iterable[str]) -> set[str]:
        return set(roots).union(*(graph.find_upstream_modules(root) for root in roots)) - SPEAK_ONLY

    for source in _implementations(package / "sources"):
        yield f"sources/{source}", closure({f"tasks.sources.{source}"})
    for problem in _implementations(package / "problems"):
        for stage in STAGES:
            roots = {f"tasks.{stage}"}
            if "tasks.problems" in graph.find_upstream_modules(f"tasks.{stage}"):
                roots.add(f"tasks.problems.{problem}")
            unasked = {module for module, stages in ASKED_FOR_BY.items() if stage not in stages}
            yield f"{problem}/{stage}", closure(roots) - unasked


def _implementations(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("[!_]*.py"))


def _line(package: Path, module: str) -> str:
    path = package.parent.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(package.parent).as_posix()}\n"
