"""`mill pull`: look at a source, and pin what it has now in data/<model>/source.json; likewise labels in feedback.json.

Nothing else looks: `dvc repro` reads what is pinned, so that a run can be repeated.
"""

from pathlib import Path

from flows.params import load_flows
from tasks import sources
from tasks.errors import ParamsError
from tasks.params import Collect, CollectFeedback, CollectFiles, Model, load, load_model
from tasks.paths import Paths
from tasks.shards import write_text
from tasks.sources import Partition, read_pins, write_pins
from tasks.sources._listing import may_hold_many

_JOURNAL = Path(".mill/journal.sqlite")


def pull(model: str, root: Path = Path()) -> str:
    """Move the model's pins to what its source has now, and say in a sentence what that changed.

    Without new data the pins' files keep their bytes. The model's lists of admitted and of forgotten rows are made
    where there are none. Raises SourceError where pinned data has changed, or the source cannot be read.
    """
    params, paths = load_model(model, root / "params.yaml"), Paths(model, root)
    for listed in (paths.admissions, paths.forgotten):
        if not listed.exists():
            write_text(listed, "\n")  # DVC warns of an empty file at every run
    said = _pull_source(model, params, paths)
    return f"{said}{_pull_feedback(model, params, paths)}"


def _pull_source(model: str, params: Model, paths: Paths) -> str:
    if paths.root / params.pin != paths.source_pin:
        _check_inside(model, params, paths.root)
        return f"{model}: the data is {params.pin}, in the repository; DVC itself sees its changes. Nothing to pull."
    known = read_pins(paths.source_pin) if paths.source_pin.exists() else []
    found = sources.load(params.source).partitions(_below(paths.root, params.collect), known)
    if found == known:
        return f"{model}: nothing new in the source; {_counted(known)} pinned."
    write_pins(paths.source_pin, found)
    return f"{model}: {_changes(known, found)} {_counted(found)} pinned in {paths.source_pin}; commit that file."


def _pull_feedback(model: str, params: Model, paths: Paths) -> str:
    """Pin the labels that have come back, each partition behind those of the source that were pinned before it."""
    known = read_pins(paths.feedback_pin) if paths.feedback_pin.exists() else []
    if params.feedback is None:
        if not paths.feedback_pin.exists():
            write_pins(paths.feedback_pin, [])  # dvc.yaml names it for every model
        return ""
    if params.feedback.url is None and (elsewhere := _journal_elsewhere(paths.root)):
        raise ParamsError(
            f"params.yaml: models.{model}.feedback.url is null, which is {_JOURNAL}, and the server keeps its journal "
            f"at {elsewhere} (flows.journal.url). Write feedback.url: {elsewhere}, so that its labels are found."
        )
    if params.feedback.url is None and not (paths.root / _JOURNAL).exists():
        if not paths.feedback_pin.exists():
            write_pins(paths.feedback_pin, known)
        return " Nothing was served here yet, so there are no new labels."
    num_before = len(read_pins(paths.source_pin)) if paths.root / params.pin == paths.source_pin else 1
    pulled = sources.load("feedback").partitions(_below(paths.root, params.feedback), known)
    found = [Partition(part.name, {"behind": num_before, **part.pin}) for part in pulled]
    if found == known and paths.feedback_pin.exists():
        return " No new labels."
    write_pins(paths.feedback_pin, found)
    before = {part.name: part.pin["rows"] for part in known}
    num_new = sum(part.pin["rows"] for part in found if part.name not in before)
    num_mended = sum(part not in known for part in found if part.name in before)
    mended = f" {num_mended} partition{'' if num_mended == 1 else 's'} of labels corrected." if num_mended else ""
    return f" {num_new:,} labels are new.{mended} They are pinned in {paths.feedback_pin}; commit that file."


def _journal_elsewhere(root: Path) -> str | None:
    """Where params.yaml has the server keep its journal, as it says it; None where that is in its usual place."""
    if not load(root / "params.yaml").flows:  # nothing is served by it
        return None
    return load_flows(root / "params.yaml").journal.url


def _check_inside(model: str, params: Model, root: Path) -> None:
    """Data in the repository without a list of its files is one file, since a file that came later would move rows."""
    if may_hold_many(str(root / params.pin)):
        raise ParamsError(
            f"params.yaml: models.{model}.pin is {params.pin!r}; data in the repository without a list of its files is "
            f"one single file. For a folder or a glob write pin: data/{model}/source.json, and run `mill pull "
            f"{model}`: files that come later are then added behind."
        )


def _below(root: Path, options: Collect) -> Collect:
    """The options with a place that is found from anywhere."""
    match options:
        case CollectFiles():
            return options.model_copy(update={"path": str(root / options.path)})
        case CollectFeedback(url=None):
            return options.model_copy(update={"url": f"sqlite:///{root / _JOURNAL}"})
    return options


def _changes(known: list[Partition], found: list[Partition]) -> str:
    before = {partition.name: partition.pin for partition in known}
    replaced = [part.name for part in found if part.name in before and part.pin != before[part.name]]
    new = [part.name for part in found if part.name not in before]
    said = []
    if replaced:
        said.append(
            f"{', '.join(replaced)} has changed and is pinned anew, because nothing in the source tells new rows from "
            "old: all its rows are read again, and rows that have left the source leave the data."
        )
    if new:
        named = ", ".join(new[:3]) + (", …" if len(new) > 3 else "")
        said.append(f"{len(new)} new partition{'s' if len(new) > 1 else ''} ({named}).")
    return " ".join(said)


def _counted(partitions: list[Partition]) -> str:
    return f"{len(partitions)} partition{'' if len(partitions) == 1 else 's'}"
