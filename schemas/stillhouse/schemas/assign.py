"""Which arm a unit of traffic belongs to: a hash, so that gateway and controller agree without talking.

A canary grows by taking the next slice of the hash: whoever is in it at 5 % is in it at 10 %. The teacher's permanent holdback has a
hash of its own, without the experiment's salt, so the same units stay with the teacher through all experiments of a route.
"""

from enum import StrEnum
from hashlib import blake2b

import msgspec

from stillhouse.schemas.errors import UsageError


class Arm(StrEnum):
    """What a unit was assigned to. The value is what `Assignment.arm` carries."""

    TEACHER = "teacher"
    CHAMPION = "champion"
    CANARY = "canary"


_ARMS = {arm.value: arm for arm in Arm}


class Shares(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of a route's units; the teacher has what the others leave, the holdback included.

    Args:
        canary: 0…1 of all units.
        champion: 0…1 of all units.
        holdback: 0…1 of all units that stay with the teacher for ever.
        route: names the holdback, so that routes hold back different units.

    Raises:
        UsageError: the shares do not fit into the whole.
    """

    canary: float = 0.0
    champion: float = 0.0
    holdback: float = 0.02
    route: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no allocation."""
        parts = (self.canary, self.champion, self.holdback)
        if not (min(parts) >= 0 and sum(parts) <= 1 + 1e-9):
            raise UsageError(f"no allocation: canary {self.canary}, champion {self.champion}, holdback {self.holdback}", where=self.route)

    def of(self, arm: Arm) -> float:
        """The share of one arm; the three add up to one."""
        if arm is Arm.TEACHER:
            return max(0.0, 1 - self.canary - self.champion)
        return self.canary if arm is Arm.CANARY else self.champion


def idle_shares(*, champion: bool, holdback: float = 0.02, route: str = "") -> Shares:
    """The allocation of a route without a canary: its champion, or the teacher while there is none."""
    return Shares(champion=1 - holdback if champion else 0.0, holdback=holdback, route=route)


def stage_shares(canary: float, *, champion: bool, last: bool, holdback: float = 0.02, route: str = "") -> Shares:
    """The allocation of one stage of a canary.

    In the last stage champion and teacher split the control half, because both are references of the final test; before it the teacher
    has its holdback. Without a champion the teacher is all of the control.

    Raises:
        UsageError: canary and holdback are more than everything.
    """
    split = (1 - canary) / 2 if last else 1.0
    return Shares(canary=canary, champion=min(split, 1 - canary - holdback) if champion else 0.0, holdback=holdback, route=route)


def position(unit: str, salt: str) -> float:
    """Where a unit lies in [0, 1) under a salt: uniform over units, independent between salts. 53 bits of BLAKE2b."""
    digest = blake2b(unit.encode(), key=blake2b(salt.encode(), digest_size=32).digest(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


HOLDBACK = "holdback"
"""Another name for the teacher's arm, of units that are the teacher's for ever."""


def arm_of(name: str) -> Arm | None:
    """The arm that `Assignment.arm` names; None for a name that is none."""
    return Arm.TEACHER if name == HOLDBACK else _ARMS.get(name)


def held_back(unit: str, shares: Shares) -> bool:
    """Whether a unit is the teacher's for ever: no experiment's draw, whatever its salt."""
    return shares.holdback > 0 and position(unit, f"{HOLDBACK}/{shares.route}") < shares.holdback


def assign(unit: str, salt: str, shares: Shares) -> Arm:
    """The arm of a unit. The first answer is stored with the unit; later stages do not move it.

    Args:
        unit: trajectory, conversation or user, as the route says.
        salt: the experiment's, new for each canary.
        shares: the allocation of the current stage.
    """
    if held_back(unit, shares):
        return Arm.TEACHER
    # The experiment divides what the holdback leaves: canary from the left, teacher from the right, so both only grow.
    place = position(unit, f"experiment/{salt}") * (1 - shares.holdback)
    if place < shares.canary:
        return Arm.CANARY
    return Arm.CHAMPION if place < shares.canary + shares.champion else Arm.TEACHER
