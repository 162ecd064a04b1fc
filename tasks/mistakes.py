"""What pydantic finds wrong with params.yaml, as sentences that say what, where, and what would be right."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tasks.errors import did_you_mean

# pydantic puts the member of a union that it tried into an error's location.
_UNION_TAGS = frozenset({
    "id", "group", "time", "str", "constrained-str", "literal['base']",
    "TrainedTokenizer", "Scratch", "SplitByHash", "SplitByTime",
})  # fmt: skip


def mistakes_of(error: ValidationError, path: Path, top: type[BaseModel], below: tuple[str, ...] = ()) -> list[str]:
    """A sentence for each mistake in a file, or in its section of type `top` that stands `below` some keys."""
    return [
        _sentence(path, (*below, *details["loc"]), details, _fields_at(details["loc"][:-1], top))
        for details in error.errors(include_url=False)
    ]


def listed(names: Iterable[str]) -> str:
    """Names as a sentence has them."""
    return ", ".join(sorted(names))


def _sentence(path: Path, location: tuple[int | str, ...], details: ErrorDetails, known: list[str]) -> str:
    keys = [str(key) for key in location if str(key) not in _UNION_TAGS]
    where = f"{path}: {'.'.join(keys)}"
    match details["type"]:
        case "extra_forbidden":
            return f"{where} is not a key that is known here.{did_you_mean(keys[-1], known)} Allowed: {listed(known)}."
        case "missing":
            return f"{where} is missing. Nothing that changes a result has a hidden default: write it down."
        case _:
            message = details["msg"].removeprefix("Value error, ").removesuffix(".")
            if isinstance(details["input"], dict):  # a rule over a whole section: its message names the keys
                return f"{where}: {message}."
            return f"{where} is {details['input']!r}. {message[0].upper()}{message[1:]}."


def _fields_at(location: tuple[int | str, ...], section: type[BaseModel]) -> list[str]:
    """The keys that a section takes, found by following the types from the top; [] where any key may stand."""
    keys = iter(str(key) for key in location if str(key) not in _UNION_TAGS)
    for key in keys:
        owner = {field.alias or name: field for name, field in section.model_fields.items()}
        inside = _sections_in(owner[key].annotation) if key in owner else []
        if len(inside) != 1:
            return sorted({name for candidate in inside for name in candidate.model_fields})
        section = inside[0]
        if key == "models":
            next(keys, None)  # the name is the user's
    return sorted(field.alias or name for name, field in section.model_fields.items())


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in getattr(annotation, "__args__", ()) for section in _sections_in(part)]
