"""Whether the comparison can be believed: the sample ratio, and outcomes missing in one arm more than in the other."""

from collections.abc import Callable, Iterable
from math import fsum

import msgspec

from stillhouse.schemas.assign import Arm
from stillhouse.serving.canary.experiment import Experiment
from stillhouse.serving.canary.sequence import Bounds, boundary, bounds
from stillhouse.serving.canary.tally import ArmTally, EpochTally


class SampleRatio(msgspec.Struct, frozen=True, kw_only=True):
    """Units in the canary beyond their expected number, and how many beyond chance would allow at any look."""

    units: int
    excess: float
    limit: float

    @property
    def sound(self) -> bool:
        """Whether chance explains it."""
        return abs(self.excess) <= self.limit


def sample_ratio(epochs: Iterable[tuple[int, int, float]], rho: float, alpha: float) -> SampleRatio:
    """Compare the canary's units with its share, epoch by epoch.

    Args:
        epochs: (units of the canary, of all arms, share of the canary).
        rho: frozen before the first look.
        alpha: of each side, below 1/2.
    """
    counts = list(epochs)
    return SampleRatio(
        units=sum(units for _, units, _ in counts),
        excess=fsum(canary - share * units for canary, units, share in counts),
        limit=boundary(fsum(share * (1 - share) * units for _, units, share in counts), rho, alpha),
    )


def unit_ratio(experiment: Experiment, epochs: Iterable[EpochTally], count: Callable[[ArmTally], int]) -> SampleRatio:
    """The sample ratio of the units that `count` counts in each arm.

    The permanent holdback is left out, and the canary's share is of what it leaves: its units are not drawn anew for an experiment, so
    how many of a route's users it happens to hold says nothing about this experiment's draw.
    """
    counts = [
        (
            count(epoch.of(Arm.CANARY)),
            sum(count(epoch.of(arm)) for arm in Arm) - count(epoch.held),
            epoch.shares.canary / (1 - epoch.shares.holdback),
        )
        for epoch in epochs
    ]
    return sample_ratio(counts, experiment.ratio_rho, experiment.settings.ratio_alpha)


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """The difference of outcome coverage, canary minus reference; no bounds while an arm is empty."""

    against: Arm
    margin: float
    bounds: Bounds | None

    @property
    def sound(self) -> bool:
        """Whether the interval still touches what is accepted."""
        return self.bounds is None or (self.bounds.lower <= self.margin and self.bounds.upper >= -self.margin)


def coverages(experiment: Experiment, epochs: Iterable[EpochTally]) -> tuple[Coverage, ...]:
    """Outcome coverage against each reference, over matured units, alpha a side."""
    known, settings = list(epochs), experiment.settings
    return tuple(
        Coverage(
            against=arm,
            margin=settings.coverage_margin,
            bounds=bounds(((epoch.of(Arm.CANARY).coverage, epoch.of(arm).coverage) for epoch in known), rho, settings.alpha),
        )
        for arm, rho in experiment.coverage_rho.items()
    )
