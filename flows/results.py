"""What a run leaves for Git to keep, as DVC's index knows it; whichever pipeline file the stages stand in."""

from pathlib import Path
from typing import TYPE_CHECKING

from flows.git import attempt
from flows.merge import LOCK
from flows.stages import line_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dvc.stage import Stage


def results_of(folder: Path, model: str) -> list[str]:
    """The files and folders, below `folder`, in which Git keeps what a run of the model has made there.

    They are the locks of all stages that such a run goes through, the outputs that DVC does not cache, and the
    .gitignore files by which it keeps Git from the others. What Git ignores is left out. Raises LineError where DVC
    cannot read the pipelines.
    """
    with line_of(folder, model) as (repo, stages):
        root = Path(repo.root_dir)
        found = {path for stage in stages.values() for path in _left_by(stage) if path.is_relative_to(root)}
        places = sorted(path.relative_to(root).as_posix() for path in found if path.exists())
    return _not_ignored(folder, places)


def _left_by(stage: "Stage") -> "Iterator[Path]":
    file = Path(stage.path)
    yield file if file.suffix == ".dvc" else file.with_name(LOCK)
    for out in stage.outs:
        if out.protocol == "local":
            yield Path(out.fs_path).with_name(".gitignore") if out.use_cache else Path(out.fs_path)


def _not_ignored(folder: Path, places: list[str]) -> list[str]:
    """Those that Git takes. It refuses all of them for the sake of a single one that it ignores."""
    said = attempt(folder, "check-ignore", "-z", "--stdin", stdin="".join(f"{place}\0" for place in places)).stdout
    ignored = set(said.split("\0"))
    return [place for place in places if place not in ignored]
