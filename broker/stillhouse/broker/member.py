"""A member of a consumer group, and the words that a group's state machine uses."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from stillhouse.broker.codec import Message

Reply = Callable[[Message], None]
Protocols = list[tuple[str, bytes]]


class State(StrEnum):
    """Kafka's names for what a group is doing."""

    EMPTY = "Empty"
    PREPARING = "PreparingRebalance"  # waits for every member to join
    COMPLETING = "CompletingRebalance"  # waits for the leader's assignment
    STABLE = "Stable"


@dataclass(frozen=True)
class Client:
    """Who joins: its name and address, and what its protocol version allows."""

    id: str = ""
    host: str = ""
    asks_for_id: bool = True
    may_skip_assignment: bool = True


@dataclass
class Member:
    """A member of the group."""

    id: str
    instance: str | None
    client: Client
    session: float
    rebalance: float
    protocols: Protocols
    deadline: float
    join: Reply | None = None
    sync: Reply | None = None
    synced: bool = False
    assignment: bytes = b""

    def metadata(self, protocol: str) -> bytes:
        """What it said for `protocol`."""
        return dict(self.protocols).get(protocol, b"")
