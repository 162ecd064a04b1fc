"""Labels that come back to predictions: what one may say, checked where it arrives and minded where it is read.

A journal may hold labels that were kept before there was a check. Of those, a value that is not of its column's type
counts as none: one bad label neither stops the monitor nor keeps the other labels of its partition from being learned.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from tasks.errors import quoted
from tasks.values import as_json, fit

Kinds = Mapping[str, pl.DataType]


@dataclass(frozen=True)
class Label:
    """What is known by now of a prediction: values of the problem's columns, by name, as JSON has them."""

    prediction_id: str
    label: Mapping[str, Any]


# Of a model whose `targets_of` are none, to whoever sends a label.
NOTHING_TO_LABEL = "has nothing to label: it learns from its inputs alone."


class BadLabel(ValueError):
    """What is wrong with a label, in a sentence without a place."""


def targets_of(columns: Kinds, inputs: Iterable[str]) -> dict[str, pl.DataType]:
    """The columns that a label has: what the problem learns from and a request does not carry."""
    left_out = set(inputs)
    return {name: kind for name, kind in columns.items() if name not in left_out}


def label_of(row: Mapping[str, Any], targets: Kinds) -> Label:
    """The label in an object of `id` and the targets; what else it has is left out. Raises BadLabel."""
    for name in ("id", *targets):
        if row.get(name) is None:
            raise BadLabel(f"{name} is missing.")
    if not isinstance(row["id"], str):
        raise BadLabel("id has to be a string.")
    if "\0" in row["id"]:  # PostgreSQL takes none in a text, not even to look for it
        raise BadLabel(f"{quoted(row['id'])} is no id: none has a NUL in it.")
    values = {}
    for name, kind in targets.items():
        try:
            values[name] = as_json(fit(row[name], kind))
        except ValueError as error:
            raise BadLabel(f"{name}: {error}.") from None
    return Label(row["id"], values)


def told(values: Any, kinds: Kinds) -> dict[str, Any]:
    """The values that are of their columns' types, as Python holds them; None for the others, and for what is not said.

    `values` is what the JSON of a label says, whatever that is.
    """
    said = values if isinstance(values, Mapping) else {}
    return {name: _fitting(said.get(name), kind) for name, kind in kinds.items()}


def read_labels(texts: Iterable[str], kinds: Kinds) -> pl.DataFrame:
    """The JSON of labels as columns of these types, a row each."""
    rows = [told(json.loads(text), kinds) for text in texts]
    return pl.DataFrame(rows, schema=dict(kinds))


def _fitting(value: Any, kind: pl.DataType) -> Any:
    if kind == pl.String():  # what nearly all labels are
        return value if isinstance(value, str) else None
    try:
        return fit(value, kind)
    except ValueError:
        return None
