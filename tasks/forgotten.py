"""Rows that must not be learned from: one JSON object a line, in Git, and read by collect.

    {"at": "2026-11-24", "row": "9c1f…", "salt": "5b20…", "why": "erasure request 4711"}

The list must not itself hold what it is there to erase. A row's key may be personal (an address, a customer's number),
and an id that was made from a row's content could be found by guessing at it; so `row` is a keyed hash of the key, with
the line's salt. Whoever has the list and a key can ask whether it is on it, and nobody can read the keys from it. Lines
stand for themselves, in any order: two branches that both add some are merged by keeping all.

What is listed is the key, an id without its number: of several rows with one key no later run could say which of them
was meant, so all of them go.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tasks.errors import DataError
from tasks.ids import Separator, keys_and_numbers

_KEYS = ("at", "row", "salt", "why")
_BYTES = 16


@dataclass(frozen=True)
class Forgotten:
    """The list as it is read: the hashes of keys, by their salt."""

    entries: Mapping[str, frozenset[str]]

    def __contains__(self, entry: object) -> bool:
        return any(entry in hashes for hashes in self.entries.values())

    @property
    def is_empty(self) -> bool:
        return not any(self.entries.values())

    @property
    def salt(self) -> str:
        """The one to hash new keys with: the list's own, so that a row is hashed once, or a new one."""
        return min(self.entries, default=None) or secrets.token_hex(_BYTES)

    def entry_of(self, key: str) -> str | None:
        """The entry that a key has on the list; None where it is not on it."""
        found = ((hashed(key, salt), hashes) for salt, hashes in self.entries.items())
        return next((entry for entry, hashes in found if entry in hashes), None)

    def entries_of(self, ids: pl.Series, separator: Separator) -> pl.Series:
        """For each id the entry that its key has on the list, or null."""
        if self.is_empty:
            return pl.repeat(None, len(ids), dtype=pl.String, eager=True)
        keys = keys_and_numbers(ids.cast(pl.String), separator)[0]
        return pl.Series([self.entry_of(key) for key in keys], dtype=pl.String)


def read_forgotten(path: Path) -> Forgotten:
    """The list; an empty one where there is no file. Raises DataError with every line that is none of it."""
    entries: dict[str, set[str]] = {}
    mistakes = []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.exists() else [], start=1):
        if not line.strip():
            continue
        try:
            found = _read(line)
        except ValueError as error:
            mistakes.append(f"{path}, line {number}: {error}. `mill forget` writes these lines; nobody edits them.")
        else:
            entries.setdefault(found["salt"], set()).add(found["row"])
    if mistakes:
        raise DataError("\n".join(mistakes))
    return Forgotten({salt: frozenset(rows) for salt, rows in sorted(entries.items())})


def with_keys(text: str, keys: Iterable[str], salt: str, *, at: str, why: str) -> str:
    """The text of the list with a line for each key behind what it has."""
    lines = [line for line in text.split("\n") if line.strip()]
    for key in keys:
        value = {"at": at, "row": hashed(key, salt), "salt": salt, "why": why}
        lines.append(json.dumps(value, sort_keys=True, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines)


def hashed(key: str, salt: str) -> str:
    """The entry of a key: BLAKE2b of its text, keyed with the salt."""
    return hashlib.blake2b(key.encode(), key=bytes.fromhex(salt), digest_size=_BYTES).hexdigest()


def _read(line: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"this is not JSON ({error})") from None
    if not isinstance(value, dict) or sorted(value) != list(_KEYS):
        raise ValueError(f"this is not an object with the keys {', '.join(_KEYS)}")
    for name in ("row", "salt"):
        if not _is_hex(value[name]):
            raise ValueError(f"{name} is not {2 * _BYTES} hexadecimal digits")
    return value


def _is_hex(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 2 * _BYTES and set(value) <= set("0123456789abcdef")
