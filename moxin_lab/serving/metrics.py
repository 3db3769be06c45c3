"""What `/metrics` tells Prometheus: load, tokens, requests and times.

Guarantees: labels come from fixed lists, so no client can make the page grow; one registry per
server, so several can live in one process.
Out of scope: what is measured by `moxin-lab bench serve`.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from moxin_lab.serving.scheduler import Scheduler

PATHS = (
    "/",
    "/health",
    "/metrics",
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/embeddings",
)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server and the load of its scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._registry = CollectorRegistry()
        self._scheduler = scheduler
        self._requests = Counter(
            "moxin_requests",
            "Requests by path and status",
            ("path", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "moxin_request_seconds",
            "Seconds of a request",
            ("path",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._first = Histogram(
            "moxin_time_to_first_token_seconds",
            "Seconds to the first token of an answer",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._registry.register(self)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        path = path if path in PATHS else "other"
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def first_token(self, seconds: float | None) -> None:
        """Count the time to an answer's first token; None: there was none."""
        if seconds is not None:
            self._first.observe(seconds)

    def page(self) -> tuple[bytes, str]:
        """The page, and its media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """What the scheduler counts, in prometheus_client's form."""
        running, waiting = self._scheduler.load
        counts = self._scheduler.counts
        yield GaugeMetricFamily("moxin_running", "Requests at work", value=running)
        yield GaugeMetricFamily("moxin_waiting", "Requests that wait", value=waiting)
        for name, what in (
            ("prompt_tokens", "Tokens of prompts read"),
            ("completion_tokens", "Tokens generated"),
            ("steps", "Decoding steps"),
            ("row_steps", "Rows of all decoding steps, empty ones included"),
        ):
            yield CounterMetricFamily(f"moxin_{name}", what, value=counts[name])
