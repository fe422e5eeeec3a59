"""Greedy actions out of a student's probes, for engines that give no log-probabilities. Pure.

A token that the student gives more than half of its probability is what it writes next, whatever the other tokens are. A run of such
tokens, after the sequence up to it, is an action that it is certain to repeat; one in which parent and base are not certain of every
token tells it from them.
"""

import math
from collections.abc import Collection, Iterator, Sequence

import msgspec

from stillhouse.schemas.student_folder import Probe

CERTAIN = math.log(0.5)
LONGEST = 32


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What the student writes after a beginning."""

    prompt: tuple[int, ...]
    written: tuple[int, ...]


def actions(probes: Sequence[Probe], stop_ids: Collection[int]) -> tuple[Action, ...]:
    """The most telling action of each probe that has one.

    Args:
        probes: the student's.
        stop_ids: tokens that end a reply; an action holds none.
    """
    found = (max(_runs(probe, stop_ids), key=lambda run: run[0], default=None) for probe in probes)
    return tuple(action for _, action in filter(None, found))


def _runs(probe: Probe, stop_ids: Collection[int]) -> Iterator[tuple[float, Action]]:
    """Runs in which no other model is certain of every token, with the probability (log, negated) of the one that doubts least."""
    others = [o for o in (probe.base, probe.parent) if o is not None]
    start = 1
    while start < len(probe.ids):
        end = start
        while end < len(probe.ids) and end - start < LONGEST and probe.student[end - 1] > CERTAIN and probe.ids[end] not in stop_ids:
            end += 1
        doubt = min(-min(other[start - 1 : end - 1], default=0.0) for other in others)
        if -doubt < CERTAIN:
            yield doubt, Action(prompt=probe.ids[:start], written=probe.ids[start:end])
        start = end + 1 if end == start else end
