"""The controller on a real log: release, canary, crown, rollback, and that only the log is its state."""

import asyncio
import json

import msgspec
import pytest

from stillhouse.schemas.assign import Arm
from stillhouse.schemas.codec import decode
from stillhouse.schemas.facts import CanaryVerdict, StudentStage, StudentState
from stillhouse.schemas.route_state import RouteState
from stillhouse.schemas.topics import VERDICTS
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.serving.canary.controller import experiment_of
from stillhouse.serving.canary.settings import SECOND
from stillhouse.serving.canary.shell import Controller
from tests.serving.canary_process.conftest import AsyncStart
from tests.serving.canary_process.world import HOLDBACK, ROUTE, SETTINGS, World, registered
from tests.support.agents import values


def state_of(controller: Controller) -> RouteState:
    return controller.log.students.states.of(ROUTE)


def verdicts(kafka: KafkaSettings) -> list[CanaryVerdict]:
    """Everything in `canary.verdicts`."""
    return [decode(value, CanaryVerdict) for value in values(kafka, VERDICTS)]


async def begin(controller: Controller, world: World, student: str = "student-1") -> RouteState:
    """History, a registration, and looks until the canary runs."""
    await controller.look()
    world.traffic(state_of(controller), 60)
    world.ripen()
    await controller.log.publish(registered(student, world.now))
    for _ in range(4):
        await controller.look()
        if state_of(controller).canary == student:
            return state_of(controller)
    raise AssertionError(f"no canary: {controller.waits}")


async def trial(controller: Controller, world: World, success: dict[Arm, float], most: int = 60, **fields: object) -> RouteState:
    """Traffic and looks until the canary is over."""
    for _ in range(most):
        state = state_of(controller)
        if state.canary is None:
            return state
        world.traffic(state, 20, success, **fields)
        world.ripen()
        await controller.look()
    raise AssertionError(f"still on trial: {controller.waits}")


def rates(canary: float, control: float = 0.95) -> dict[Arm, float]:
    return {Arm.TEACHER: control, Arm.CHAMPION: control, Arm.CANARY: canary}


async def test_a_registered_student_starts_by_itself_with_everything_frozen(start: AsyncStart, world: World) -> None:
    controller = await start()
    state = await begin(controller, world)
    stages = [(d.record.stage, d.accepted) for d in controller.log.students.history(ROUTE)]
    assert stages == [(StudentStage.REGISTERED, True), (StudentStage.SHADOW, True), (StudentStage.CANARY, True)]
    frozen = experiment_of(state)
    assert (state.share, state.stage_index, state.final, frozen.stages) == (0.25, 0, False, (0.25, 0.5))
    assert (frozen.name, frozen.version, frozen.settings.holdback) == (state.experiment, 1, HOLDBACK)
    assert frozen.scales.source == "verifier"
    assert frozen.scales.price_usd == pytest.approx(0.1 / 0.95, rel=0.2)


async def test_a_good_student_is_crowned_and_the_next_is_tried_against_it(start: AsyncStart, world: World, kafka: KafkaSettings) -> None:
    controller = await start()
    first = await begin(controller, world)
    assert (await trial(controller, world, rates(0.97))).champion == "student-1"
    told = verdicts(kafka)
    assert [v.verdict for v in told] == ["advance", "promote"]
    assert {json.loads(v.numbers)["experiment"] for v in told} == {first.experiment}
    assert 0 == told[0].alpha_before == told[0].alpha_after < told[1].alpha_after
    second = await begin(controller, world, "student-2")
    assert experiment_of(second).version == 2
    assert {test.against for test in experiment_of(second).tests} == {Arm.CHAMPION, Arm.TEACHER}


async def test_a_bad_student_is_rolled_back_with_its_numbers(start: AsyncStart, world: World, kafka: KafkaSettings) -> None:
    controller = await start()
    await begin(controller, world)
    state = await trial(controller, world, rates(0.4))
    assert (state.champion, state.share, state.stages["student-1"]) == (None, 0.0, StudentStage.ROLLED_BACK)
    last = verdicts(kafka)[-1]
    numbers = json.loads(last.numbers)
    assert (last.verdict, last.student) == ("rollback", "student-1")
    success = next(test for test in numbers["tests"] if test["metric"] == "success")
    assert success["rollback_upper"] < success["rollback_below"]
    assert numbers["reason"] == "success_worse_than_teacher"
    await controller.look()
    assert controller.waits[ROUTE] == "no_student"


