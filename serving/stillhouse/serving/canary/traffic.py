"""What the topic `trajectories` says of one route: its history, and the units of the canary that runs. No clock, no Kafka."""

from collections.abc import Iterable, Mapping

import msgspec

from stillhouse.schemas.assign import Arm, Shares, arm_of, stage_shares
from stillhouse.schemas.facts import TrajectoryFacts, Watermark
from stillhouse.schemas.route_state import RouteState
from stillhouse.serving.canary.cost import Money
from stillhouse.serving.canary.experiment import DAY
from stillhouse.serving.canary.sequence import Moments
from stillhouse.serving.canary.settings import SECOND, Terms
from stillhouse.serving.canary.tally import ArmTally, Book, EpochTally, tally_of
from stillhouse.serving.canary.units import Metric, Scales, Unit, unit_of

KEPT = 50_000
"""Trajectories of a route that are remembered as history, the latest first."""


class Watermarks:
    """How far all of `agent.events` has been read, in the log's own time: the least over its partitions.

    Args:
        partitions: of `agent.events`.
    """

    def __init__(self, partitions: int) -> None:
        self._marks = dict.fromkeys(range(partitions), 0)

    def observe(self, mark: Watermark) -> None:
        """Take one worker's word; a worker that lost the partition may say less than is known."""
        self._marks[mark.partition] = max(self._marks.get(mark.partition, 0), mark.watermark)

    @property
    def least(self) -> int:
        """Microseconds since the epoch; 0 until every partition has been heard of."""
        return min(self._marks.values(), default=0)


class History(msgspec.Struct, frozen=True, kw_only=True):
    """A route's traffic before a canary.

    Args:
        units_per_day: of all arms.
        arms: the references' matured units.
        price_usd: what the teacher cost per success; 0 while that is unknown.
    """

    units_per_day: float = 0.0
    arms: Mapping[Arm, ArmTally] = {}
    price_usd: float = 0.0

    def of(self, arm: Arm) -> ArmTally:
        """The units of one arm."""
        return self.arms.get(arm, ArmTally())

    @property
    def moments(self) -> dict[Arm, dict[Metric, Moments]]:
        """The references' sums, as a plan takes them."""
        return {arm: dict(tally.moments) for arm, tally in self.arms.items()}

    @property
    def coverage(self) -> dict[Arm, Moments]:
        """The references' outcome coverage, as a plan takes it."""
        return {arm: tally.coverage for arm, tally in self.arms.items()}


class Traffic:
    """The latest revision of each trajectory of a route, and the book of its running experiment.

    Args:
        terms: of the route.
        kept: how many trajectories are remembered as history.
    """

    def __init__(self, terms: Terms, kept: int = KEPT) -> None:
        self._terms, self._kept = terms, kept
        self._facts: dict[str, TrajectoryFacts] = {}
        self._book: Book | None = None
        self._fresh: list[TrajectoryFacts] = []  # they may be of an epoch whose record is read only after them
        self._experiment = terms.route

    def observe(self, facts: TrajectoryFacts) -> None:
        """Take one revision of one of the route's trajectories; an older one than is known changes nothing."""
        known = self._facts.get(facts.key)
        if known is not None and known.revision >= facts.revision:
            return
        self._facts[facts.key] = facts
        if self._book is not None:
            self._fresh.append(facts)
        if len(self._facts) > 2 * self._kept:
            self._forget()

    def follow(self, state: RouteState, scales: Scales, holdback: float, epochs: Mapping[int, RouteState]) -> None:
        """Bring the book of the state's experiment up to date: its epochs first, then what was observed since.

        Args:
            state: with a running canary.
            scales: frozen when it started.
            holdback: likewise.
            epochs: the state that each epoch began with.
        """
        if self._book is None or self._experiment != state.experiment:
            self._experiment, self._book = state.experiment, Book(state.experiment, scales, self._terms.horizon_us)
            self._fresh = list(self._facts.values())
        for number, began in epochs.items():
            self._book.open_epoch(number, began.stage_index, allocation(began, holdback))
        for facts in self._fresh:
            self._book.observe(facts)
        self._fresh.clear()

    def close(self) -> None:
        """No canary runs any more: what was its traffic is history."""
        self._book, self._experiment = None, self._terms.route
        self._fresh.clear()

    def look(self, watermark: int) -> tuple[EpochTally, ...]:
        """The running experiment's sums."""
        return () if self._book is None else self._book.look(watermark)

    @property
    def excluded(self) -> dict[str, int]:
        """Units of the running experiment whose assignment was broken, by reason."""
        return {} if self._book is None else self._book.excluded

    def of_canary(self, experiment: str) -> list[TrajectoryFacts]:
        """The trajectories of an experiment's canary, in the order in which they were last heard of."""
        found = [f for f in self._facts.values() if (a := f.assignment) and a.experiment == experiment and a.arm == Arm.CANARY]
        return sorted(found, key=lambda facts: (facts.occurred_at, facts.key))

    def history(self, watermark: int, span_us: int, step_cap: int, champion_since: int | None) -> History:
        """What is known before a canary.

        Args:
            watermark: how far the log was read.
            span_us: how far back counts.
            step_cap: as in `Scales`.
            champion_since: when the present champion began to serve; None without one.
        """
        scales = Scales(step_cap=step_cap, budget_usd=self._terms.budget_usd, source=self._terms.sources[0] if self._terms.sources else "")
        units = _units(self._facts.values(), watermark - span_us, scales)
        matured = {name: (arm, first, unit) for name, (arm, first, unit) in units.items() if first + self._terms.horizon_us <= watermark}
        teacher = sum((tally_of(u, scales, matured=True).money for arm, _, u in matured.values() if arm is Arm.TEACHER), Money())
        scales = msgspec.structs.replace(scales, price_usd=teacher.per_success or 0.0)
        arms: dict[Arm, ArmTally] = {}
        for arm, first, unit in matured.values():
            if arm is Arm.TEACHER or (arm is Arm.CHAMPION and champion_since is not None and first >= champion_since):
                arms[arm] = arms.get(arm, ArmTally()) + tally_of(unit, scales, matured=True)
        earliest = min((first for _, first, _ in units.values()), default=watermark)
        days = max(watermark - earliest, SECOND) / SECOND / DAY
        return History(units_per_day=len(units) / days, arms=arms, price_usd=scales.price_usd)

    def _forget(self) -> None:
        """Drop the oldest half of what is no part of the running experiment."""
        past = [f for f in self._facts.values() if f.assignment is None or f.assignment.experiment != self._experiment or not self._book]
        for facts in sorted(past, key=lambda facts: facts.occurred_at)[: max(0, len(past) - self._kept)]:
            del self._facts[facts.key]


def allocation(state: RouteState, holdback: float) -> Shares:
    """The shares of a state with a canary."""
    return stage_shares(state.share, champion=state.champion is not None, last=state.final, holdback=holdback, route=state.route)


def _units(every: Iterable[TrajectoryFacts], since: int, scales: Scales) -> dict[str, tuple[Arm, int, Unit]]:
    """Arm, start and sums of each unit that began since then."""
    found: dict[str, tuple[Arm, int, Unit]] = {}
    for facts in every:
        assigned = facts.assignment
        arm = None if assigned is None else arm_of(assigned.arm)
        if assigned is None or arm is None or facts.started_at < since:
            continue
        name = f"{assigned.experiment}/{assigned.unit}"
        known = found.get(name)
        first = facts.started_at if known is None else min(known[1], facts.started_at)
        found[name] = (arm, first, unit_of(facts, scales) + (known[2] if known else Unit()))
    return found
