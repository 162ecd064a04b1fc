"""`mill trace`: from a prediction back to the rows that it was learned from, and from a row to all that saw it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.lineage import Found, OfCommit, OfTree, Wanted, find, ids_in, known_fates, outputs_at
from flows.marks import forgettings, marks, seen_by
from flows.objects import Objects, objects_of
from flows.params import load_flows
from flows.passport import Link, TraceError, Way
from flows.registry import Version, champion, models_with_versions, versions
from flows.tags import Tag, promotions
from flows.worktree import home_of
from tasks.columns import separator_of
from tasks.errors import did_you_mean
from tasks.forgotten import read_forgotten
from tasks.ids import AFTER_KEY, keys_and_numbers
from tasks.params import load
from tasks.paths import Paths

if TYPE_CHECKING:
    from tasks.journal import Journal

DONE, BROKEN = 0, 1

_WIDTH = 12
_WORKING_TREE = "working tree"
_DID = {"train": "learned from it", "validation": "were chosen by it", "test": "were tested on it"}

# Comparing words takes time: of more ids, only those that begin alike are looked through.
_MAX_COMPARED = 20_000


def trace(root: Path, prediction_id: str, *, nearest: int = 0, rows: Path | None = None, as_json: bool = False) -> int:
    """Print the way from a prediction to its source. The exit code: 1 where a link of it is missing or differs.

    With `nearest`, that many training rows that lie next to the prediction in the version's own space; with `rows`, the
    version's rows as clean left them, in a Parquet file of that name. Raises TraceError where the journal has no such
    prediction.
    """
    home = home_of(root)
    prediction = _prediction(root, prediction_id.strip())
    with objects_of(home) as objects:
        way = Way(home, objects, prediction)
        links = way.links()
        if rows is not None:
            links.append(way.written(rows))
        if nearest:
            links.append(way.nearest(nearest))
    _print_links(links, as_json=as_json)
    return BROKEN if any(link.broken for link in links) else DONE


def trace_row(root: Path, row_id: str, model: str | None = None, *, as_json: bool = False) -> int:
    """Print every version that saw a row, what became of it there, and the version's promotions.

    Of one model, or of all that params.yaml names or that have a version. Raises TraceError, with what was looked at,
    where no model has such a row.
    """
    home = home_of(root)
    known = list(dict.fromkeys([*load(root / "params.yaml").models, *models_with_versions(home)]))
    if model is not None and model not in known:
        raise TraceError(f"There is no model {model!r}.{did_you_mean(model, known)} Known: {', '.join(known)}.")
    with objects_of(home) as objects:
        histories = [_history(root, home, objects, name, row_id) for name in ([model] if model else known)]
        found = [history for history in histories if history.saw_it]
        if not found:
            raise TraceError(_nowhere(root, home, objects, row_id, histories))
    if as_json:
        print(json.dumps({"row": row_id, "models": {one.model: one.facts() for one in found}}, indent=2))
        return DONE
    for history in found:
        print("\n".join([f"{row_id} in {history.model}", *history.lines()]))
    return DONE


@contextmanager
def journal_of(root: Path) -> "Iterator[Journal]":
    """The journal, for reading. Raises TraceError where there is none yet, rather than making an empty one."""
    from flows.serve import journal_url
    from tasks.journal import open_journal

    url = journal_url(root, load_flows(root / "params.yaml").journal)
    file = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:///") and not file.exists():
        raise TraceError(f"There is no journal at {file} yet. `mill serve` writes it with the first answer.")
    journal = open_journal(url)
    try:
        yield journal
    finally:
        journal.close()


def _prediction(root: Path, prediction_id: str) -> Mapping[str, Any]:
    with journal_of(root) as journal:
        found = journal.find(prediction_id)
    if found is None:
        days = load_flows(root / "params.yaml").journal.keep_days
        kept = f" It keeps predictions for {days} days (flows.journal.keep_days)." if days else ""
        raise TraceError(
            f"The journal has no prediction {prediction_id!r}. The id is what stood beside the answer as `id`.{kept} "
            f"For a row of the data: mill trace --row {prediction_id}"
        )
    return found


@dataclass(frozen=True)
class _Saw:
    """A version, or the working tree, and what became of the row in it: a fate, `not in it`, or `unknown`."""

    where: str
    fate: str
    why: str
    promotions: tuple[str, ...] = ()


@dataclass(frozen=True)
class _History:
    """All that is known of a row in one model."""

    model: str
    states: tuple[_Saw, ...]
    forgotten: tuple[Tag, ...]
    is_listed: bool

    @property
    def saw_it(self) -> bool:
        return self.is_listed or any(state.fate not in ("not in it", "unknown") for state in self.states)

    def lines(self) -> list[str]:
        width = max(len(state.where) for state in self.states)
        lines = []
        for state in self.states:
            told = ", ".join(filter(None, [state.why, *state.promotions]))
            lines.append(f"  {state.where:{width}}  {state.fate:<11}  {told}".rstrip())
        for fate, did in _DID.items():
            which = [state.where for state in self.states if state.fate == fate and state.where != _WORKING_TREE]
            if which:
                lines.append(f"  {len(which)} version{'s' * (len(which) > 1)} {did}: {', '.join(which)}")
        if self.is_listed:
            named = ", ".join(f"{tag.name} of {tag.when:%Y-%m-%d}" for tag in self.forgotten) or "not yet marked"
            lines.append(f"  It is forgotten: no later data has it ({named}).")
        return lines

    def facts(self) -> dict[str, Any]:
        return {
            "forgotten": [tag.name for tag in self.forgotten],
            "versions": {
                state.where: {"fate": state.fate, "why": state.why, "promotions": list(state.promotions)}
                for state in self.states
            },
        }


def _history(root: Path, home: Path, objects: Objects, model: str, row_id: str) -> _History:
    wanted = Wanted(frozenset([row_id]))
    entry, marked = _entry_of(root, model, row_id), marks(home, model)
    tags = [tag for tag in forgettings(home, model) if entry in tag.facts["rows"]]
    looked_at: dict[tuple[str, ...], Found] = {}
    states = []
    for version in versions(home, model):
        outputs = outputs_at(home, version.commit, model)
        key = tuple(outputs.get(path.as_posix(), "") for path in _folders(model))
        if key not in looked_at:
            looked_at[key] = find(OfCommit(objects, outputs, known_fates(home, model)), model, wanted)
        found = looked_at[key]
        told = next((seen_by(tag, version.tag)[entry] for tag in tags if entry in seen_by(tag, version.tag)), None)
        why_not = marked[version.tag].sentence if version.tag in marked else "its data is not to be had here"
        states.append(_saw(version.tag, found, row_id, told, why_not, _promotions(home, version)))
    found = find(OfTree(root), model, wanted)
    if found.rows:
        states.append(_saw(_WORKING_TREE, found, row_id, None, "", ()))
    return _History(model, tuple(states), tuple(tags), entry is not None)


def _saw(where: str, found: Found, row_id: str, told: str | None, why_not: str, promoted: tuple[str, ...]) -> _Saw:
    """What became of the row: as it is read, else as the tag that marked it says, else unknown where data is gone."""
    if row_id in found.rows:
        sighting = found.rows[row_id]
        return _Saw(where, sighting.fate, sighting.why, promoted)
    if told is not None:
        return _Saw(where, told, "forgotten since", promoted)
    if found.missing:
        return _Saw(where, "unknown", why_not, promoted)
    return _Saw(where, "not in it", "", promoted)


def _promotions(home: Path, version: Version) -> tuple[str, ...]:
    named = [tag.name for tag in promotions(home, version.model) if tag.commit == version.commit]
    now = champion(home, version.model)
    return (*named, "the champion") if now is not None and now.commit == version.commit else tuple(named)


def _folders(model: str) -> tuple[Path, ...]:
    paths = Paths(model)
    return paths.clean, paths.quarantine, paths.collected


def _entry_of(root: Path, model: str, row_id: str) -> str | None:
    """The row's entry on the list of forgotten ones."""
    import polars as pl

    models = load(root / "params.yaml").models
    separator = separator_of(models[model].collect) if model in models else AFTER_KEY
    key = keys_and_numbers(pl.Series([row_id]), separator)[0][0]
    return read_forgotten(Paths(model, root).forgotten).entry_of(key)


