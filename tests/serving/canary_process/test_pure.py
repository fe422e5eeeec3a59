"""What a controller computes, without a log: who is next, what traffic says, which wire trips, what is shown."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.schemas.assign import Arm
from stillhouse.schemas.events import Assignment, Outcome, Policy, PolicyRole
from stillhouse.schemas.facts import Scores, StudentStage, StudentState, TrajectoryFacts, Watermark
from stillhouse.schemas.metrics import METRICS
from stillhouse.schemas.route_state import RouteState
from stillhouse.serving.canary import controller, gauges
from stillhouse.serving.canary.candidates import next_student
from stillhouse.serving.canary.decide import Verdict
from stillhouse.serving.canary.follow import Students
from stillhouse.serving.canary.instruments import Instruments
from stillhouse.serving.canary.settings import SECOND
from stillhouse.serving.canary.traffic import History, Traffic, Watermarks
from stillhouse.serving.canary.trips import trip_of
from stillhouse.serving.canary.tripwires import Trip
from tests.serving.canary_process.world import HOLDBACK, NOON, ROUTE, SETTINGS, TERMS, facts_of

REGISTERED, SHADOW, CANARY = StudentStage.REGISTERED, StudentStage.SHADOW, StudentStage.CANARY


def state(**fields: Any) -> RouteState:
    return RouteState(route=ROUTE, **fields)


def assigned(unit: str, arm: Arm, experiment: str = ROUTE, epoch: int = 0) -> Assignment:
    return Assignment(route=ROUTE, unit=unit, experiment=experiment, arm=arm.value, epoch=epoch)


def history(units: int = 60, per_day: float = 1000.0) -> History:
    traffic = Traffic(TERMS)
    for n in range(units):
        traffic.observe(facts_of(f"u{n}", assigned(f"u{n}", Arm.TEACHER), NOON + n * SECOND, good=n % 20 != 0))
    found = traffic.history(NOON + 1000 * SECOND, 10**15, SETTINGS.step_cap, None)
    return msgspec.structs.replace(found, units_per_day=per_day)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ({}, None),
        ({"a": REGISTERED}, "a"),
        ({"a": REGISTERED, "b": REGISTERED}, "b"),
        ({"a": REGISTERED, "b": StudentStage.ROLLED_BACK}, None),  # older than what was tried
        ({"a": StudentStage.CHAMPION, "b": REGISTERED}, "b"),
        ({"a": StudentStage.RETIRED, "b": StudentStage.CHAMPION}, None),
        ({"a": SHADOW, "b": StudentStage.ROLLED_BACK}, "a"),  # released by a person
        ({"a": SHADOW, "b": REGISTERED}, "a"),
    ],
)
def test_who_is_next(stages: dict[str, StudentStage], expected: str | None) -> None:
    assert next_student(state(stages=stages), state(stages=stages), auto=True) == expected
    by_hand = expected if expected is not None and stages[expected] is SHADOW else None
    assert next_student(state(stages=stages), state(stages=stages), auto=False) == by_hand
    assert next_student(state(stages=stages, canary="c", share=0.1), state(stages=stages), auto=True) is None


def test_a_route_takes_the_students_of_its_lineage() -> None:
    lineage = RouteState(route="orders", stages={"a": REGISTERED, "b": REGISTERED})
    assert next_student(state(), lineage, auto=True) == "b"
    assert next_student(state(stages={"b": StudentStage.ROLLED_BACK}), lineage, auto=True) is None


def test_the_watermark_is_the_least_of_all_partitions_and_never_goes_back() -> None:
    marks = Watermarks(2)
    for partition, at, least in ((0, 50, 0), (1, 30, 30), (1, 20, 30), (1, 70, 50)):
        marks.observe(Watermark(partition=partition, watermark=at, position=0, committed=0, worker="w"))
        assert marks.least == least


def test_history_is_what_the_references_did() -> None:
    traffic = Traffic(TERMS)
    for n in range(40):
        arm, good = (Arm.TEACHER, n % 4 != 0) if n < 20 else (Arm.CHAMPION, True)
        traffic.observe(facts_of(f"u{n}", assigned(f"u{n}", arm), NOON + n * SECOND, good=good))
    traffic.observe(facts_of("late", assigned("late", Arm.TEACHER), NOON + 100 * SECOND, good=True))
    found = traffic.history(NOON + 100 * SECOND, 10**15, 30, NOON + 30 * SECOND)
    assert (found.of(Arm.TEACHER).judged, found.of(Arm.CHAMPION).judged) == (20, 10)
    assert found.price_usd == pytest.approx(20 * 0.1 / 15)
    assert found.units_per_day == pytest.approx(41 / (100 / 86_400))
    assert traffic.history(NOON + 100 * SECOND, 10**15, 30, None).of(Arm.CHAMPION).judged == 0


def test_history_counts_a_unit_from_its_beginning_not_from_its_outcome() -> None:
    traffic = Traffic(TERMS)
    began = {"first_occurred_at": NOON, "revision": 3}
    traffic.observe(facts_of("u", assigned("u", Arm.TEACHER), NOON + 9 * SECOND, good=True, **began))
    found = traffic.history(NOON + 9 * SECOND, 10**15, 30, None)
    assert found.of(Arm.TEACHER).judged == 1
    assert found.units_per_day == pytest.approx(86_400 / 9)
    assert traffic.history(NOON + 9 * SECOND, 5 * SECOND, 30, None).units_per_day == 0


@given(st.permutations(range(8)), st.integers(0, 8))
def test_traffic_does_not_depend_on_the_order_or_on_when_the_canary_was_heard_of(order: list[int], heard: int) -> None:
    """Facts may be read before the record of their own epoch, again, and out of order."""
    students = Students()
    canary = StudentState(student="s", stage=CANARY, route=ROUTE, share=0.25, decided_at=NOON)
    students.take(0, canary)
    students.take(1, msgspec.structs.replace(canary, prev=0, share=0.5, final=True, stage_index=1))
    running, epochs = students.states.of(ROUTE), students.epochs(ROUTE)
    facts = [
        facts_of(f"u{n % 4}", assigned(f"u{n % 4}", Arm.CANARY if n % 2 else Arm.TEACHER, running.experiment, epoch=n // 2 % 2), NOON + n,
                 good=n > 3, revision=1 + n // 4)
        for n in range(8)
    ]  # fmt: skip
    frozen = controller.experiment_of(
        msgspec.structs.replace(running, plan=controller.start("s", state(), history(), SETTINGS, TERMS, by="", reason="", at=0).plan)
    )

    def read(order: list[int], heard: int) -> object:
        traffic = Traffic(TERMS)
        for place, n in enumerate(order):
            if place == heard:
                traffic.follow(running, frozen.scales, HOLDBACK, epochs)
            traffic.observe(facts[n])
        traffic.follow(running, frozen.scales, HOLDBACK, epochs)
        return traffic.look(NOON + 10 * SECOND), traffic.excluded

    assert read(list(order), heard) == read(list(range(8)), 0)


def test_history_forgets_the_oldest_and_never_the_running_experiment() -> None:
    traffic = Traffic(TERMS, kept=10)
    for n in range(25):
        traffic.observe(facts_of(f"u{n}", assigned(f"u{n}", Arm.TEACHER), NOON + n * SECOND, good=True))
    found = traffic.history(NOON + 1000 * SECOND, 10**15, 30, None)
    assert 10 <= found.of(Arm.TEACHER).judged <= 20


def tried(n: int, *, failures: int = 0, fallbacks: int = 0, malformed: int = 0, role: PolicyRole = PolicyRole.STUDENT) -> TrajectoryFacts:
    made = facts_of(f"u{n}", assigned(f"u{n}", Arm.CANARY), NOON + n, good=False, fallbacks=fallbacks, policies=(Policy(role=role),))
    return msgspec.structs.replace(made, scores=Scores(steps=4, format_errors=malformed), student_failures=failures)


def test_wires() -> None:
    assert trip_of(tried(n) for n in range(50)) is None
    assert trip_of([tried(0, malformed=4), tried(1, malformed=1)]) is Trip.MALFORMED
    assert trip_of(tried(n, malformed=3) for n in range(9)) is None
    assert trip_of(tried(n, failures=2, fallbacks=2) for n in range(5)) is Trip.ERRORS
    assert trip_of(tried(n, failures=2, fallbacks=2) for n in range(4)) is None  # too few requests
    assert trip_of(tried(n, fallbacks=3) for n in range(50)) is None  # the gateway restarted, and it was not ready yet
    assert trip_of(tried(n, fallbacks=4, role=PolicyRole.TEACHER) for n in range(50)) is None  # it was never asked


def weighed(**fields: Any) -> tuple[RouteState, Any]:
    record = controller.start("s", state(), history(), SETTINGS, TERMS, by="c", reason="", at=NOON)
    students = Students()
    students.take(3, msgspec.structs.replace(record, **fields))
    running = students.states.of(ROUTE)
    frozen, traffic = controller.experiment_of(running), Traffic(TERMS)
    for n in range(60):
        arm = Arm.CANARY if n % 3 == 0 else Arm.TEACHER
        traffic.observe(facts_of(f"v{n}", assigned(f"v{n}", arm, running.experiment), NOON + n * SECOND, good=n % 10 != 1))
    traffic.follow(running, frozen.scales, HOLDBACK, students.epochs(ROUTE))
    epochs = traffic.look(NOON + 100 * SECOND)
    return running, (controller.look(running, epochs, NOON + 100 * SECOND, None), epochs)


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def test_every_number_of_a_verdict_is_a_metric() -> None:
    running, (decision, epochs) = weighed()
    samples = [
        *gauges.of_state(running),
        *gauges.of_units(ROUTE, epochs, {"unknown_arm": 2}),
        *gauges.of_decision(ROUTE, decision),
    ]
    shown = {sample.value for sample in samples}
    assert not [n for n in numbers(decision.numbers) if n not in shown]
    labels = {metric.name: set(metric.labels) for metric in METRICS}
    assert all(set(sample.labels) == labels[sample.name] for sample in samples)
    assert len({(s.name, *sorted(s.labels.items())) for s in samples}) == len(samples)
    instruments = Instruments()
    instruments.show(ROUTE, samples)
    assert instruments.registry.get_sample_value("stillhouse_canary_share", {"route": ROUTE}) == 0.25
    instruments.show(ROUTE, gauges.of_state(state()))
    assert instruments.registry.get_sample_value("stillhouse_canary_age_seconds", {"route": ROUTE}) is None


def test_a_step_up_waits_for_a_resume_and_a_rollback_does_not() -> None:
    running, (decision, _) = weighed()
    assert decision.verdict is Verdict.ADVANCE
    step = controller.move(running, decision, by="c", at=NOON, excluded={})
    assert step.record is not None and (step.record.share, step.record.stage_index, step.record.final) == (0.5, 1, True)
    paused = msgspec.structs.replace(running, paused=True)
    held = controller.move(paused, decision, by="c", at=NOON, excluded={"unknown_arm": 1})
    assert (held.record, held.verdict.verdict, held.reason) == (None, "hold", "paused")
    assert json.loads(held.verdict.numbers)["reason"] == "paused"
    back = controller.move(paused, msgspec.structs.replace(decision, verdict=Verdict.ROLLBACK), by="c", at=NOON, excluded={})
    assert back.record is not None and back.record.stage is StudentStage.ROLLED_BACK


def test_what_a_canary_waits_for() -> None:
    assert controller.waits_for(history(), SETTINGS, TERMS) is None
    assert controller.waits_for(History(), SETTINGS, TERMS) == "no_history"
    assert controller.waits_for(history(), SETTINGS, msgspec.structs.replace(TERMS, sources=())) == "capture_only"
    traffic = Traffic(TERMS)
    for n in range(30):
        traffic.observe(facts_of(f"u{n}", assigned(f"u{n}", Arm.TEACHER), NOON, good=False, outcome=Outcome.FAILURE))
    failed = traffic.history(NOON + 100 * SECOND, 10**15, 30, None)
    assert controller.waits_for(failed, SETTINGS, TERMS) == "no_teacher_success"
