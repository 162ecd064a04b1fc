"""The journal forgets what is older than it should keep: when the server starts, and every hour from then on."""

import logging
import threading
import time

from tasks.database import JournalError, LogNotEmptied
from tasks.journal import Journal

log = logging.getLogger(__name__)

_EVERY_SECONDS = 3600
_US_PER_DAY = 86_400_000_000


class Retention:
    """Purges a journal from a thread of its own, between `start` and `close`."""

    def __init__(self, journal: Journal, keep_days: int) -> None:
        self._journal = journal
        self._keep_days = keep_days
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="retention", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            try:
                num_gone = self._journal.purge(time.time_ns() // 1000 - self._keep_days * _US_PER_DAY)
            except LogNotEmptied as error:
                log.warning("forgotten, and not overwritten yet", extra={"reason": str(error)})
            except JournalError as error:
                log.error("nothing was forgotten", extra={"reason": str(error)})
            else:
                if num_gone:
                    log.info("forgotten", extra={"predictions": num_gone, "older_than_days": self._keep_days})
            if self._stopping.wait(_EVERY_SECONDS):
                return
