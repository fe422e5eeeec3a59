"""Sums per epoch and arm, and the book that folds trajectories into them. No clock: the watermark says how far the log was read."""

from heapq import heappop, heappush
from typing import NamedTuple

import msgspec

from stillhouse.schemas.assign import HOLDBACK, Arm, Shares, arm_of, held_back
from stillhouse.schemas.errors import UsageError
from stillhouse.schemas.facts import TrajectoryFacts
from stillhouse.serving.canary.cost import Money
from stillhouse.serving.canary.sequence import MICRO, Moments
from stillhouse.serving.canary.units import Metric, Scales, Unit, money_of, scores, unit_of


class ArmTally(msgspec.Struct, frozen=True, kw_only=True):
    """The units of one arm in one epoch.

    Args:
        assigned: all of them, young ones too.
        matured: older than the outcome horizon.
        judged: matured, with an outcome.
        moments: n, sum and squares of the matured units' scores, by metric.
        money: cost and success of the judged.
    """

    assigned: int = 0
    matured: int = 0
    judged: int = 0
    moments: dict[Metric, Moments] = msgspec.field(default_factory=dict)
    money: Money = Money()

    def of(self, metric: Metric) -> Moments:
        """The sums of one metric."""
        return self.moments.get(metric, Moments())

    @property
    def coverage(self) -> Moments:
        """1 for a matured unit with an outcome, 0 for one without."""
        return Moments(self.matured, self.judged * MICRO, self.judged * MICRO * MICRO)

    def __add__(self, other: "ArmTally") -> "ArmTally":
        """Both together."""
        return ArmTally(
            assigned=self.assigned + other.assigned,
            matured=self.matured + other.matured,
            judged=self.judged + other.judged,
            moments={metric: self.of(metric) + other.of(metric) for metric in self.moments.keys() | other.moments.keys()},
            money=self.money + other.money,
        )

    def __sub__(self, other: "ArmTally") -> "ArmTally":
        """This one without a part of it. A metric of which nothing is left goes: the sums are those of a fold without that part."""
        moments = {metric: self.of(metric) - other.of(metric) for metric in self.moments.keys() | other.moments.keys()}
        return ArmTally(
            assigned=self.assigned - other.assigned,
            matured=self.matured - other.matured,
            judged=self.judged - other.judged,
            moments={metric: found for metric, found in moments.items() if found.n},
            money=self.money - other.money,
        )


class EpochTally(msgspec.Struct, frozen=True, kw_only=True):
    """A period of one allocation.

    Args:
        epoch: its number.
        stage: that it belongs to, 0 is the first.
        shares: of its units.
        arms: the units of each; the permanent holdback is among the teacher's, whose concurrent reference it is.
        held: the permanent holdback alone: the same units in every experiment, so no part of what this one drew.
    """

    epoch: int
    stage: int
    shares: Shares
    arms: dict[Arm, ArmTally] = msgspec.field(default_factory=dict)
    held: ArmTally = ArmTally()

    def of(self, arm: Arm) -> ArmTally:
        """The units of one arm."""
        return self.arms.get(arm, ArmTally())


def tally_of(unit: Unit, scales: Scales, *, matured: bool) -> ArmTally:
    """What one unit adds to its arm: a young one is only counted as assigned."""
    if not matured:
        return ArmTally(assigned=1)
    moments = {metric: Moments.of(score) for metric, score in scores(unit, scales).items()}
    return ArmTally(assigned=1, matured=1, judged=int(unit.judged > 0), moments=moments, money=money_of(unit))


class _Place(NamedTuple):
    epoch: int
    arm: Arm
    held: bool


class _Entry:
    """What is known of one unit, and what of it is in the sums."""

    def __init__(self) -> None:
        self.facts: dict[str, TrajectoryFacts] = {}
        self.place: _Place | None = None
        self.counted = ArmTally()

    def first(self) -> TrajectoryFacts:
        return min(self.facts.values(), key=lambda facts: (facts.started_at, facts.key))


