"""Who may ask for what: keys by client, kept as hashes in `.mill/keys.json`.

A key is 32 random bytes, so a plain SHA-256 of it cannot be guessed back; a password would need a slow hash.
"""

import hashlib
import hmac
import math
import secrets
import threading
import time
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, TypedDict, get_args

from tasks.errors import MillError, did_you_mean
from tasks.shards import read_json, write_json

Scope = Literal["predict", "feedback", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


class _Entry(TypedDict):
    """A client's, as the file has it."""

    sha256: str
    scopes: list[str]
    requests_a_minute: int | None


class BadKey(MillError):
    """A client's key cannot be made or taken back."""


@dataclass(frozen=True)
class Client:
    """Whoever holds a key."""

    name: str
    scopes: frozenset[str]
    requests_a_minute: int | None


class Denied(Exception):
    """No valid key (401), or one that does not reach so far (403)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class TooOften(Exception):
    """The client's own rate is used up. `retry_after` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"asked too often; again in {retry_after} s")
        self.retry_after = retry_after


def keys_file(root: Path) -> Path:
    return root / ".mill" / "keys.json"


def add_key(root: Path, client: str, scopes: list[str], requests_a_minute: int | None) -> str:
    """Make a key for a new client and give it back; it is stored nowhere. Raises BadKey."""
    known = _read(root)
    if client in known:
        raise BadKey(f"{client} has a key already. `mill key revoke {client}` takes it back first.")
    for scope in scopes:
        if scope not in SCOPES:
            raise BadKey(f"There is no scope {scope!r}.{did_you_mean(scope, SCOPES)} Known: {', '.join(SCOPES)}.")
    key = f"mill_{secrets.token_urlsafe(32)}"
    entry: _Entry = {"sha256": _hash(key), "scopes": sorted(set(scopes)), "requests_a_minute": requests_a_minute}
    _write(root, {**known, client: entry})
    return key


def revoke_key(root: Path, client: str) -> None:
    """Take a client's key back. Raises BadKey where there is none."""
    known = _read(root)
    if client not in known:
        raise BadKey(f"There is no key of {client!r}.{did_you_mean(client, known)}")
    _write(root, {name: entry for name, entry in known.items() if name != client})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Keys:
    """The keys of a root as they stand now, and how often each client has asked of late.

    Where there never was a key, `is_open` says whether anybody may ask.
    """

    def __init__(self, root: Path, *, is_open: bool) -> None:
        self._root = root
        self._is_open = is_open
        self._seen: int | None = None
        self._clients: list[tuple[str, Client]] = []  # each with its key's hash
        self._allowances: dict[str, tuple[float, float]] = {}  # what is left, and when that was so
        self._lock = threading.Lock()

    def admit(self, authorization: str | None, scope: Scope) -> Client | None:
        """The client behind `Bearer <key>`; None where none is asked for. Raises Denied or TooOften."""
        with self._lock:
            self._refresh()
            if self._seen is None and self._is_open:
                return None
            client = self._client_of(authorization)
            if scope not in client.scopes and "admin" not in client.scopes:
                raise Denied(f"The key of {client.name} does not reach as far as {scope}.", 403)
            self._spend(client)
            return client

    def _refresh(self) -> None:
        try:
            state = keys_file(self._root).stat().st_mtime_ns
        except OSError:
            state = None
        if state != self._seen:
            self._seen = state
            self._clients = [
                (entry["sha256"], Client(name, frozenset(entry["scopes"]), entry["requests_a_minute"]))
                for name, entry in _read(self._root).items()
            ]

    def _client_of(self, authorization: str | None) -> Client:
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Denied("A key is asked for: send the header `Authorization: Bearer <key>`.", 401)
        hashed = _hash(key.strip())
        # All are compared, each in constant time, so that the time taken tells nothing.
        found = [client for known, client in self._clients if hmac.compare_digest(known, hashed)]
        if not found:
            raise Denied("This key is not known here. It may have been revoked.", 401)
        return found[0]

    def _spend(self, client: Client) -> None:
        """A token bucket: a minute's worth at once, refilled evenly."""
        if client.requests_a_minute is None:
            return
        most, now = float(client.requests_a_minute), time.monotonic()
        left, since = self._allowances.get(client.name, (most, now))
        left = min(most, left + (now - since) * most / 60)
        if left < 1:
            self._allowances[client.name] = (left, now)
            raise TooOften(math.ceil((1 - left) * 60 / most))
        self._allowances[client.name] = (left - 1, now)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def _read(root: Path) -> dict[str, _Entry]:
    file = keys_file(root)
    return dict(read_json(file)) if file.exists() else {}


def _write(root: Path, content: dict[str, _Entry]) -> None:
    file = keys_file(root)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, content)
