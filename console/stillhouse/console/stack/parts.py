"""What a process of the stack is, and what the local stack runs with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Ready = Mapping[str, Any]
"""What a process printed when it was ready: one JSON object."""


@dataclass(frozen=True)
class Part:
    """One process of the stack.

    Args:
        name: also the name of its log file.
        command: makes the argument vector from what the parts before it announced, and from the port
            it had before a restart (0 at the first start and where any free port will do).
        after: parts that must be ready first; those that wait for nobody start together.
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
        model: folder of the student's base model; None leaves student server and trainer out.
        routes: whether the settings name a route; without one there is nothing to serve: no gateway, no canary, no signals.
    """

    bootstrap_servers: str | None = None
    prefix: str = ""
    broker_port: int = 9392
    gateway_port: int = 8484
    admin_port: int = 8485
    page_port: int = 8486
    student_port: int = 0
    metrics_port: int = 9490
    model: Path | None = None
    routes: bool = False
    config: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


ANY_PORT = StackSettings(broker_port=0, gateway_port=0, admin_port=0, page_port=0, metrics_port=0)


def port_in(address: str) -> int:
    """The port at the end of `http://host:port/…` or `host:port`; 0 when there is none."""
    tail = address.rstrip("/").rpartition(":")[2]
    return int(tail) if tail.isdigit() else 0
