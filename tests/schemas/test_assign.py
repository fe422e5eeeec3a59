"""Units keep their arm: nested over stages, uniform, independent between experiments."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.schemas.assign import Arm, Shares, assign, idle_shares, position, stage_shares
from stillhouse.schemas.errors import UsageError

STAGES = (0.01, 0.05, 0.10, 0.25, 0.50)
# Upper 1/10,000 quantiles of chi-squared, by degrees of freedom.
QUANTILE = {2: 18.42, 81: 138.6, 99: 161.3}
UNITS = [f"unit-{number}" for number in range(20_000)]


def ramp(champion: bool) -> list[Shares]:
    return [stage_shares(share, champion=champion, last=share == STAGES[-1], route="desk") for share in STAGES]


@settings(deadline=None)
@given(unit=st.text(max_size=40), salt=st.text(max_size=80), champion=st.booleans())
def test_canary_and_teacher_only_grow(unit: str, salt: str, champion: bool) -> None:
    arms = [assign(unit, salt, shares) for shares in ramp(champion)]
    if Arm.CANARY in arms:
        assert set(arms[arms.index(Arm.CANARY) :]) == {Arm.CANARY}
    if champion and Arm.TEACHER in arms:  # without one the teacher is the control, which the canary takes from
        assert set(arms[arms.index(Arm.TEACHER) :]) == {Arm.TEACHER}


@settings(deadline=None)
@given(unit=st.text(max_size=40), salt=st.text(max_size=80), canary=st.floats(0, 0.98), holdback=st.floats(0, 0.02))
def test_without_a_champion_nothing_is_sent_to_one(unit: str, salt: str, canary: float, holdback: float) -> None:
    assert assign(unit, salt, stage_shares(canary, champion=False, last=False, holdback=holdback)) is not Arm.CHAMPION


@pytest.mark.parametrize("champion", [True, False])
@pytest.mark.parametrize("stage", range(len(STAGES)))
def test_arms_get_their_shares(stage: int, champion: bool) -> None:
    shares = ramp(champion)[stage]
    counts = Counter(assign(unit, "salt", shares) for unit in UNITS)
    statistic = 0.0
    for arm in Arm:
        expected = shares.of(arm) * len(UNITS)
        if expected:
            statistic += (counts[arm] - expected) ** 2 / expected
        else:
            assert counts[arm] == 0
    assert statistic < QUANTILE[2]


def test_positions_are_uniform() -> None:
    cells = Counter(int(position(unit, "salt") * 100) for unit in UNITS)
    assert sum((cells[cell] - 200) ** 2 / 200 for cell in range(100)) < QUANTILE[99]


def test_salts_are_independent() -> None:
    cells = Counter((int(position(unit, "experiment/a") * 10), int(position(unit, "experiment/b") * 10)) for unit in UNITS)
    rows, columns = Counter(a for a, _ in cells.elements()), Counter(b for _, b in cells.elements())
    expected = {(a, b): rows[a] * columns[b] / len(UNITS) for a in rows for b in columns}
    assert sum((cells[cell] - wanted) ** 2 / wanted for cell, wanted in expected.items()) < QUANTILE[81]


def test_the_holdback_stays_through_all_experiments_of_a_route() -> None:
    held = {unit for unit in UNITS if assign(unit, "one", stage_shares(0.25, champion=True, last=False, route="desk")) is Arm.TEACHER}
    assert len(held) == pytest.approx(400, abs=80)
    for salt, shares in (("two", ramp(True)[1]), ("three", ramp(True)[-1]), ("", idle_shares(champion=True, route="desk"))):
        assert all(assign(unit, salt, shares) is Arm.TEACHER for unit in held)
    elsewhere = stage_shares(0.25, champion=True, last=False, route="other")
    assert len(held & {unit for unit in UNITS if assign(unit, "one", elsewhere) is Arm.TEACHER}) < 40


def test_the_last_stage_splits_the_control() -> None:
    last = stage_shares(0.5, champion=True, last=True)
    assert [last.of(arm) for arm in (Arm.CANARY, Arm.CHAMPION, Arm.TEACHER)] == [0.5, 0.25, 0.25]
    alone = stage_shares(0.5, champion=False, last=True)
    assert [alone.of(arm) for arm in (Arm.CANARY, Arm.CHAMPION, Arm.TEACHER)] == [0.5, 0.0, 0.5]


def test_an_assignment_is_the_same_everywhere() -> None:
    """Stored with units in the field: another hash would move them."""
    assert position("unit-1", "salt") == 0.8697050827195337


@pytest.mark.parametrize("shares", [{"canary": 0.99}, {"canary": -0.1}, {"canary": 0.5, "champion": 0.5}, {"holdback": 1.1}])
def test_no_allocation(shares: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="no allocation"):
        Shares(**shares)  # type: ignore[arg-type]
