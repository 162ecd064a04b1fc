"""A load generator in a process of its own: it asks an HTTP server, and prints what came of it as JSON.

    python -m tests.benchmarks.load PLAN.json

The plan has `host`, `port`, `path`, `bodies` (JSON texts, each a request), and either `callers` (so many who each ask
the next when they have an answer) or `rate` (requests a second, whatever the answers do, at times drawn with `seed`;
with `even`, at equal distances); `requests`, how many in all, going round the bodies; `timeout` seconds; `headers`.
With `keep`, the answers come back.
"""

import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uvloop


class Caller:
    """One connection, kept alive as long as the server does."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        """Status and content. A connection that has gone is made anew once; 0 and why for whatever fails."""
        try:
            async with asyncio.timeout(self._plan["timeout"]):
                return await self._ask(body)
        except TimeoutError:
            self.close()
            return 0, b"timeout"
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            return 0, repr(error).encode()

    async def _ask(self, body: bytes) -> tuple[int, bytes]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._plan["host"], self._plan["port"])
        headers = "".join(f"{name}: {value}\r\n" for name, value in self._plan.get("headers", {}).items())
        head = (
            f"POST {self._plan['path']} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length:")[2].split(b"\r\n")[0])
        content = await self._reader.readexactly(length)
        if b"connection: close" in answer:
            self.close()
        return int(answer[9:12]), content

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


class Load:
    """What was asked, and what came of it."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._bodies: Iterator[bytes] = itertools.islice(
            itertools.cycle(body.encode() for body in plan["bodies"]), plan["requests"]
        )
        self._seconds: dict[int, list[float]] = {}
        self._statuses: Counter[int] = Counter()
        self._failures: Counter[str] = Counter()
        self._kept: list[str] = []

    async def run(self) -> dict[str, Any]:
        started = time.perf_counter()
        if "rate" in self._plan:
            await self._at_a_rate()
        else:
            await asyncio.gather(*(self._one_after_the_other() for _ in range(self._plan["callers"])))
        return self._report(time.perf_counter() - started)

    async def _one_after_the_other(self) -> None:
        caller = Caller(self._plan)
        for body in self._bodies:
            await self._note(caller, body)
        caller.close()

    async def _at_a_rate(self) -> None:
        drawn, free, tasks = random.Random(self._plan["seed"]), [], set()
        at = time.perf_counter()

        async def ask(body: bytes) -> None:
            caller = free.pop() if free else Caller(self._plan)
            await self._note(caller, body)
            free.append(caller)

        for body in self._bodies:
            at += 1 / self._plan["rate"] if self._plan.get("even") else drawn.expovariate(self._plan["rate"])
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            tasks.add(asyncio.create_task(ask(body)))
        await asyncio.gather(*tasks)
        for caller in free:
            caller.close()

    async def _note(self, caller: Caller, body: bytes) -> None:
        started = time.perf_counter()
        status, content = await caller.ask(body)
        self._seconds.setdefault(status, []).append(time.perf_counter() - started)
        self._statuses[status] += 1
        if status != 200:
            self._failures[content.decode(errors="replace")[:100]] += 1
        elif self._plan.get("keep"):
            self._kept.append(content.decode())

    def _report(self, seconds: float) -> dict[str, Any]:
        def percentiles(found: list[float]) -> dict[str, float]:
            return {f"p{at}": round(1000 * float(np.percentile(found, at)), 2) for at in (50, 90, 99, 100)}

        return {
            "seconds": seconds,
            "answered_per_second": self._statuses[200] / seconds,
            "statuses": dict(self._statuses),
            "failures": dict(self._failures.most_common(5)),
            "ms": {status: percentiles(found) for status, found in self._seconds.items()},
            "kept": self._kept,
        }


if __name__ == "__main__":
    json.dump(uvloop.run(Load(json.loads(Path(sys.argv[1]).read_text())).run()), sys.stdout)
