"""What /metrics says. Names and help texts come from the registry that all planes share."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from stillhouse.schemas.metrics import metric
from stillhouse.serving.student.engine import Engine


class Metrics:
    """The server's metrics, each server's its own.

    `engine` is given once the model is loaded; what it counts is read when somebody asks.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # process_start_time_seconds tells a gateway that the server was restarted
        self.requests = self._counter("stillhouse_student_requests_total")
        self.format_errors = self._counter("stillhouse_student_format_errors_total")
        self.seconds = self._histogram("stillhouse_student_request_seconds", (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60))
        self.rows = self._histogram("stillhouse_student_batch_rows", (1, 2, 4, 8, 12, 16, 20, 24, 32))

    def watch(self, engine: Engine, adapters: Callable[[], int]) -> None:
        """Show an engine's counters from now on."""
        self.registry.register(_EngineCollector(engine, adapters))

    def _counter(self, name: str) -> Counter:
        described = metric(name)
        return Counter(name, described.help, described.labels, registry=self.registry)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        described = metric(name)
        return Histogram(name, described.help, described.labels, buckets=buckets, registry=self.registry)


class _EngineCollector:
    def __init__(self, engine: Engine, adapters: Callable[[], int]) -> None:
        self._engine, self._adapters = engine, adapters

    def collect(self) -> Iterator[Metric]:
        engine, done = self._engine, self._engine.counters
        counts: dict[str, float] = {
            "stillhouse_student_busy_seconds_total": done.busy_s,
            "stillhouse_student_steps_total": done.steps,
            "stillhouse_student_kv_evicted_tokens_total": engine.tree.evicted_tokens,
        }
        for name, value in counts.items():
            yield CounterMetricFamily(name, metric(name).help, value=value)
        tokens = metric("stillhouse_student_tokens_total")
        family = CounterMetricFamily(tokens.name, tokens.help, labels=tokens.labels)
        for kind, n in {"prefilled": done.prefilled, "reused": done.reused, "generated": done.generated}.items():
            family.add_metric([kind], n)
        yield family
        gauges: dict[str, float] = {
            "stillhouse_student_kv_bytes": engine.tree.bytes,
            "stillhouse_student_waiting_requests": len(engine.scheduler.waiting),
            "stillhouse_student_running_requests": len(engine.scheduler.running),
            "stillhouse_student_adapters": self._adapters(),
        }
        for name, value in gauges.items():
            yield GaugeMetricFamily(name, metric(name).help, value=value)