class Book:
    """The units of one experiment, folded from the facts of its trajectories in any order, as often as they come.

    A unit counts in the arm and epoch of its first trajectory; it matures when the log has been read up to its start plus the horizon,
    and then counts with the trajectories that began within the horizon.

    Args:
        experiment: its id; facts of others are ignored.
        scales: of the experiment.
        horizon_us: how long an outcome may take, microseconds.
    """

    def __init__(self, experiment: str, scales: Scales, horizon_us: int) -> None:
        self._experiment, self._scales, self._horizon = experiment, scales, horizon_us
        self._epochs: dict[int, EpochTally] = {}
        self._units: dict[str, _Entry] = {}
        self._young: list[tuple[int, str]] = []
        self._watermark = 0
        self._broken: dict[str, str] = {}

    @property
    def excluded(self) -> dict[str, int]:
        """Units that are in no arm, by reason: `unknown_arm`, `unknown_epoch`."""
        reasons = list(self._broken.values())
        return {reason: reasons.count(reason) for reason in sorted(set(reasons))}

    def open_epoch(self, epoch: int, stage: int, shares: Shares) -> None:
        """A new allocation begins; before the facts of its units.

        Raises:
            UsageError: the epoch exists with another allocation.
        """
        opened = EpochTally(epoch=epoch, stage=stage, shares=shares)
        known = self._epochs.setdefault(epoch, opened)
        if (known.stage, known.shares) != (stage, shares):
            raise UsageError(f"epoch {epoch} has another allocation already", where=self._experiment, fix="Number epochs upwards.")

    def observe(self, facts: TrajectoryFacts) -> None:
        """Fold one revision of a trajectory; an older one than is known, or one of another experiment, changes nothing."""
        if facts.assignment is None or facts.assignment.experiment != self._experiment:
            return
        name = facts.assignment.unit
        entry = self._units.setdefault(name, _Entry())
        known = entry.facts.get(facts.key)
        if known is not None and known.revision >= facts.revision:
            return
        entry.facts[facts.key] = facts
        self._count(name, entry)

    def look(self, watermark: int) -> tuple[EpochTally, ...]:
        """The sums with every unit matured that is older than the horizon at this watermark, microseconds; it never goes back."""
        self._watermark = max(self._watermark, watermark)
        while self._young and self._young[0][0] <= self._watermark:
            _, name = heappop(self._young)
            self._count(name, self._units[name])
        return tuple(self._epochs[number] for number in sorted(self._epochs))

    def _count(self, name: str, entry: _Entry) -> None:
        """Take the unit out of the sums and put it in as it is known now."""
        if entry.place is not None:
            self._move(entry.place, entry.counted, add=False)
        entry.place = self._place(name, entry.first())
        if entry.place is None:
            return
        start = entry.first().started_at
        matured = start + self._horizon <= self._watermark
        if not matured:
            heappush(self._young, (start + self._horizon, name))
        within = [facts for facts in entry.facts.values() if facts.started_at <= start + self._horizon]
        entry.counted = tally_of(sum((unit_of(facts, self._scales) for facts in within), Unit()), self._scales, matured=matured)
        self._move(entry.place, entry.counted, add=True)

    def _place(self, name: str, first: TrajectoryFacts) -> _Place | None:
        """Epoch and arm of the first assignment, or None with the reason noted."""
        self._broken.pop(name, None)
        assigned = first.assignment
        arm = None if assigned is None else arm_of(assigned.arm)
        if assigned is None or arm is None:
            self._broken[name] = "unknown_arm"
        elif assigned.epoch not in self._epochs:
            self._broken[name] = "unknown_epoch"
        else:
            named = assigned.arm == HOLDBACK
            return _Place(assigned.epoch, arm, named or (arm is Arm.TEACHER and held_back(name, self._epochs[assigned.epoch].shares)))
        return None

    def _move(self, place: _Place, part: ArmTally, *, add: bool) -> None:
        epoch = self._epochs[place.epoch]

        def moved(tally: ArmTally) -> ArmTally:
            return tally + part if add else tally - part

        arms = {**epoch.arms, place.arm: moved(epoch.of(place.arm))}
        held = moved(epoch.held) if place.held else epoch.held
        self._epochs[place.epoch] = msgspec.structs.replace(epoch, arms=arms, held=held)
