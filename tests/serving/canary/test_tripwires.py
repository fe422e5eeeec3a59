"""Trip-wires: a student that is plainly broken."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.serving.canary.tripwires import Health, Limits, Trip, tripped


def after(requests: str) -> Health:
    """m: malformed, e: error, anything else: fine."""
    health = Health()
    for request in requests:
        health = health.request(malformed=request == "m", error=request == "e")
    return health


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ("mmmm", None),
        ("mmmmm", Trip.MALFORMED),
        ("mmmm.mmmm", None),
        ("mmmemm", Trip.MALFORMED),  # an error says nothing about the form
        ("e" * 19, None),  # too few to be a rate
        ("." * 16 + "e" * 4, None),  # exactly 20 %
        ("." * 15 + "e" * 5, Trip.ERRORS),
        ("." * 5000 + "e" * 20, None),
        ("." * 5000 + "e" * 21, Trip.ERRORS),  # the long healthy past is forgotten
    ],
)
def test_wires(requests: str, expected: Trip | None) -> None:
    assert tripped(after(requests)) is expected


def test_a_failed_attestation_trips_until_one_passes() -> None:
    failed = after("...").attestation(False)
    assert tripped(failed) is Trip.ATTESTATION and tripped(failed.request()) is Trip.ATTESTATION
    assert tripped(failed.attestation(True)) is None


@settings(deadline=None)
@given(st.text(alphabet=".me", max_size=300))
def test_memory_is_bounded(requests: str) -> None:
    assert len(after(requests).errors) == min(len(requests), Limits().recent)
