"""Prometheus metrics of one server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
GAUGES = {
    "queue_length": "Generations that wait for a row.",
    "active_rows": "Generations that run.",
    "rows": "Generations that can run at once.",
    "cache_tokens": "Tokens in the caches of running generations.",
    "prefix_cache_tokens": "Tokens stored for prompts with the same beginning.",
}
COARSE = 1000  # tokens; of the counters that would show what one request found kept
COUNTERS = {
    "prompt_tokens_computed": "Prompt tokens that the model ran.",
    "prompt_tokens_reused": "Prompt tokens that did not run, because a stored prefix held them.",
}

TELLTALE = ("prefix_cache_tokens", *COUNTERS)
COUNTERS |= {
    "draft_tokens_proposed": "Tokens that were drafted and run, with --speculate.",
    "draft_tokens_accepted": "Those of them that are tokens of answers.",
    "draft_near_ties": "Greedy choices that --speculate may have changed: two tokens were as good as equally likely.",
}


class Metrics:
    """Counters, histograms and gauges; names begin with ``lucid_``.

    Args:
        gauges: Gives the engine's state when metrics are read.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, gauges: Callable[[], dict[str, float]]) -> None:
        self._registry = CollectorRegistry()
        self._engine = {exact: CollectorRegistry() for exact in (False, True)}
        for exact, registry in self._engine.items():
            registry.register(_EngineCollector(gauges, exact))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"lucid_{name}", text, labels, registry=self._registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"lucid_{name}_seconds", text, buckets=buckets, registry=self._registry)

        self.requests = counter(
            "requests",
            "Answers, by path and HTTP status; 499: the client closed the connection before all of it came.",
            "path",
            "status",
        )
        self.rejected = counter("rejected", "Requests that ended with an error, by reason.", "reason")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens received.")
        self.new_tokens = counter("generated_tokens", "Tokens generated.")
        self.first = histogram("time_to_first_token", "From the request to its first token.", FIRST)
        self.between = histogram("time_between_tokens", "Between tokens of one generation.", BETWEEN)
        self.whole = histogram("request", "From the request to the end of its answer.", WHOLE)

    def text(self, exact: bool) -> bytes:
        """Return all of them in Prometheus' text format.

        Args:
            exact: Whether counts of stored and reused tokens are exact, or whole thousands.
        """
        return generate_latest(self._engine[exact]) + generate_latest(self._registry)


class TokenClock:
    """Times the tokens of one request.

    Args:
        started: When the request came, by :func:`time.perf_counter`.
    """

    def __init__(self, metrics: Metrics, started: float) -> None:
        self._metrics = metrics
        self._started = started
        self._last: dict[int, float] = {}

    def tick(self, row: int) -> None:
        """Note a token of generation ``row``."""
        now = time.perf_counter()
        if not self._last:
            self._metrics.first.observe(now - self._started)
        if row in self._last:
            self._metrics.between.observe(now - self._last[row])
        self._last[row] = now
        self._metrics.new_tokens.inc()


class _EngineCollector(Collector):
    def __init__(self, read: Callable[[], dict[str, float]], exact: bool) -> None:
        self._read = read
        self._exact = exact

    def collect(self) -> Iterator[Metric]:
        for name, value in self._read().items():
            if name in TELLTALE and not self._exact:
                value -= value % COARSE
            if name in GAUGES:
                yield GaugeMetricFamily(f"lucid_{name}", GAUGES[name], value=value)
            else:
                yield CounterMetricFamily(f"lucid_{name}", COUNTERS[name], value=value)