async def test_a_broken_student_trips_a_wire_before_any_unit_matures(start: AsyncStart, world: World) -> None:
    controller = await start()
    state = await begin(controller, world)
    world.traffic(state, 40, rates(0.0), fallbacks=4, student_failures=4)
    await controller.look()
    assert state_of(controller).stages["student-1"] is StudentStage.ROLLED_BACK
    assert "error_rate" in controller.log.students.decisions[-1].record.reason


async def test_what_is_unjudged_holds(start: AsyncStart, world: World) -> None:
    controller = await start()
    await begin(controller, world)
    for _ in range(3):
        world.traffic(state_of(controller), 40, outcome_source="judge")
        world.ripen()
        await controller.look()
    assert state_of(controller).stage_index == 0


async def test_a_pause_stops_steps_and_a_resume_lets_them_go_on(start: AsyncStart, world: World) -> None:
    controller = await start()
    state = await begin(controller, world)
    stage = StudentState(student="student-1", stage=StudentStage.CANARY, route=ROUTE, share=state.share, decided_at=world.now)
    assert await controller.log.publish(msgspec.structs.replace(stage, paused=True, reason="lunch"))
    for _ in range(3):
        world.traffic(state_of(controller), 40)
        world.ripen()
        await controller.look()
    assert (state_of(controller).paused, state_of(controller).stage_index) == (True, 0)
    assert await controller.log.publish(stage)
    await controller.look()
    assert state_of(controller).stage_index == 1


async def test_nothing_matures_while_a_partition_is_not_read(start: AsyncStart, world: World) -> None:
    controller = await start()
    await begin(controller, world)
    read = world.now
    world.traffic(state_of(controller), 0)
    for _ in range(4):
        world.now += 10 * SECOND
        world.watermark(partitions=[0])
        await controller.look()
    assert controller.instruments.registry.get_sample_value("stillhouse_canary_watermark_seconds") == read / SECOND
    assert controller.instruments.registry.get_sample_value("stillhouse_canary_lag_seconds") == 40


async def test_without_history_or_without_an_outcome_source_no_canary_starts(start: AsyncStart, world: World) -> None:
    controller = await start()
    await controller.log.publish(registered("student-1"))
    world.watermark()
    for _ in range(3):
        await controller.look()
    assert state_of(controller).stages == {"student-1": StudentStage.SHADOW}
    assert controller.waits[ROUTE] == "no_history"


async def test_nothing_starts_by_itself_when_that_is_switched_off(start: AsyncStart, world: World) -> None:
    controller = await start(settings=msgspec.structs.replace(SETTINGS, auto=False))
    await controller.log.publish(registered("student-1"))
    await controller.look()
    assert (state_of(controller).stages, controller.waits[ROUTE]) == ({"student-1": StudentStage.REGISTERED}, "no_student")


async def test_two_controllers_make_one_decision(start: AsyncStart, world: World) -> None:
    one, two = await start("canary/a"), await start("canary/b")
    await begin(one, world)
    for _ in range(60):
        if state_of(one).canary is None and state_of(two).canary is None:
            break
        world.traffic(state_of(one), 20, rates(0.97))
        world.ripen()
        await asyncio.gather(one.look(), two.look())
    await asyncio.gather(one.look(), two.look())
    assert state_of(one) == state_of(two)
    assert state_of(one).champion == "student-1"
    followed = [d.record for d in one.log.students.decisions if d.accepted and d.record.stage is not StudentStage.REGISTERED]
    assert len({record.prev for record in followed}) == len(followed)


async def test_a_controller_that_was_lost_is_replaced_by_one_that_reads_the_log(start: AsyncStart, world: World) -> None:
    """A look of a fresh controller is the look of the one that has been there all along, at any time of a canary."""
    old = await start("canary/old")
    await begin(old, world)
    for _ in range(5):
        world.traffic(state_of(old), 20, rates(0.9))
        world.ripen()
        fresh = await start("canary/fresh", msgspec.structs.replace(SETTINGS, auto=False, record_s=1e-6))
        await old.look()
        await fresh.look()  # the first reads the watermark that it decides by on the second
        await old.look()
        await old.look()  # at the stage that the one before may have decided
        await fresh.look()
        assert state_of(fresh) == state_of(old)
        if state_of(old).canary is None:
            break
        assert gauges(fresh) == gauges(old)


def gauges(controller: Controller) -> list[str]:
    return sorted(line for line in controller.instruments.text().decode().splitlines() if "_total" not in line and "_created" not in line)
