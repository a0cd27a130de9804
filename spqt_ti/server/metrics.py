"""What /metrics counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from spqt_ti.server.engine import Engine
from spqt_ti.server.orders import Usage

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self._engine = engine
        self.requests = Counter(
            "spqt_requests", "Requests for completions by how they ended", ["outcome"], registry=self.registry
        )
        self._tokens = Counter("spqt_tokens", "Tokens by kind", ["kind"], registry=self.registry)
        self._decode_seconds = Counter("spqt_decode_seconds", "Time spent decoding", registry=self.registry)
        self._first = Histogram(
            "spqt_first_token_seconds", "From the start on the engine to the first token",
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.registry.register(self)

    def collect(self) -> list[GaugeMetricFamily]:
        """Gauges that are read when asked for."""
        return [
            GaugeMetricFamily("spqt_requests_waiting", "Requests in line", value=self._engine.waiting),
            GaugeMetricFamily("spqt_engine_busy", "1 while the engine works", value=self._engine.busy),
        ]

    def count(self, usage: Usage) -> None:
        """A request that was answered."""
        self.requests.labels("answered").inc()
        self._tokens.labels("prompt").inc(usage.prompt_tokens)
        self._tokens.labels("prompt_reused").inc(usage.reused_tokens)
        self._tokens.labels("generated").inc(usage.completion_tokens)
        self._decode_seconds.inc(usage.decode_seconds)
        if usage.first_token_seconds:
            self._first.observe(usage.first_token_seconds)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)
