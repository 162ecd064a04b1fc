"""The DVC graph as DVC has it: which stages there are, what each waits for, and the order of `dvc repro`."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from flows.merge import model_of_stage
from tasks.errors import MillError, did_you_mean
from tasks.params import load

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage
    from networkx import DiGraph


class LineError(MillError):
    """The stages cannot be run, or not recorded, for a reason that a person can mend."""


@dataclass(frozen=True)
class Node:
    """A stage: its address, as `dvc repro` takes it at the top of the repository, and the stages it waits for.

    It `needs` those that have to succeed. It comes `after` those that only have to have ended.
    """

    address: str
    needs: tuple[str, ...]
    after: tuple[str, ...] = ()

    def may_begin(self, ended: Mapping[str, bool]) -> bool:
        """Whether nothing is in its way any more, where these have ended, and succeeded or not."""
        return all(ended.get(need) for need in self.needs) and all(other in ended for other in self.after)

    @property
    def name(self) -> str:
        """The address without its file: train@reviews of sub/dvc.yaml:train@reviews. A .dvc file's is its path."""
        return self.address.rpartition(":")[2]

    @property
    def word(self) -> str:
        """The stage's word: train of train@reviews."""
        return self.name.partition("@")[0]


def address_of(stage: "Stage") -> str:
    """What DVC calls a stage at the top of the repository, wherever this process stands."""
    from dvc.dvcfile import PROJECT_FILE

    path, name = PurePath(stage.path_in_repo).as_posix(), getattr(stage, "name", None)
    if name is None:
        return path
    return str(name) if path == PROJECT_FILE else f"{path}:{name}"


def read_graph(repo: "Repo", models: Sequence[str], known: Iterable[str]) -> tuple[list[Node], dict[str, "Stage"]]:
    """The stages to bring up to date, each after those it waits for, in the order in which DVC would run them.

    With models those whose address bears one of them (train@reviews, train@reviews-3 of a matrix), without any every
    stage of every dvc.yaml; and all that these wait for, files that DVC tracks among them. `known` are all models.
    """
    from dvc.repo.reproduce import get_active_graph

    # Without what a frozen stage depends on: it is taken as it is.
    graph = get_active_graph(repo.index.graph)
    wanted = [stage for stage in graph if stage.cmd and (not models or _model_of(stage, known) in models)]
    if not wanted:
        whose = f" of {', '.join(models)}" if models else ""
        raise LineError(
            f"{repo.root_dir}: no dvc.yaml has a stage{whose}, so there is nothing to run. `dvc stage list --all` "
            "shows those that there are; a stage of a model is named after it: deploy@reviews."
        )
    order = _in_order(graph, wanted)
    after = _beside_frozen(repo.index.graph, order)
    nodes = [Node(address_of(stage), _addresses(graph.successors(stage)), _addresses(after[stage])) for stage in order]
    return nodes, {address_of(stage): stage for stage in order}


def outputs_of(stage: "Stage") -> list[dict[str, Any]]:
    """The outputs of a stage as DVC has recorded them: path, size in bytes, hash, and what they are for."""
    return [
        {
            "path": PurePath(os.path.relpath(out.fs_path, out.repo.root_dir)).as_posix()
            if out.is_in_repo
            else str(out),
            "bytes": out.meta.size,
            "hash": str(out.hash_info.value or ""),
            "is": "metric" if out.is_metric else "plot" if out.is_plot else "output",
        }
        for out in stage.outs
    ]


@contextlib.contextmanager
def line_of(folder: Path, model: str) -> Iterator[tuple["Repo", Mapping[str, "Stage"]]]:
    """DVC in a folder, and by address the stages that a run of the model there goes through; no command holds it up.

    Raises LineError where DVC cannot read the pipelines, or none has a stage of the model.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(folder)) as repo:
            yield repo, read_graph(repo, [model], list(load(folder / "params.yaml").models))[1]
    except DvcException as error:
        raise LineError(f"DVC cannot read the pipelines of {folder}: {error}") from error


def forced(nodes: Sequence[Node], asked: Sequence[str]) -> frozenset[str]:
    """The addresses that `--force` names: train means every train there is, train@reviews that one."""
    found: set[str] = set()
    for name in asked:
        fitting = [node.address for node in nodes if name in (node.address, node.name, node.word)]
        if not fitting:
            known = sorted({word for node in nodes for word in (node.address, node.word)})
            raise LineError(f"--force {name}: this run has no such stage.{did_you_mean(name, known)}")
        found.update(fitting)
    return frozenset(found)


def _addresses(stages: Iterable["Stage"]) -> tuple[str, ...]:
    return tuple(sorted(map(address_of, stages)))


def _beside_frozen(graph: "DiGraph", order: Sequence["Stage"]) -> dict["Stage", list["Stage"]]:
    """Which stages come after which others only because one of the two is frozen.

    A frozen stage does not wait for what it depends on, but DVC writes down what that is when it comes to the stage. So
    the two are kept in the order in which `dvc repro` takes them.
    """
    place = {stage: number for number, stage in enumerate(order)}
    after: dict[Stage, list[Stage]] = {stage: [] for stage in order}
    for frozen in (stage for stage in order if stage.frozen):
        for other in graph.successors(frozen):
            if other in place:
                first, second = sorted((frozen, other), key=place.__getitem__)
                after[second].append(first)
    return after


def _model_of(stage: "Stage", known: Iterable[str]) -> str | None:
    return model_of_stage(getattr(stage, "name", None) or "", known)


def _in_order(graph: "DiGraph", wanted: Sequence["Stage"]) -> list["Stage"]:
    """DVC's own order: by depth first, from each stage in the order in which the files name them."""
    import networkx

    needed: set[Any] = set(wanted).union(*(networkx.descendants(graph, stage) for stage in wanted))
    order: dict[Any, None] = {}
    for stage in graph:
        if stage in needed and stage not in order:
            order.update(dict.fromkeys(networkx.dfs_postorder_nodes(graph, stage)))
    return list(order)
