"""In which order stages are run: each as soon as those it waits for are done, as many at once as there are jobs."""

import contextlib
import queue
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flows.commands import Commands, Shell
from flows.committer import Committer, Settled
from flows.stages import Node
from flows.waiting import Stopped
from tasks.errors import MillError

Outcome = Literal["ran", "restored", "imported", "verified", "cached", "failed", "not run", "stopped"]

_SAID: Mapping[Settled, str] = {
    "cached": "up to date",
    "restored": "restored from DVC's run cache",
    "imported": "imported",
    "verified": "taken as it is",
}
_GOOD = ("ran", "restored", "imported", "verified", "cached")

# Does a stage's work, which may be done more than once, and gives its last result; seen by whoever watches the run.
Watched = Callable[[Node, Sequence["Result"], Callable[[], "Result"]], "Result"]


@dataclass(frozen=True)
class Result:
    """What became of a stage, in a word and in a sentence, and how long it took."""

    address: str
    outcome: Outcome
    message: str
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return self.outcome in _GOOD


class Scheduler:
    """One run over the graph. A stage that fails stops those that wait for it, and no other ones."""

    def __init__(
        self,
        nodes: Sequence[Node],
        committer: Committer,
        commands: Commands,
        *,
        jobs: int,
        forced: Collection[str],
        say: Callable[[str, str], None],
    ) -> None:
        self._nodes, self._committer, self._commands = {node.address: node for node in nodes}, committer, commands
        self._jobs, self._forced, self._say = jobs, forced, say
        self._waiting = dict(self._nodes)
        self._ready: list[Node] = []
        self._running: set[str] = set()
        self._news: queue.SimpleQueue[Result | None] = queue.SimpleQueue()
        self._why_stopped = ""
        self.results: dict[str, Result] = {}

    def run(self, watched: Watched) -> Mapping[str, Result]:
        """Bring all stages to an end; the results by address, in the order in which they came."""
        self._watched = watched
        try:
            while self._waiting or self._ready or self._running:
                self._look()
                self._start()
                if self._running and (result := self._news.get()) is not None:
                    self._running.discard(result.address)
                    self.results[result.address] = result
        except BaseException:
            self._commands.kill()
            raise
        return self.results

    def stop(self, why: str) -> None:
        """Let nothing new begin, and interrupt what runs; a second time, kill it. Safe in a handler of a signal."""
        if self._why_stopped:
            self._commands.kill()
            return
        self._why_stopped = why
        self._commands.stop()
        self._news.put(None)

    @property
    def why_stopped(self) -> str:
        """What `stop` was called for; empty without."""
        return self._why_stopped

    def _look(self) -> None:
        """Settle the stages that wait for none any more and need not run; the others of these are ready."""
        if self._why_stopped:
            left = [*self._waiting.values(), *self._ready]
            self._waiting, self._ready = {}, []
            for node in left:
                self._settle(Result(node.address, "not run", f"not run: {self._why_stopped}."))
            return
        while blocked := [node for node in self._waiting.values() if self._blocker(node)]:
            for node in blocked:
                self._settle(Result(node.address, "not run", self._blocker(node)))
        ended = {address: result.is_good for address, result in self.results.items()}
        if not any(node.may_begin(ended) for node in self._waiting.values()):
            return
        try:
            cached, stale = self._committer.sort_out(list(self._waiting.values()), ended, self._forced)
        except Stopped:  # the next look settles them all
            return
        except MillError as error:  # above all DVC's lock, which somebody else keeps; those that run will wait again
            for node in [node for node in self._waiting.values() if node.may_begin(ended)]:
                self._settle(Result(node.address, "failed", f"{node.address} failed: {error}"))
            return
        self._ready += [self._waiting.pop(address) for address in stale]
        for address in cached:
            self._settle(Result(address, "cached", "up to date"))

    def _blocker(self, node: Node) -> str:
        """Why a stage cannot be run, empty where it can."""
        for need in node.needs:
            result = self.results.get(need)
            if result is not None and not result.is_good:
                return f"not run: it needs {need}, which {'was not run' if result.outcome == 'not run' else 'failed'}."
        return ""

    def _settle(self, result: Result) -> None:
        self._waiting.pop(result.address, None)
        self.results[result.address] = result
        self._say(result.address, result.message)
        self._watch(result.address, lambda: result)

    def _start(self) -> None:
        while self._ready and len(self._running) < self._jobs and not self._why_stopped:
            node = self._ready.pop(0)
            self._running.add(node.address)
            threading.Thread(target=self._run, args=(node,), name=node.address, daemon=True).start()

    def _run(self, node: Node) -> None:
        try:
            result = self._watch(node.address, lambda: self._work(node))
        except BaseException as error:  # whatever it is, the others go on, and this thread is not forgotten
            result = Result(node.address, "failed", f"{node.address} failed: {error!r}")
        self._news.put(result)

    def _watch(self, address: str, work: Callable[[], Result]) -> Result:
        node = self._nodes[address]
        return self._watched(node, [self.results[need] for need in node.needs if need in self.results], work)

    def _work(self, node: Node) -> Result:
        """Bring a stage to an end: from DVC, or by its command."""
        address, started = node.address, time.monotonic()

        try:
            outcome, message = self._brought_to_an_end(address)
        except Stopped as error:
            outcome, message = "stopped", str(error)
        except (MillError, OSError) as error:
            outcome, message = "failed", f"{address} failed: {error}"
        except Exception as error:  # a defect, which ends its branch alone; as with `dvc repro --keep-going`
            self._say(address, traceback.format_exc())
            outcome, message = "failed", f"{address} failed: {error!r}"
        self._say(address, message)
        return Result(address, outcome, message, time.monotonic() - started)

    def _brought_to_an_end(self, address: str) -> tuple[Outcome, str]:
        if self._why_stopped:
            return "stopped", f"stopped: {self._why_stopped}."
        found = self._committer.begin(address, force=address in self._forced)
        return self._by_command(address, found) if isinstance(found, Shell) else (found, _SAID[found])

    def _by_command(self, address: str, shell: Shell) -> tuple[Outcome, str]:
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.callback(self._committer.leave, address)
            ended = self._commands.run(shell, lambda line: self._say(address, line))
            if ended.code and self._why_stopped:
                return "stopped", f"stopped: {self._why_stopped}."
            if ended.code:
                return "failed", f"{address} failed: {ended.how}. Its output ends with:\n{ended.tail}"
            seconds = time.monotonic() - started
            self._committer.finish(address)
        return "ran", f"done in {seconds:.1f} s"
