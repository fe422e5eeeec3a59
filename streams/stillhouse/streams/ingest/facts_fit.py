"""From facts to a message that the topic takes. Pure: facts that are sent again are cut the same way.

A row may hold more than a message of Kafka: a policy of its own at every step, or names without end. What readers of facts go by
is kept; the row has the whole.
"""

from typing import Literal, NamedTuple

import msgspec

from stillhouse.schemas import codec
from stillhouse.schemas.events import Assignment, Policy
from stillhouse.schemas.facts import TrajectoryFacts
from stillhouse.schemas.topics import EVENT_MAX_BYTES

ROOM = EVENT_MAX_BYTES - 2048
"""Bytes of key and value; the rest is for the batch around them."""

LONGEST = 4096
"""Characters of a name in facts that had to be cut: a longer one is left out, for the beginning of a name is another name."""

_OPTIONAL = ("task_id", "family", "subject", "parent_trajectory")
_PLAIN = ("agent", "outcome_source")


class FactsMessage(NamedTuple):
    """Key and value of one message. `cut` says what it lacks; `withheld`: the trajectory's own name does not fit, it cannot be sent."""

    key: bytes
    value: bytes
    cut: Literal["", "cut", "withheld"] = ""


def message_of(facts: TrajectoryFacts) -> FactsMessage:
    """The message of some facts, without long names and with one policy of each role where it would be too large."""
    key, value = facts.key.encode(), codec.encode(facts)
    if len(key) + len(value) <= ROOM:
        return FactsMessage(key, value)
    value = codec.encode(_without_length(facts))
    return FactsMessage(key, value, "cut" if len(key) + len(value) <= ROOM else "withheld")


def _without_length(facts: TrajectoryFacts) -> TrajectoryFacts:
    names = {name: None for name in _OPTIONAL if _long(getattr(facts, name))} | {name: "" for name in _PLAIN if _long(getattr(facts, name))}
    return msgspec.structs.replace(facts, policies=_one_of_each_role(facts.policies), assignment=_usable(facts.assignment), **names)


def _one_of_each_role(policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
    """The first policy of each role: readers ask who took part."""
    found: dict[str, Policy] = {}
    for one in policies:
        found.setdefault(one.role, one)
    return tuple(
        Policy(role=one.role, model="" if _long(one.model) else one.model, version="" if _long(one.version) else one.version)
        for one in found.values()
    )


def _usable(assignment: Assignment | None) -> Assignment | None:
    """An assignment is counted by all of its names, or by none."""
    names = () if assignment is None else (assignment.route, assignment.unit, assignment.experiment, assignment.arm)
    return None if any(map(_long, names)) else assignment


def _long(name: str | None) -> bool:
    return name is not None and len(name) > LONGEST
