"""What was forgotten of a model's rows, and which versions had seen it: annotated tags forgotten/<model>/<n>.

A version that learned from rows which were purged can no longer be made again; one whose rows were only forgotten still
can. Both are said wherever a version is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.lineage import outputs_at
from flows.registry import versions
from flows.tags import Tag, count_of, create, find, names


@dataclass(frozen=True)
class Mark:
    """What a version is marked with: a sentence for people, and whether it can still be made again."""

    sentence: str
    is_reproducible: bool


def forgettings(root: Path, model: str) -> list[Tag]:
    """The tags of what was forgotten of a model, the oldest first."""
    found = (tag for tag in find(root, f"forgotten/{model}/*") if tag.facts)
    return sorted(found, key=lambda tag: count_of(tag.name, "/"))


def marks(root: Path, model: str) -> dict[str, Mark]:
    """The marked versions of a model by their tags.

    A version that was registered after the rows were forgotten, from data that held them, is among them.
    """
    tags = forgettings(root, model)
    if not tags:
        return {}
    found = {}
    for version in versions(root, model):
        outputs = set(outputs_at(root, version.commit, model).values())
        saw = [tag for tag in tags if _saw(tag, version.tag) or outputs & set(tag.facts["data"])]
        if saw:
            found[version.tag] = _mark(version.tag, saw)
    return found


def seen_by(tag: Tag, version: str) -> dict[str, str]:
    """The forgotten rows that a version had seen, as entries of the list, and what became of each in it."""
    return {entry: fates[version] for entry, fates in tag.facts["seen"].items() if version in fates}


def set_mark(root: Path, model: str, commit: str, sentence: str, facts: Mapping[str, Any]) -> str:
    """Tag what is forgotten, and give the tag's name; where a tag says as much already, that one's."""
    for tag in forgettings(root, model):
        if _says(tag.facts, facts):
            return tag.name
    while True:
        number = 1 + max((count_of(name, "/") for name in names(root, f"forgotten/{model}/*")), default=0)
        name = f"forgotten/{model}/{number}"
        if create(root, name, commit, sentence, facts):
            return name


def _says(known: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether a tag says all that another one would. A purge that was cut short finds less the second time."""
    return (
        set(facts["rows"]) <= set(known["rows"])
        and set(facts["data"]) <= set(known["data"])
        and known["purged"] >= facts["purged"]
        and all(fates.items() <= known["seen"].get(entry, {}).items() for entry, fates in facts["seen"].items())
    )


def _saw(tag: Tag, version: str) -> bool:
    return any(version in fates for fates in tag.facts["seen"].values())


def _mark(version: str, saw: list[Tag]) -> Mark:
    purged = [tag for tag in saw if tag.facts["purged"]]
    told = purged or saw
    entries = {entry for tag in told for entry in seen_by(tag, version)}
    what = "a row that it saw was" if len(entries) == 1 else f"{len(entries) or 'some'} rows that it saw were"
    where = f"{told[-1].when:%Y-%m-%d} ({', '.join(tag.name for tag in told)})"
    if purged:
        return Mark(f"It can no longer be made again: {what} purged on {where}.", is_reproducible=False)
    return Mark(f"It can still be made again, though {what} forgotten on {where}.", is_reproducible=True)
