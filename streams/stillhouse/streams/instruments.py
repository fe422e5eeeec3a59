"""Prometheus instruments made from `schemas/metrics.py`: a name that is not in that list cannot be used."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stillhouse.schemas.metrics import METRICS

_KINDS: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


class Instruments:
    """One registry with the metrics whose names begin with one of the prefixes."""

    def __init__(self, *prefixes: str) -> None:
        self.registry = CollectorRegistry()
        self._found: dict[str, Any] = {
            metric.name: _KINDS[metric.kind](metric.name, metric.help, metric.labels, registry=self.registry)
            for metric in METRICS
            if metric.name.startswith(prefixes)
        }

    def _at(self, name: str, labels: dict[str, str]) -> Any:
        found = self._found[name]
        return found.labels(**labels) if labels else found

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self._at(name, labels).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._at(name, labels).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add to a histogram."""
        self._at(name, labels).observe(value)

    def remove(self, name: str, *labels: str) -> None:
        """Forget one labelled value, such as a partition that another worker reads now."""
        try:
            self._found[name].remove(*labels)
        except KeyError:
            return

    def value(self, name: str, **labels: str) -> float:
        """What a counter or gauge says now."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)
