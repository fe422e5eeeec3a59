"""What `/metrics` of the controller says. Names, help texts and labels come from the registry that all planes share."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from stillhouse.schemas.metrics import metric
from stillhouse.serving.canary.gauges import Sample


class Instruments:
    """Counters, and the gauges of the last look: a comparison that is over is shown no longer."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.decisions = self._counter("stillhouse_canary_decisions_total")
        self.conflicts = self._counter("stillhouse_canary_conflicts_total")
        self.looks = self._counter("stillhouse_canary_looks_total")
        self.errors = self._counter("stillhouse_canary_errors_total")
        self._samples: dict[str, list[Sample]] = {}
        self.registry.register(self)

    def show(self, part: str, samples: Iterable[Sample]) -> None:
        """Replace the gauges of one part: a route, or the process."""
        self._samples[part] = list(samples)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """The gauges, for the registry."""
        families: dict[str, GaugeMetricFamily] = {}
        for samples in self._samples.values():
            for sample in samples:
                described = metric(sample.name)
                family = families.setdefault(sample.name, GaugeMetricFamily(sample.name, described.help, labels=described.labels))
                family.add_metric([sample.labels[label] for label in described.labels], sample.value)
        yield from families.values()

    def _counter(self, name: str) -> Counter:
        described = metric(name)
        return Counter(name, described.help, described.labels, registry=self.registry)
