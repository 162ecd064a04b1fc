"""The versions in use, loaded, and replaced while requests go on.

`.mill/live.json` says which version of each model answers, `.mill/shadow.json` which one gets a copy of what is asked.
A new version is brought up beside the one that answers, and only then takes over; the one before answers what it has
taken, and then goes. A version that fails or takes too long stays out, and the one before goes on. Each is brought up
by a thread of its own, so that a rollback waits for no version that is still on its way.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from tasks.errors import DataError, ReleaseError, did_you_mean, quoted
from tasks.serving.served import Served, open_served
from tasks.serving.settings import Serving
from tasks.shards import read_json

log = logging.getLogger(__name__)

# How often the files are looked at: a rollback is to be in use within two seconds.
_LOOK_SECONDS = 0.1

# After a defect not at once again, or the log would be full of it.
_AFTER_FAILURE_SECONDS = 1.0

# What could not take over is tried again after so long, which costs a machine little.
_TRIED_AGAIN_SECONDS = 60.0

Role = Literal["live", "shadow"]
Entry = Mapping[str, Any]


class UnknownModel(Exception):
    """No model of that name is in use."""


@dataclass
class _Slot:
    """What one file says of one model, and what has come of it."""

    wanted: Entry | None = None
    served: Served | None = None
    before: Served | None = None  # answered until then, and stays loaded: it is what a rollback asks for
    failure: str | None = None  # of the wanted one, which stays out until it is tried again or another is wanted
    since: float = field(default_factory=time.monotonic)  # when it began to be brought up, or when that failed
    loader: threading.Thread | None = None

    @property
    def is_to_be_tried_again(self) -> bool:
        """Its files may have been mended, or the machine be less busy than it was. One attempt at a time: what was
        given up for its slowness would else take over as if it were the next.
        """
        is_over = self.loader is None or not self.loader.is_alive()
        return self.failure is not None and is_over and time.monotonic() - self.since > _TRIED_AGAIN_SECONDS

    @property
    def is_coming(self) -> bool:
        here = self.served is not None and self.served.entry == self.wanted
        return self.wanted is not None and self.failure is None and not here


class Live:
    """The models below `root`, by name."""

    def __init__(self, root: Path, serving: Serving) -> None:
        self._root = root
        self._serving = serving
        self._slots: dict[tuple[Role, str], _Slot] = {}
        self._unread: dict[Role, str] = {}  # files that cannot be read
        self._lock = threading.Lock()
        self._loaders: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="live", daemon=True)
        self.num_swaps = 0

    @property
    def served(self) -> list[Served]:
        found = (slot.served for (role, _), slot in self._known() if role == "live")
        return [served for served in found if served is not None]

    @property
    def models(self) -> list[str]:
        return [served.model for served in self.served]

    @property
    def missing(self) -> list[str]:
        """The models that should answer and do not."""
        return sorted(model for (role, model), slot in self._known() if role == "live" and slot.served is None)

    @property
    def failures(self) -> dict[str, str]:
        """What was to take over and could not: the model, with `(shadow)` where it was for that, and the reason."""
        found = {f"{role}.json": said for role, said in self._unread.items()}
        for (role, model), slot in self._known():
            if slot.failure is not None:
                found[model if role == "live" else f"{model} (shadow)"] = slot.failure
        return found

    def get(self, model: str) -> Served:
        """The version that answers now. Raises UnknownModel with a sentence."""
        slot = self._slots.get(("live", model))
        if slot is None or slot.served is None:
            known = ", ".join(self.models) or "none"
            raise UnknownModel(
                f"No model {quoted(model)} is in use.{did_you_mean(model, self.models)} In use: {known}."
            )
        return slot.served

    def shadow(self, model: str) -> Served | None:
        """The challenger that gets a copy of what the model is asked; None without."""
        slot = self._slots.get(("shadow", model))
        return slot.served if slot is not None else None

    def start(self) -> None:
        """Load what is in use, then follow the files from a thread."""
        self.refresh()
        for loader in self._loaders:
            loader.join()
        self._watcher.start()

    def close(self) -> None:
        """Answer what waits, and stop."""
        self._stopping.set()
        if self._watcher.ident is not None:
            self._watcher.join()
        for slot in self._slots.values():
            if slot.served is not None:
                slot.served.batcher.close()

    def refresh(self) -> bool:
        """Begin to make what is served what the files say; whether they could be read."""
        live = self._read("live")
        shadow = self._read("shadow") if self._serving.shadow else {}
        with self._lock:
            if live is not None:
                self._follow("live", live)
            if shadow is not None:
                self._follow("shadow", shadow)
        return live is not None and shadow is not None

    def _follow(self, role: Role, entries: Mapping[str, Entry]) -> None:
        for model in {model for known, model in self._slots if known == role} - set(entries):
            slot = self._slots.pop((role, model))
            if slot.served is not None:
                log.info("out of use", extra={"model": model, "version": slot.served.version, "role": role})
                _retire(slot.served)
        for model, entry in sorted(entries.items()):
            slot = self._slots.setdefault((role, model), _Slot())
            if slot.wanted == entry and not slot.is_to_be_tried_again:
                continue
            before = slot.wanted
            slot.wanted, slot.failure, slot.since = entry, None, time.monotonic()
            if slot.is_coming:
                loader = threading.Thread(
                    target=self._load, args=(role, model, entry), name=f"load-{model}", daemon=True
                )
                try:
                    loader.start()
                except RuntimeError:  # no thread is to be had: it is asked for again at the next look
                    slot.wanted = before
                    raise
                slot.loader = loader
                self._loaders = [*(former for former in self._loaders if former.is_alive()), loader]

    def _load(self, role: Role, model: str, entry: Entry) -> None:
        former = self._slots.get((role, model), _Slot()).before
        try:
            served = open_served(self._root, model, entry, self._serving, in_shadow=role == "shadow", before=former)
        except (ReleaseError, DataError) as error:
            self._stay_out(role, model, entry, str(error))
            return
        except Exception:
            log.exception("cannot be brought up", extra={"model": model, "role": role})
            self._stay_out(role, model, entry, f"{entry.get('folder')} cannot be brought up; the log says why.")
            return
        with self._lock:
            slot = self._slots.get((role, model))
            # It may have been replaced meanwhile, or have been given up for its slowness.
            if slot is None or slot.wanted != entry or slot.failure is not None:
                _retire(served)
                return
            before, slot.served = slot.served, served
            slot.before = before if role == "live" else None
            self.num_swaps += role == "live"
        seconds = round(time.monotonic() - slot.since, 3)
        log.info("in use", extra={"model": model, "version": served.version, "role": role, "seconds": seconds})
        if before is not None:
            _retire(before)

    def _stay_out(self, role: Role, model: str, entry: Entry, reason: str) -> None:
        with self._lock:
            slot = self._slots.get((role, model))
            if slot is None or slot.wanted != entry or slot.failure is not None:
                return
            slot.failure, slot.since = reason, time.monotonic()
        log.error("stays out", extra={"model": model, "role": role, "reason": reason})

    def _read(self, role: Role) -> dict[str, Entry] | None:
        """What a file says; nothing where there is none, None where it cannot be read."""
        path = self._path(role)
        try:
            entries = read_json(path) if path.exists() else {}
            if not isinstance(entries, dict):
                raise DataError(f"{path} does not say which version of which model is in use.")
        except (DataError, OSError) as error:
            said = f"{path} cannot be read: {error.strerror}." if isinstance(error, OSError) else str(error)
            if self._unread.get(role) != said:
                log.error("unread", extra={"role": role, "reason": said})
            self._unread[role] = said
            return None
        self._unread.pop(role, None)
        # A damaged entry takes no model out of use: it fails to be brought up.
        return {str(model): entry if isinstance(entry, dict) else {} for model, entry in entries.items()}

    def _path(self, role: Role) -> Path:
        return self._root / ".mill" / f"{role}.json"

    def _known(self) -> list[tuple[tuple[Role, str], _Slot]]:
        return sorted(self._slots.items(), key=lambda item: item[0])

    def _watch(self) -> None:
        seen: list[object] | None = None
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                now: list[object] = [_state(self._path(role)) for role in get_args(Role)]
                if now != seen or any(slot.is_to_be_tried_again for _, slot in self._known()):
                    # What could not be read is read again at the next look: it may be well without having changed.
                    seen = now if self.refresh() else None
                self._give_up_the_slow()
            except Exception:  # whatever it is, a later promotion or rollback has to be seen
                seen = None
                log.exception("the files of the versions in use were not followed")
                self._stopping.wait(_AFTER_FAILURE_SECONDS)

    def _give_up_the_slow(self) -> None:
        limit = self._serving.swap_seconds
        for (role, model), slot in self._known():
            entry = slot.wanted
            # Where nothing answers yet, late is better than never.
            if (
                entry is not None
                and slot.served is not None
                and slot.is_coming
                and time.monotonic() - slot.since > limit
            ):
                self._stay_out(
                    role, model, entry, f"{entry.get('folder')} is not up after {limit:g} s (flows.serve.swap_seconds)."
                )


def _retire(served: Served) -> None:
    # By a thread: nothing waits for a long queue to be answered.
    threading.Thread(target=served.batcher.close, name=f"retire-{served.version}", daemon=True).start()


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
