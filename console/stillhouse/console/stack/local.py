"""The processes of the local stack: what each waits for, and how each is started."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stillhouse.console.stack.parts import Part, Ready, StackSettings, port_in
from stillhouse.schemas.topics import EMBEDDED_PARTITIONS
from stillhouse.sdk.kafka import KafkaSettings, apply_topics

Command = Callable[[Mapping[str, Ready], int], tuple[str, ...]]

# Offsets from [ports] metrics: each process has its own, in the order of docs/operations.md.
_METRICS = {"ingest": 0, "canary": 1, "signals": 2, "trainer": 3}


def parts_of(state: Path, settings: StackSettings) -> tuple[Part, ...]:
    """The parts of the local stack; they are stopped in the reverse of this order."""
    local = _Local(state, settings)
    own_broker = () if settings.bootstrap_servers else (Part("broker", local.broker, port_of=_broker_port),)
    after_broker = tuple(p.name for p in own_broker)
    stored = ("ingest",)  # it makes the topics
    parts = [*own_broker, Part("ingest", local.follower("streams.ingest"), after_broker, port_of=_metrics_port, prepare=local.make_topics)]
    if settings.model:
        parts.append(Part("student", local.student, ready_timeout=180))
    if settings.routes:
        parts.append(Part("gateway", local.gateway, (*stored, *(("student",) if settings.model else ()))))
        parts.append(Part("canary", local.follower("serving.canary"), stored, port_of=_metrics_port))
        parts.append(Part("signals", local.follower("streams.signals"), stored, port_of=_metrics_port))
    if settings.model:
        parts.append(Part("trainer", local.trainer, stored, port_of=_metrics_port))
    return (*parts, Part("console", local.page, stored))


@dataclass(frozen=True)
class _Local:
    state: Path
    settings: StackSettings

    @property
    def _common(self) -> tuple[str, ...]:
        return ("--state", str(self.state), *(("--config", str(self.settings.config)) if self.settings.config else ()))

    def _bootstrap(self, ready: Mapping[str, Ready]) -> str:
        return self.settings.bootstrap_servers or str(ready["broker"]["bootstrap_servers"])

    def _metrics(self, name: str, port: int) -> tuple[str, str]:
        first = self.settings.metrics_port
        return ("--metrics-port", str(port or (first and first + _METRICS[name])))

    def follower(self, module: str) -> Command:
        """A process that follows topics and has a port for metrics alone."""

        def command(ready: Mapping[str, Ready], port: int) -> tuple[str, ...]:
            where = ("--bootstrap-servers", self._bootstrap(ready), *self._metrics(module.rpartition(".")[2], port))
            return (*_python(module), *self._common, *where)

        return command

    def broker(self, ready: Mapping[str, Ready], port: int) -> tuple[str, ...]:
        return (*_python("broker"), "--dir", str(self.state / "broker"), "--port", str(port or self.settings.broker_port))

    def student(self, ready: Mapping[str, Ready], port: int) -> tuple[str, ...]:
        listen = ("--port", str(port or self.settings.student_port), "--students", str(self.state / "students"))
        return (*_python("serving.student"), "--model", str(self.settings.model), *listen)

    def gateway(self, ready: Mapping[str, Ready], port: int) -> tuple[str, ...]:
        engine = ("--engine-url", str(ready["student"]["url"])) if "student" in ready else ()
        ports = ("--port", str(port or self.settings.gateway_port), "--metrics-port", str(self.settings.admin_port))
        return (*_python("serving.gateway"), *self._common, "--bootstrap-servers", self._bootstrap(ready), *ports, *engine)

    def trainer(self, ready: Mapping[str, Ready], port: int) -> tuple[str, ...]:
        where = ("--bootstrap-servers", self._bootstrap(ready), *self._metrics("trainer", port))
        return (*_python("trainer.daemon"), *self._common, *where)

    def page(self, ready: Mapping[str, Ready], port: int) -> tuple[str, ...]:
        return (*_python("console.page"), *self._common, "--port", str(port or self.settings.page_port))

    def make_topics(self, ready: Mapping[str, Ready]) -> None:
        # On the user's Kafka topics are the operator's decision (`stillhouse topics apply`); the embedded broker is ours.
        if not self.settings.bootstrap_servers:
            kafka = KafkaSettings(bootstrap_servers=self._bootstrap(ready), prefix=self.settings.prefix)
            apply_topics(kafka, partitions=EMBEDDED_PARTITIONS)


def _python(module: str) -> tuple[str, str, str]:
    return (sys.executable, "-m", f"stillhouse.{module}")


def _broker_port(ready: Ready) -> int:
    return port_in(str(ready["bootstrap_servers"]))


def _metrics_port(ready: Ready) -> int:
    return port_in(str(ready["metrics"]).removesuffix("/metrics"))
