"""What can go wrong for a reason that the person at the keyboard can act on.

Each message says what failed, where, and what to do. The command line prints it without a traceback; any other
exception is a defect and keeps its traceback.
"""

import difflib
import itertools
from collections.abc import Iterable

# Whoever asks a server chooses how long a word is; comparing takes time by its length and by how many are known.
_MAX_WORD_CHARS = 80
_MAX_KNOWN = 1_000


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question to put behind "there is no such word", with a space before it; empty where no known word is close.

    A long word is compared by its beginning, and with the first thousand that are known.
    """
    candidates = list(itertools.islice(known, _MAX_KNOWN))
    close = difflib.get_close_matches(word[:_MAX_WORD_CHARS], candidates, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def quoted(word: str) -> str:
    """The word in quotation marks, to be read on one line; of a long one the beginning, and how long it is."""
    return repr(word) if len(word) <= _MAX_WORD_CHARS else f"{word[:_MAX_WORD_CHARS]!r}… ({len(word):,} characters)"


class MillError(Exception):
    """The base of every failure that is explained rather than traced."""


class ParamsError(MillError):
    """params.yaml says something that cannot be."""


class SourceError(MillError):
    """A source cannot be read, or holds something other than its pin says."""


class DataError(MillError):
    """Rows that a stage cannot work with."""


class LineStopped(MillError):
    """A table-level expectation, or a limit on what is lost, says that the data must not go on."""


class OutOfSpace(MillError):
    """The disk is full, or would be."""


class ReleaseError(MillError):
    """A release that must not be used: refused, incomplete, or not the bytes its manifest names."""
