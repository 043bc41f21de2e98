"""Prometheus metrics of one server."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)  # seconds
GAUGES = {
    "queue_length": "Generations that wait for a free row of the batch.",
    "active_rows": "Generations that have started, including those that wait for the mask of their grammar.",
    "rows": "Rows of the batch: generations that can run at once.",
    "cache_tokens": "Tokens in the caches of started generations.",
    "prefix_cache_tokens": "Tokens in the prefix cache.",
}
COUNTERS = {
    "prompt_tokens_computed": "Prompt tokens that the model computed.",
    "prompt_tokens_reused": "Prompt tokens found in the prefix cache, which were not computed again.",
    "draft_tokens_proposed": "Draft tokens that the model verified, with --speculate.",
    "draft_tokens_accepted": "Draft tokens accepted as part of answers, with --speculate.",
    "draft_near_ties": "Greedy choices that --speculate may have changed: two tokens were almost equally likely.",
}
LAST = 1000  # quantiles cover this many of the latest values


class Times:
    """A histogram of seconds and, as its buckets are coarse, gauges of the latest values' p50 and p95."""

    def __init__(self, registry: CollectorRegistry, name: str, text: str) -> None:
        self._histogram = Histogram(f"lucid_{name}_seconds", text, buckets=BUCKETS, registry=registry)
        self._last = deque[float](maxlen=LAST)
        name, text = f"lucid_{name}_quantile_seconds", f"{text} Over the last {LAST} values; NaN if there are none."
        quantiles = Gauge(name, text, ("quantile",), registry=registry)
        for share in (0.5, 0.95):
            quantiles.labels(share).set_function(partial(self._quantile, share))

    def observe(self, seconds: float) -> None:
        self._histogram.observe(seconds)
        self._last.append(seconds)

    def _quantile(self, share: float) -> float:
        values = sorted(self._last)
        return values[int(share * len(values))] if values else math.nan


class Metrics(Collector):
    """Counters, histograms and the engine's ``gauges``; all names begin with ``lucid_``."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, gauges: Callable[[], dict[str, float]]) -> None:
        self._gauges = gauges
        registry = self._registry = CollectorRegistry()
        registry.register(self)
        text = "Answers by path and HTTP status; 499: the client closed the connection before the answer was complete."
        self.requests = Counter("lucid_requests", text, ("path", "status"), registry=registry)
        text = "Requests that ended with an error, by the error's code."
        self.rejected = Counter("lucid_rejected", text, ("reason",), registry=registry)
        self.prompt_tokens = Counter("lucid_prompt_tokens", "Prompt tokens of answers that began.", registry=registry)
        self.new_tokens = Counter("lucid_generated_tokens", "Tokens generated.", registry=registry)

        self.first = Times(registry, "time_to_first_token", "Time from the request to its first token.")
        self.between = Times(registry, "time_between_tokens", "Time between successive tokens of one generation.")
        self.whole = Times(registry, "request", "Time from the request to the end of its answer.")

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the engine's gauges and counters; called by prometheus_client."""
        for name, value in self._gauges().items():
            family = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
            yield family(f"lucid_{name}", {**GAUGES, **COUNTERS}[name], value=value)
