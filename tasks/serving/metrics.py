"""Figures for Prometheus, in its own text format by its own library."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tasks.serving.batcher import Busy
from tasks.serving.live import Live, UnknownModel
from tasks.serving.requests import BadRequest

if TYPE_CHECKING:
    from tasks.journal import Journal

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Counters of one application, apart from any other's in the process."""

    def __init__(self, live: Live, journal: "Journal") -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "modelmill_requests", "Requests by how they ended", ["model", "outcome"], registry=self._registry
        )
        self._rows = Counter("modelmill_rows", "Rows answered", ["model"], registry=self._registry)
        self._seconds = Histogram(
            "modelmill_request_seconds", "From the parsed request to its answer", ["model"], buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self.journal_seconds = Histogram(
            "modelmill_journal_seconds", "From an answer to its being in the journal", buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self.shadow = Counter(
            "modelmill_shadow_rows", "Rows copied to a challenger", ["model", "outcome"], registry=self._registry
        )
        self._waiting = Gauge("modelmill_requests_waiting", "Requests not yet answered", registry=self._registry)
        self._registry.register(_LiveCollector(live, journal))

    @contextmanager
    def request(self, model: str, num_rows: int) -> Iterator[None]:
        """Count a request and its rows, and how it ends."""
        started, outcome = time.perf_counter(), "failed"
        self._waiting.inc()
        try:
            yield
            outcome = "answered"
            self._rows.labels(model).inc(num_rows)
            self._seconds.labels(model).observe(time.perf_counter() - started)
        except Busy:
            outcome = "sent_away"
            raise
        except (BadRequest, UnknownModel):
            outcome = "refused"
            raise
        except (asyncio.CancelledError, GeneratorExit):  # in the middle of a text
            outcome = "left"
            raise
        finally:
            self._waiting.dec()
            self._requests.labels(model, outcome).inc()

    @contextmanager
    def turned_away(self, model: str) -> Iterator[None]:
        """Count a request that gets no further than the door; nothing where it does."""
        try:
            yield
        except Busy:
            self._requests.labels(model, "sent_away").inc()
            raise

    def exposition(self) -> bytes:
        return generate_latest(self._registry)


class _LiveCollector(Collector):
    """What is in use, and how the journal is, read when it is asked for."""

    def __init__(self, live: Live, journal: "Journal") -> None:
        self._live = live
        self._journal = journal

    def collect(self) -> Iterator[GaugeMetricFamily]:
        versions = GaugeMetricFamily("modelmill_version", "1 for the version in use", labels=["model", "version"])
        queued = GaugeMetricFamily("modelmill_queued_rows", "Rows that wait", labels=["model"])
        for served in self._live.served:
            versions.add_metric([served.model, served.version], 1)
            queued.add_metric([served.model], served.batcher.queued_rows)
        failures = GaugeMetricFamily(
            "modelmill_version_failed", "1 for what was to take over and could not", labels=["model"]
        )
        for model in self._live.failures:
            failures.add_metric([model], 1)
        yield versions
        yield queued
        yield failures
        yield GaugeMetricFamily("modelmill_swaps", "Versions that took over", value=self._live.num_swaps)
        waiting = self._journal.num_waiting
        yield GaugeMetricFamily(
            "modelmill_journal_waiting_rows", "Answers that are not written down yet", value=waiting
        )
        yield GaugeMetricFamily(
            "modelmill_journal_failed",
            "1 where the journal's last commit failed, or one hangs",
            value=self._journal.trouble is not None,
        )
