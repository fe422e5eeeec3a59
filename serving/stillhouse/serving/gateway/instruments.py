"""What `/metrics` of the gateway says. Names, help texts and labels come from the registry that all planes share."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stillhouse.schemas.metrics import METRICS

_PREFIX = "stillhouse_gateway_"
_KINDS: dict[str, Callable[..., Any]] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


class Instruments:
    """The gateway's metrics; names are given without their prefix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._found: dict[str, Any] = {}
        self._labelled: dict[tuple[str, ...], Any] = {}
        for metric in METRICS:
            if metric.name.startswith(_PREFIX):
                made = _KINDS[metric.kind](metric.name, metric.help, metric.labels, registry=self.registry)
                self._found[metric.name.removeprefix(_PREFIX)] = made

    def count(self, name: str, *labels: str, amount: float = 1) -> None:
        """Add to a counter."""
        self._at(name, labels).inc(amount)

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        self._at(name, labels).set(value)

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Add to a histogram."""
        self._at(name, labels).observe(value)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)

    def _at(self, name: str, labels: tuple[str, ...]) -> Any:
        key = (name, *labels)
        found = self._labelled.get(key)
        if found is None:  # labels() takes a lock and builds strings: once for each series is enough
            found = self._labelled[key] = self._found[name].labels(*labels) if labels else self._found[name]
        return found
