"""What the server counts and times, for Prometheus. No label has a value that a client can choose."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dllm.serve.batcher import Batcher, StepReport

ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/tokenize",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/",
)
CANCELLED = ("disconnect", "timeout", "error")
CLOSED = ("head", "reader", "crowd")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one server, in a registry of its own.

    Example:
        >>> metrics = Metrics()
        >>> metrics.request("/v1/models", 200)
        >>> b'dllm_requests_total{code="200",route="/v1/models"} 1.0' in metrics.text()
        True
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("dllm_requests", "Requests", ["route", "code"], registry=registry)
        self.cancelled = Counter("dllm_cancelled", "Rows given up", ["why"], registry=registry)
        self.closed = Counter("dllm_connections_closed", "Connections that did not get on", ["why"], registry=registry)
        self.tokens = Counter("dllm_tokens", "Generated tokens, up to the end of answers", registry=registry)
        self.forwards = Counter("dllm_forwards", "Steps of groups of rows", registry=registry)
        self.dropped = Counter("dllm_frames_dropped", "Frames that a reader was too slow for", registry=registry)
        self.queue_depth = Gauge("dllm_queue_depth", "Rows that wait", registry=registry)
        self.rows = Gauge("dllm_rows", "Rows that run", registry=registry)
        self.padding = Gauge("dllm_padding_ratio", "Share of padding in the last step's columns", registry=registry)
        self.step_seconds = self._seconds("dllm_step_seconds", "A step of a group of rows")
        self.queue_seconds = self._seconds("dllm_queue_seconds", "From a row's arrival to its first step")
        self.request_seconds = self._seconds("dllm_request_seconds", "A request for an answer, from body to end")
        self.first_text = self._seconds("dllm_first_text_seconds", "From a streamed request to its first text")
        self.rows_per_step = Histogram("dllm_rows_per_step", "Rows that a step runs", buckets=ROWS, registry=registry)
        for why in CANCELLED:
            self.cancelled.labels(why)
        for why in CLOSED:
            self.closed.labels(why)

    def watch(self, batcher: Batcher) -> None:
        """Read the gauges from a batcher whenever they are asked for."""
        self.queue_depth.set_function(lambda: batcher.queued)
        self.rows.set_function(lambda: batcher.running)

    def step(self, report: StepReport) -> None:
        """Count a step."""
        self.forwards.inc()
        self.step_seconds.observe(report.seconds)
        self.rows_per_step.observe(report.rows)
        if report.columns:
            self.padding.set(report.padding / report.columns)

    def request(self, path: str, code: int) -> None:
        """Count a request."""
        known = path if path in ROUTES else "/v1/models" if path.startswith("/v1/models/") else "other"
        self.requests.labels(known, str(code)).inc()

    def close(self, why: str) -> None:
        """Count a connection that was closed because of its client."""
        self.closed.labels(why).inc()

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)

    def _seconds(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=SECONDS, registry=self.registry)
