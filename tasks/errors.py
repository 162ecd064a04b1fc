"""What can go wrong for a reason that the person at the keyboard can act on.

Each message says what failed, where, and what to do. The command line prints it without a traceback; any other
exception is a defect and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question to put behind "there is no such word", with a space before it; empty where no known word is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


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
