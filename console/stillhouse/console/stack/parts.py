"""Which processes the local stack has, what each waits for, and how each is started."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse.schemas.topics import EMBEDDED_PARTITIONS
from stillhouse.sdk.kafka import KafkaSettings, apply_topics

Ready = Mapping[str, Any]
"""What a process printed when it was ready: one JSON object."""


@dataclass(frozen=True)
class Part:
    """One process of the stack.

    Args:
        name: also the name of its log file.
        command: makes the argument vector from what the parts before it announced, and from the port
            it had before a restart (0 at the first start and where any free port will do).
        after: parts that must be ready first.
        port_of: takes the port out of this part's announcement, so that a restart keeps its address.
        ready_timeout: seconds until it must have announced itself.
        prepare: what must be done before it starts, given what the parts before it announced; may block.
    """

    name: str
    command: Callable[[Mapping[str, Ready], int], tuple[str, ...]]
    after: tuple[str, ...] = ()
    port_of: Callable[[Ready], int] = field(default=lambda ready: port_in(str(ready.get("url", ""))))
    ready_timeout: float = 90.0
    prepare: Callable[[Mapping[str, Ready]], None] = lambda ready: None


@dataclass(frozen=True)
class StackSettings:
    """What the local stack listens on and runs with. A port of 0 takes any free one.

    Args:
        bootstrap_servers: an Apache Kafka of the user's; None starts the embedded broker.
        prefix: of the topics' names.
        model: folder of the student's base model; None leaves the student server out.
    """

    bootstrap_servers: str | None = None
    prefix: str = ""
    broker_port: int = 9392
    page_port: int = 8486
    student_port: int = 0
    metrics_port: int = 9490
    model: Path | None = None
    config: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


ANY_PORT = StackSettings(broker_port=0, page_port=0, metrics_port=0)


def port_in(address: str) -> int:
    """The port at the end of `http://host:port/…` or `host:port`; 0 when there is none."""
    tail = address.rstrip("/").rpartition(":")[2]
    return int(tail) if tail.isdigit() else 0


def _broker_port(ready: Ready) -> int:
    return port_in(str(ready["bootstrap_servers"]))


def _metrics_port(ready: Ready) -> int:
    return port_in(str(ready["metrics"]).removesuffix("/metrics"))


def parts_of(state: Path, settings: StackSettings) -> tuple[Part, ...]:
    """The parts of the local stack in the order they start."""
    common = ("--state", str(state), *(("--config", str(settings.config)) if settings.config else ()))

    def bootstrap(ready: Mapping[str, Ready]) -> str:
        return settings.bootstrap_servers or str(ready["broker"]["bootstrap_servers"])

    def broker(ready: Mapping[str, Ready], port: int) -> tuple[str, ...]:
        return (sys.executable, "-m", "stillhouse.broker", "--dir", str(state / "broker"), "--port", str(port or settings.broker_port))

    def ingest(ready: Mapping[str, Ready], port: int) -> tuple[str, ...]:
        metrics = port or settings.metrics_port
        return (
            sys.executable,
            "-m",
            "stillhouse.streams.ingest",
            *common,
            "--bootstrap-servers",
            bootstrap(ready),
            "--metrics-port",
            str(metrics),
        )

    def student(ready: Mapping[str, Ready], port: int) -> tuple[str, ...]:
        listen = ("--port", str(port or settings.student_port), "--students", str(state / "students"))
        return (sys.executable, "-m", "stillhouse.serving.student", "--model", str(settings.model), *listen)

    def page(ready: Mapping[str, Ready], port: int) -> tuple[str, ...]:
        return (sys.executable, "-m", "stillhouse.console.page", *common, "--port", str(port or settings.page_port))

    def make_topics(ready: Mapping[str, Ready]) -> None:
        # On the user's Kafka topics are the operator's decision (`stillhouse topics apply`); the embedded broker is ours.
        if not settings.bootstrap_servers:
            apply_topics(KafkaSettings(bootstrap_servers=bootstrap(ready), prefix=settings.prefix), partitions=EMBEDDED_PARTITIONS)

    own_broker = () if settings.bootstrap_servers else (Part("broker", broker, port_of=_broker_port),)
    needs_broker = tuple(p.name for p in own_broker)
    own_student = (Part("student", student, ready_timeout=180),) if settings.model else ()
    stores = Part("ingest", ingest, needs_broker, port_of=_metrics_port, prepare=make_topics)
    return (*own_broker, stores, *own_student, Part("console", page))
