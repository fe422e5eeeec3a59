"""Trip-wires: no statistics, a student that is plainly broken goes at once."""

from enum import StrEnum

import msgspec


class Trip(StrEnum):
    """Which wire; also the reason of the rollback."""

    MALFORMED = "malformed_actions"
    ERRORS = "error_rate"
    ATTESTATION = "attestation_failed"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """When a wire trips.

    Args:
        malformed: unusable actions one after the other.
        error_share: 0…1 of the recent requests; more than this trips.
        requests: fewest requests that make a rate.
        recent: most requests that are looked back on, so that a long healthy past does not hide an outage.
    """

    malformed: int = 5
    error_share: float = 0.20
    requests: int = 20
    recent: int = 100


LIMITS = Limits()


class Health(msgspec.Struct, frozen=True):
    """What the wires need to remember of a student: fold its requests in the order of their replies.

    Args:
        malformed: unusable actions since the last usable one.
        errors: of the recent requests, oldest first, whether each failed.
        attested: the latest attestation; None before the first.
    """

    malformed: int = 0
    errors: tuple[bool, ...] = ()
    attested: bool | None = None

    def request(self, *, malformed: bool = False, error: bool = False, limits: Limits = LIMITS) -> "Health":
        """After one more request: an error is no reply at all and says nothing about the form of actions."""
        streak = self.malformed if error else self.malformed + 1 if malformed else 0
        return Health(streak, (*self.errors, error)[-limits.recent :], self.attested)

    def attestation(self, passed: bool) -> "Health":
        """After one more attestation."""
        return Health(self.malformed, self.errors, passed)


def too_many_malformed(streak: int, limits: Limits = LIMITS) -> bool:
    """Whether so many unusable actions in a row trip the wire."""
    return streak >= limits.malformed


def too_many_errors(errors: int, requests: int, limits: Limits = LIMITS) -> bool:
    """Whether this many failed requests of so many trip the wire."""
    return requests >= limits.requests and errors > limits.error_share * requests


def tripped(health: Health, limits: Limits = LIMITS) -> Trip | None:
    """The wire that a student has tripped, the surest first."""
    if health.attested is False:
        return Trip.ATTESTATION
    if too_many_malformed(health.malformed, limits):
        return Trip.MALFORMED
    return Trip.ERRORS if too_many_errors(sum(health.errors), len(health.errors), limits) else None
