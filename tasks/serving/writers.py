"""Texts that are written while the caller reads them: on threads of their own, a text each, so many at a time."""

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

import numpy as np

from tasks.answers import Answerer, Traced
from tasks.errors import DataError
from tasks.serving.batcher import Busy
from tasks.serving.lanes import with_own_tokenizer
from tasks.serving.requests import BadRequest, frame_of
from tasks.serving.served import Served
from tasks.writing import Sampling, Speaker

# Writes a text's line into the journal and gives its id back; what cannot be written down raises JournalError.
Keep = Callable[[Served, Traced, float], str]


@dataclass(frozen=True)
class Wanted:
    """What is to be written: a text that goes on from each prompt, each up to one of the strings in `stop`."""

    prompts: Sequence[str]
    sampling: Sampling
    fills: bool  # as many tokens as the model can read, instead of `sampling.max_new_tokens`
    stop: Sequence[str]


@dataclass(frozen=True)
class Piece:
    """Of the text that follows prompt `number`."""

    number: int
    text: str


@dataclass(frozen=True)
class Written:
    """The text that followed prompt `number`, as it stands in the journal under `id`."""

    number: int
    id: str
    text: str
    why_ended: str  # `stop` or `length`, as OpenAI's API calls them
    num_prompt_tokens: int
    num_tokens: int


class Writing:
    """What comes of one request, as it comes: pieces of a text, then `Written`, for each prompt in turn."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Piece | Written | BaseException | None] = asyncio.Queue()
        self.is_left = threading.Event()

    def say(self, item: Piece | Written | BaseException | None) -> None:
        """From a writer's thread; None is the end."""
        with contextlib.suppress(RuntimeError):  # the server has ended meanwhile, and nobody listens
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def __aiter__(self) -> AsyncIterator[Piece | Written]:
        while (item := await self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


class Writers:
    """The threads; as many requests again may wait for one."""

    def __init__(self, num: int) -> None:
        self._threads = ThreadPoolExecutor(num, "writers")
        self._most = 2 * num
        self._open: set[Writing] = set()
        self._own = threading.local()

    def start(self, served: Served, wanted: Wanted, keep: Keep) -> Writing:
        """Have it written. Raises Busy where too many wait."""
        if len(self._open) >= self._most:
            raise Busy(1)
        writing = Writing()
        self._open.add(writing)
        over = asyncio.wrap_future(self._threads.submit(self._write, served, wanted, keep, writing))
        over.add_done_callback(lambda _: self._open.discard(writing))
        return writing

    def close(self) -> None:
        """End what is being written, and wait until it stands in the journal."""
        for writing in list(self._open):
            writing.is_left.set()
        self._threads.shutdown(wait=True)

    def _write(self, served: Served, wanted: Wanted, keep: Keep, writing: Writing) -> None:
        try:
            for number, prompt in enumerate(wanted.prompts):
                if writing.is_left.is_set():
                    break
                writing.say(_written(number, prompt, wanted, served, self._answerer(served), keep, writing))
            writing.say(None)
        except Exception as error:
            writing.say(BadRequest(str(error)) if isinstance(error, DataError) else error)

    def _answerer(self, served: Served) -> Answerer:
        """With a tokenizer of this thread's own: it is told how to cut before it encodes."""
        held: tuple[Answerer, Answerer] | None = getattr(self._own, "held", None)
        if held is None or held[0] is not served.answerer:
            held = self._own.held = (served.answerer, with_own_tokenizer(served.answerer))
        return held[1]


class _Enough(Exception):
    """A stop string has come, or the caller has gone."""


class _Until:
    """Passes a text on up to the first of these strings, holding back what may be the beginning of one."""

    def __init__(self, stop: Sequence[str], say: Callable[[str], None]) -> None:
        self._stop, self._say = stop, say
        self._held = ""
        self.text = ""

    def hear(self, piece: str) -> None:
        self._held += piece
        ends = [place for found in self._stop if (place := self._held.find(found)) >= 0]
        if ends:
            self._pass_on(min(ends))
            self._held = ""
            raise _Enough
        kept = max((_overlap(self._held, found) for found in self._stop), default=0)
        self._pass_on(len(self._held) - kept)

    def end(self) -> None:
        self._pass_on(len(self._held))

    def _pass_on(self, size: int) -> None:
        piece, self._held = self._held[:size], self._held[size:]
        if piece:
            self.text += piece
            self._say(piece)


def _overlap(text: str, found: str) -> int:
    """How much of the end of a text is the beginning of what is looked for."""
    return next((size for size in range(min(len(text), len(found) - 1), 0, -1) if text.endswith(found[:size])), 0)


def _written(
    number: int, prompt: str, wanted: Wanted, served: Served, answerer: Answerer, keep: Keep, writing: Writing
) -> Written:
    started = time.perf_counter()
    runtime = answerer.runtime
    problem, column = runtime.problem, runtime.problem.inputs[0]
    rows = answerer.numbered(frame_of(problem, {column: [prompt]}))
    if rows["reason"][0]:
        raise BadRequest(f"Prompt {number + 1}: nothing is written for it: {rows['reason'][0]}.")
    writer, sampling = runtime.writer, wanted.sampling
    prompts = writer.prompts([rows[column][0]], 1 if wanted.fills else sampling.max_new_tokens, cut=False)
    if wanted.fills:
        sampling = replace(sampling, max_new_tokens=writer.room(prompts[0]))
    until = _Until(wanted.stop, lambda text: writing.say(Piece(number, text)))
    speaker = Speaker(runtime.tokenizer, until.hear)
    num_tokens = 0

    def hear(_: int, token: int) -> None:
        nonlocal num_tokens
        num_tokens += 1
        if writing.is_left.is_set():
            raise _Enough
        speaker.hear(token)

    why_ended = "stop"
    with contextlib.suppress(_Enough):
        writer.write(prompts, sampling, hear)
        speaker.end()
        until.end()
        if num_tokens == sampling.max_new_tokens:
            why_ended = "length"
    outputs = runtime.completed(rows, [until.text], batch_size=1)
    answer = problem.answer(rows, outputs, runtime.signature, runtime.calibration).row(0, named=True)
    embedding = outputs["pooled_embedding"][0].astype(np.float16)
    # Without `stop`: those are the caller's own words, and the journal keeps none that are not redacted.
    traced = Traced({**answer, "sampling": asdict(sampling)}, None, {column: rows[column][0]}, embedding)
    kept = keep(served, traced, round(1000 * (time.perf_counter() - started), 3))
    return Written(number, kept, until.text, why_ended, len(prompts[0]), num_tokens)


def new_seed() -> int:
    """For whoever names none."""
    return uuid.uuid4().int % 2**31
