"""What is to be forgotten: which rows, where they were seen, and what will happen. Nothing here changes anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from flows.erasure import Erasure, Holders
from flows.git import LIVE
from flows.lineage import FATES, Found, OfCommit, OfTree, Wanted, find, ids_in, known_fates, outputs_at
from flows.objects import CACHE, Objects
from flows.registry import champion, versions
from tasks.columns import separator_of
from tasks.errors import MillError, did_you_mean
from tasks.forgotten import hashed, read_forgotten
from tasks.ids import keys_and_numbers
from tasks.params import Model
from tasks.paths import Paths

if TYPE_CHECKING:
    from tasks.journal import Journal

_SHOWN = 10
_SPLITS = FATES[:3]


class ForgetError(MillError):
    """Rows cannot be forgotten as asked."""


@dataclass
class Plan:
    """What is to be forgotten, and where it was seen."""

    model: str
    keys: list[str]
    entries: Mapping[str, str]  # of each key
    salt: str
    holders: Holders
    states: dict[str, Found]  # by version, and of the working tree
    standing: dict[str, str]  # of each version: that it is the champion, or nothing
    new: list[str]  # keys that are not on the list yet
    outputs: set[str] = field(default_factory=set)
    erasure: Erasure = field(default_factory=Erasure)

    @property
    def seen(self) -> dict[str, dict[str, str]]:
        """For each entry, what became of its row in each version that had it."""
        seen: dict[str, dict[str, str]] = {entry: {} for entry in self.entries.values()}
        for name, found in self.states.items():
            for id, sighting in found.rows.items() if name in self.standing else ():
                fates = seen[self.entries[self.key_of(id)]]
                known = fates.get(name, FATES[-1])
                fates[name] = min(known, sighting.fate, key=FATES.index)
        return seen

    def key_of(self, id: str) -> str:
        return _keys([id], self.holders.params)[0]

    @property
    def copies(self) -> dict[str, str]:
        """Rows that were dropped because of one of these, by their ids."""
        return {id: reason for found in self.states.values() for id, reason in sorted(found.copies.items())}

    def description(self, why: str, *, purge_too: bool) -> list[str]:
        """What will happen, and what it costs."""
        num_rows = len({id for found in self.states.values() for id in found.rows})
        lines = [f"{self.model}: {counted(len(self.keys), 'row')} to be forgotten: {named(self.keys)}. Why: {why}."]
        if num_rows > len(self.keys):
            lines.append(
                f"  These are {num_rows} rows: the source gives some keys more than once, and all rows of a key go."
            )
        width = max((len(name) for name in self.states), default=0)
        for name, found in self.states.items():
            if found.rows or found.missing:
                lines.append(f"  {name:{width}}  {_fates(found)}{self.standing.get(name, '')}")
        lines += self._copies()
        if self.new:
            lines.append(
                f"data/{self.model}/forgotten.jsonl gets {counted(len(self.new), 'line')}, committed to main: from the "
                "next run on, no data and no version has them."
            )
        saw = sorted({name for fates in self.seen.values() for name in fates})
        if saw:
            lines.append(f"A tag forgotten/{self.model}/… marks {counted(len(saw), 'version')} that saw them.")
        return [*lines, *(self._purging(saw) if purge_too else [])]

    def _copies(self) -> list[str]:
        copies = self.copies
        if not copies:
            return []
        told = ", ".join(f"{id} ({reason.partition(':')[0]})" for id, reason in list(copies.items())[:_SHOWN])
        more = f", … ({len(copies)} in all)" if len(copies) > _SHOWN else ""
        return [
            f"  {told}{more}: dropped as copies of them so far, and taken in once they have gone. To forget those too, "
            "name them as well."
        ]

    def _purging(self, saw: Sequence[str]) -> list[str]:
        found = self.erasure
        folders = sorted({Path(file).parent.as_posix() for file in found.files})
        places = " and ".join([CACHE, *(place.name for place in self.holders.objects.remotes)])
        lines = [
            "PURGE, which nothing brings back: collect runs again without them, here and, where there is one, on "
            f"`{LIVE}`; then these go:",
            f"  {counted(len(found.objects), 'object')} out of {places}: every shard that holds one, with all its rows",
            f"  {counted(len(found.files), 'file')} of this checkout, in {named(folders) or 'no folder'}",
            f"  {counted(len(found.predictions), 'prediction')} of the journal that asked about the same",
        ]
        if saw:
            lines.append(
                f"  {named(saw)} can then no longer be made again: `mill verify` and `dvc checkout` of their data "
                "fail. What is in use goes on answering."
            )
        return [
            *lines,
            f"It does not reach: the source itself ({_whereabouts(self.holders.params)}); what Git's history holds of "
            "the data; other clones and their caches; backups; a storage that keeps old versions of its objects; the "
            "weights, which have learned from the rows.",
        ]


def look(
    home: Path, model: str, params: Model, rows: Sequence[str], objects: Objects, journal: "Journal | None"
) -> Plan:
    """Find the rows in every version and in the working tree. Raises ForgetError for those that are nowhere."""
    listed = read_forgotten(Paths(model, home).forgotten)
    salt, keys = listed.salt, list(dict.fromkeys(_keys(rows, params)))
    entries = {key: listed.entry_of(key) or hashed(key, salt) for key in keys}
    wanted = Wanted(frozenset(keys), separator_of(params.collect))
    plan = Plan(
        model=model,
        keys=keys,
        entries=entries,
        salt=salt,
        holders=Holders(home, objects, model, wanted, params),
        states={},
        standing={},
        new=[key for key in keys if listed.entry_of(key) is None],
    )
    held_in = [path.as_posix() for path in (Paths(model).collected, Paths(model).clean)]
    now = champion(home, model)
    looked_at: dict[tuple[tuple[str, str], ...], Found] = {}
    for version in versions(home, model):
        outputs = outputs_at(home, version.commit, model)
        state = tuple(sorted(outputs.items()))
        if state not in looked_at:
            looked_at[state] = find(OfCommit(objects, outputs, known_fates(home, model)), model, wanted)
        plan.states[version.tag] = looked_at[state]
        if looked_at[state].rows:
            plan.outputs |= {outputs[path] for path in held_in if path in outputs}
        is_champion = now is not None and now.commit == version.commit
        plan.standing[version.tag] = ", the champion" if is_champion else ""
    plan.states["the working tree"] = find(OfTree(home), model, wanted)
    _check_known(home, plan, journal)
    return plan


def _check_known(home: Path, plan: Plan, journal: "Journal | None") -> None:
    found = {plan.key_of(id) for state in plan.states.values() for id in state.rows}
    unknown = [key for key in plan.new if key not in found and not (journal and journal.find(key))]
    if unknown:  # of a challenger that became no version, or of a branch
        elsewhere = {plan.key_of(str(row["id"])) for row in plan.holders.contents()}
        unknown = [key for key in unknown if key not in elsewhere]
    if not unknown:
        return
    near = ids_in(OfTree(home), plan.model)
    missing = [name for name, state in plan.states.items() if state.missing]
    unread = f" The data of {', '.join(missing)} is not to be had here, so they may be in there." if missing else ""
    told = "; ".join(f"{key!r}{did_you_mean(key, near)}" for key in unknown[:_SHOWN])
    raise ForgetError(
        f"{plan.model} has no row {told} Nothing was forgotten. Looked at: {', '.join(plan.states)}, and the journal's "
        f"predictions.{unread}"
    )


def counted(number: int, what: str) -> str:
    """1 row, 2,000 rows."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def named(names: Sequence[str]) -> str:
    """The first few of them."""
    more = f", … ({len(names):,} in all)" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _keys(ids: Sequence[str], params: Model) -> list[str]:
    """The ids without the numbers of repeated keys."""
    return keys_and_numbers(pl.Series(list(ids), dtype=pl.String), separator_of(params.collect))[0].to_list()


def _whereabouts(params: Model) -> str:
    told = params.collect.model_dump()
    return next((str(told[name]) for name in ("path", "query", "file", "url") if told.get(name)), params.source)


def _fates(found: Found) -> str:
    """What became of the rows in one state, the furthest that they came first."""
    if not found.rows:
        return f"unknown: {', '.join(found.missing)} is not to be had here"
    fates = [sighting.fate for sighting in found.rows.values()]
    return ", ".join(
        f"{fates.count(fate)} in {fate}" if fate in _SPLITS else f"{fates.count(fate)} {fate}"
        for fate in FATES
        if fate in fates
    )
