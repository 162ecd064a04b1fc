"""How one model is spread over the cores: lanes that compute side by side, with one copy of the weights."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.answers import Answerer, Traced
from tasks.serving.requests import frame_of

Row = Mapping[str, Any]  # an input, by the problem's names

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """The processor cores that this process may use: those it is bound to, within what its container may spend."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, _quota() or bound)


def _quota() -> int | None:
    try:
        spend, period = _QUOTA.read_text(encoding="ascii").split()
        return max(1, math.ceil(int(spend) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # no control groups, or `max`
        return None


def spread(num_threads: int) -> tuple[int, int]:
    """How many lanes share so many threads, and how many threads the session has for itself.

    Two lanes overlap what one of them does in Python with what the other computes; more than that help where there are
    many cores, since a small batch does not occupy them. A lane's own thread computes as well.
    """
    num_lanes = min(num_threads, max(2, num_threads // 4))
    return num_lanes, num_threads - num_lanes + 1


def lanes_of(answerer: Answerer, num_lanes: int, batch_rows: int) -> list[Callable[[list[Row]], Sequence[Traced]]]:
    """Functions from rows to their answers. Each may be called by one thread at a time, all at once."""
    return [_lane(with_own_tokenizer(answerer), batch_rows) for _ in range(num_lanes)]


def _lane(answerer: Answerer, batch_rows: int) -> Callable[[list[Row]], Sequence[Traced]]:
    problem = answerer.runtime.problem

    def answer(rows: list[Row]) -> Sequence[Traced]:
        frame = frame_of(problem, {name: [row[name] for row in rows] for name in problem.inputs})
        return answerer.traced(frame, batch_rows)

    return answer


def with_own_tokenizer(answerer: Answerer) -> Answerer:
    """A copy for one thread: a tokenizer is told how to cut before it encodes, which no other may come between."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(answerer.runtime.tokenizer.to_str())
    return dataclasses.replace(answerer, runtime=dataclasses.replace(answerer.runtime, tokenizer=tokenizer))
