"""What workers promote in clones of their own, put in use where `mill up` runs."""

import sys
import time
from pathlib import Path

from flows.publish import fetch_tags
from flows.registry import settle

_PAUSE_SECONDS = 60


def keep_following(home: Path) -> None:
    """Put in use here what workers promote in clones of their own, and say what goes wrong, each thing once."""
    last = ""
    while True:
        try:
            done, failed = follow(home)
        except Exception as error:  # whatever it is, what is promoted later has to be seen
            done, failed = [], f"What other machines have promoted was not followed: {error!r}"
        for said in done:
            print(said, flush=True)
        if failed and failed != last:
            print(failed, file=sys.stderr, flush=True)
        last = failed
        time.sleep(_PAUSE_SECONDS)


def follow(home: Path) -> tuple[list[str], str]:
    """Look once at what was promoted elsewhere: what is in use now, a sentence each, and what went wrong."""
    failures = list(filter(None, [fetch_tags(home)]))
    done = settle(home, failures.append)
    return done, "\n".join(failures)