def _nowhere(root: Path, home: Path, objects: Objects, row_id: str, histories: Sequence[_History]) -> str:
    known: set[str] = set()
    for one in histories:
        known |= set(ids_in(OfTree(root), one.model))
        for version in versions(home, one.model)[-1:]:
            known |= set(ids_in(OfCommit(objects, outputs_at(home, version.commit, one.model)), one.model))
    if len(known) > _MAX_COMPARED:
        known = set(sorted(id for id in known if id[:3] == row_id[:3])[:_MAX_COMPARED])
    looked = [f"{one.model} ({', '.join(state.where for state in one.states) or 'no version'})" for one in histories]
    unknown = [state.where for one in histories for state in one.states if state.fate == "unknown"]
    unread = f" The data of {', '.join(unknown)} is not to be had here, so it may be in there." if unknown else ""
    return (
        f"No row {row_id!r}.{did_you_mean(row_id, sorted(known))} Looked at: {'; '.join(looked)}, and the working tree."
        f"{unread}"
    )


def _print_links(links: Sequence[Link], *, as_json: bool) -> None:
    """The way, a step after the other; as JSON one object with a key for each step."""
    if as_json:
        told = {link.name: {**link.facts, "broken": link.broken} for link in links}
        print(json.dumps(told, indent=2, ensure_ascii=False, default=str))
        return
    for link in links:
        lines = [*link.lines, *(f"BROKEN: {reason}" for reason in link.broken)]
        for number, line in enumerate(lines or ["nothing is known"]):
            print(f"{'' if number else link.name:{_WIDTH}}{line}")
