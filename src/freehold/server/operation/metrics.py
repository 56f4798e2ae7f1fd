"""What Prometheus reads at /metrics: counts kept here, and the engine's own, read when it asks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from freehold.core.events import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Stats = Mapping[str, float | int | str]

# From what a cached answer needs to a long prompt on a slow machine.
_LONG_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2, 5, 10)

# The backend's own names -> (metric, label, its value, what it is). "_total" marks what only grows.
_STATS: dict[str, tuple[str, str, str, str]] = {
    "requests_running": ("requests_running", "", "", "Requests the engine computes."),
    "requests_waiting": ("requests_waiting", "", "", "Requests in the engine's queue."),
    "cache_blocks": ("cache_blocks", "state", "all", "Blocks of the cache in RAM."),
    "cache_blocks_free": ("cache_blocks", "state", "free", "Blocks of the cache in RAM."),
    "cache_blocks_kept": ("cache_blocks", "state", "kept", "Blocks of the cache in RAM."),
    "prompt_tokens_cached": ("prompt_tokens_found_total", "tier", "all", "Prompt tokens found in the cache."),
    "prompt_tokens_cached_ram": ("prompt_tokens_found_total", "tier", "ram", "Prompt tokens found in the cache."),
    "prompt_tokens_cached_disk": ("prompt_tokens_found_total", "tier", "disk", "Prompt tokens found in the cache."),
    "tokens_computed": ("tokens_computed_total", "", "", "Tokens that went through the model."),
    "store_bytes_read": ("store_bytes_total", "direction", "read", "Bytes of blocks read and written."),
    "store_bytes_written": ("store_bytes_total", "direction", "written", "Bytes of blocks read and written."),
}  # fmt: skip


class Metrics:
    """One server's metrics, in a registry of their own.

    stats: the backend's, read at every scrape. open_connections: likewise.
    """

    def __init__(
        self,
        stats: Callable[[], Stats] = dict,
        open_connections: Callable[[], int] = lambda: 0,
    ) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("http_requests", "HTTP requests answered.", ["route", "method", "status"])
        self._refusals = self._counter("refusals", "Requests that a guard refused.", ["key", "reason"])
        self._refused_connections = self._counter("connections_refused", "Connections closed unheard.", ["reason"])
        self._finished = self._counter("generations", "Generations by the reason of their end.", ["reason"])
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of ended generations.", [])
        self._cached = self._counter("cached_prompt_tokens", "Those of them for which nothing was computed.", [])
        self._generated = self._counter("generated_tokens", "Tokens sampled.", [])
        self.in_progress = Gauge(
            "freehold_http_requests_in_progress", "HTTP requests being answered.", registry=self.registry
        )
        self._first = self._histogram("time_to_first_token", "From a request's arrival to its first token.")
        self._between = self._histogram("time_between_tokens", "Between two tokens.", _TOKEN_SECONDS)
        self._whole = self._histogram("request", "From arrival to the end of a generating request.")
        self._queue = self._histogram("queue", "From submission to the first prefill step.")
        self._prefill = self._histogram("prefill", "From the first prefill step to the first token.")
        self.registry.register(_Readings(stats, open_connections))

    def observe_request(self, route: str, method: str, status: int) -> None:
        """An HTTP request was answered. `route` is the pattern, not the path: clients choose paths."""
        self._requests.labels(route, method, str(status)).inc()

    def observe_refusal(self, key_name: str, reason: str) -> None:
        """A guard refused a request of this key; "" where no key was known."""
        self._refusals.labels(key_name, reason).inc()

    def observe_refused_connection(self, reason: str) -> None:
        """A connection was closed before it brought a whole request."""
        self._refused_connections.labels(reason).inc()

    def observe_first_token(self, seconds: float) -> None:
        """A stream's first token, so long after the request's arrival."""
        self._first.observe(seconds)

    def observe_next_token(self, seconds: float) -> None:
        """A stream's further token, so long after the one before."""
        self._between.observe(seconds)

    def observe_finish(self, usage: Usage, reason: str, *, times: bool = True) -> None:
        """A generation ended. times: whether `usage` holds the engine's times."""
        self._finished.labels(reason).inc()
        self._prompt.inc(usage.prompt_tokens)
        self._cached.inc(usage.cached_tokens)
        self._generated.inc(usage.completion_tokens)
        if times:
            self._queue.observe(usage.queued_seconds)
            self._prefill.observe(usage.prefill_seconds)

    def observe_generation_seconds(self, seconds: float) -> None:
        """A generating HTTP request took so long."""
        self._whole.observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: Iterable[str]) -> Counter:
        return Counter(f"freehold_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _LONG_SECONDS) -> Histogram:
        return Histogram(f"freehold_{name}_seconds", text, buckets=buckets, registry=self.registry)


class _Readings(Collector):
    """What is read when Prometheus asks."""

    def __init__(self, stats: Callable[[], Stats], open_connections: Callable[[], int]) -> None:
        self._stats = stats
        self._open_connections = open_connections

    def collect(self) -> Iterator[Metric]:
        """The backend's numbers under names of ours; those we have no name for as `engine_stat`."""
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        others = GaugeMetricFamily("freehold_engine_stat", "Other numbers of the engine.", labels=["stat"])
        for stat, value in self._stats().items():
            if isinstance(value, str):
                continue
            if stat not in _STATS:
                others.add_metric([stat], value)
                continue
            name, label, label_value, text = _STATS[stat]
            family = families.get(name)
            if family is None:
                kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                family = families[name] = kind(f"freehold_{name}", text, labels=[label] if label else [])
            family.add_metric([label_value] if label else [], value)
        yield from families.values()
        yield others
        yield GaugeMetricFamily("freehold_open_connections", "Open connections.", value=self._open_connections())
        rss = resident_bytes()
        if rss is not None:
            yield GaugeMetricFamily("freehold_memory_resident_bytes", "Memory of the process in RAM.", value=rss)

    def describe(self) -> list[Metric]:
        """Nothing: the registry must not read the backend before it is started."""
        return []


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
