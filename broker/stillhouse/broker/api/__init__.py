"""One function per request: from a decoded request to the answer's fields."""

from dataclasses import dataclass

from stillhouse.broker.commit import GroupCommit
from stillhouse.broker.state import BrokerState

NODE = 1
NO_OPERATIONS = -(2**31)  # "authorized operations" were not asked for, or are unknown: there is no authorisation here


@dataclass(frozen=True)
class Context:
    """What a handler may use: the broker's parts, and who asks."""

    state: BrokerState
    commit: GroupCommit
    auto_create: bool
    version: int
    client: str
    peer: str
    address: tuple[str, int]  # where this client reached us: what it is told as the broker's address
    now_ms: int
    now: float  # monotonic, seconds
