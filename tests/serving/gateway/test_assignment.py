"""Gateway and controller agree on the allocation of a running canary, whatever the settings say since."""

import pytest

from stillhouse.schemas.facts import StudentState
from stillhouse.schemas.route_state import RouteState, fold
from stillhouse.serving.canary import controller
from stillhouse.serving.canary.traffic import History, allocation
from stillhouse.serving.gateway.assignment import place, shares_of
from tests.serving.canary_process.world import HOLDBACK, NOON, ROUTE, SETTINGS, TERMS
from tests.serving.gateway.world import canary, champion


def started() -> StudentState:
    empty = RouteState(route=ROUTE)
    return controller.start("s-1", empty, History(), SETTINGS, TERMS, by="c", reason="", at=NOON)


def test_a_running_canary_keeps_the_holdback_of_its_plan() -> None:
    state = fold([(0, started())]).of(ROUTE)
    frozen = controller.experiment_of(state).settings.holdback
    assert frozen == HOLDBACK != 0.3
    assert shares_of(state, 0.3) == allocation(state, frozen)
    units = [f"u{n}" for n in range(300)]
    assert [place(state, unit, 0.3) for unit in units] == [place(state, unit, frozen) for unit in units]


@pytest.mark.parametrize("plan", ["", "{}", "no plan", '{"settings": {}}'])
def test_without_a_plan_the_settings_stand(plan: str) -> None:
    assert shares_of(fold([(0, canary("s-1", 0.5, plan=plan))]).of("desk"), 0.3).holdback == 0.3


def test_the_next_allocation_is_the_settings_again() -> None:
    assert shares_of(fold(enumerate(champion())).of("desk"), 0.3).holdback == 0.3
