"""Verdicts of SERVING section 3, one rule a test, and the properties that hold for any sums."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.schemas.assign import Arm
from stillhouse.schemas.errors import UsageError
from stillhouse.serving.canary.decide import Decision, Look, Verdict, decide
from stillhouse.serving.canary.experiment import CanarySettings, Experiment, lifetime_alpha, plan, planned_stages, spent_alpha
from stillhouse.serving.canary.sequence import MICRO, Moments
from stillhouse.serving.canary.tally import ArmTally, EpochTally
from stillhouse.serving.canary.tripwires import Trip
from stillhouse.serving.canary.units import GUARDRAILS, Metric, Scales

LAST = 4


def of(good: int, units: int) -> Moments:
    return Moments(units, good * MICRO, good * MICRO * MICRO)


def arm(units: int, successes: int, *, cost: float = 0.5, judged: int | None = None, **worse: int) -> ArmTally:
    """Matured units; `worse` are those that fail a guardrail, `cost` the mean score of cost."""
    known = units if judged is None else judged
    moments = {metric: of(units - worse.get(metric.name.lower(), 0), units) for metric in GUARDRAILS}
    total = round(cost * MICRO)
    moments[Metric.COST] = Moments(known, known * total, known * total * total)
    return ArmTally(assigned=units, matured=units, judged=known, moments=moments | {Metric.SUCCESS: of(successes, known)})


def experiment(*, champion: bool = True, version: int = 1, units_per_day: float = 5000, **changes: Any) -> Experiment:
    past = {Metric.SUCCESS: of(450, 500), **{metric: of(490, 500) for metric in GUARDRAILS}}
    return plan(
        name="e1", route="desk", student="student-2", champion=champion, settings=CanarySettings(**changes), scales=Scales(),
        version=version, units_per_day=units_per_day, history={Arm.CHAMPION: past, Arm.TEACHER: past},
    )  # fmt: skip


def look(planned: Experiment, stage: int, arms: Mapping[Arm, ArmTally], *, age: float = 7200, trip: Trip | None = None) -> Look:
    drawn = msgspec.structs.replace(planned.shares(stage), holdback=0.0)
    epoch = EpochTally(epoch=stage, stage=stage, shares=drawn, arms=dict(arms))
    return Look(stage=stage, epochs=(epoch,), now=1000 + age, started=1000, stage_started=1000, trip=trip)


def last(canary: ArmTally, champion: ArmTally, teacher: ArmTally, **more: Any) -> Decision:
    planned = experiment(**more)
    return decide(planned, look(planned, LAST, {Arm.CANARY: canary, Arm.CHAMPION: champion, Arm.TEACHER: teacher}))


def said(decision: Decision) -> tuple[str, str]:
    return decision.verdict.value, decision.reason


GOOD = {"canary": arm(4000, 3600, cost=0.6), "champion": arm(2000, 1800), "teacher": arm(2000, 1800)}


def test_an_equal_and_cheaper_student_is_crowned_in_the_last_stage() -> None:
    assert said(last(**GOOD)) == ("promote", "non_inferior")


def test_the_same_evidence_only_advances_before_the_last_stage() -> None:
    planned = experiment()
    arms = {Arm.CANARY: arm(1000, 900, cost=0.6), Arm.CHAMPION: arm(2920, 2628), Arm.TEACHER: arm(80, 72)}
    assert said(decide(planned, look(planned, 3, arms))) == ("advance", "safe")


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ("canary", arm(4000, 3600, cost=0.5)),  # no cheaper
        ("canary", arm(4000, 3600, cost=0.6, format=60)),
        ("canary", arm(4000, 3600, cost=0.6, fallbacks=60)),
        ("canary", arm(4000, 3600, cost=0.6, latency=60)),
        ("canary", arm(4000, 3600, cost=0.6, steps=60)),
        ("teacher", arm(2000, 1900)),  # as good as the champion, five points worse than the teacher
        ("champion", arm(2000, 1850)),
    ],
)
def test_a_crown_needs_every_comparison(changed: str, part: ArmTally) -> None:
    assert said(last(**(GOOD | {changed: part}))) == ("hold", "evidence_open")


@pytest.mark.parametrize(
    ("changed", "part", "reason"),
    [
        ("canary", arm(4000, 3200, cost=0.6), "success_worse_than_champion"),
        ("canary", arm(4000, 3600, cost=0.6, format=300), "format_errors_worse_than_champion"),
        ("canary", arm(4000, 3600, cost=0.6, steps=300), "steps_worse_than_champion"),
        ("canary", arm(4000, 3600, cost=0.6, latency=300), "latency_worse_than_champion"),
        ("canary", arm(4000, 3600, cost=0.6, fallbacks=300), "fallbacks_worse_than_champion"),
        ("teacher", arm(2000, 1990), "success_worse_than_teacher"),
    ],
)
def test_a_proven_loss_rolls_back(changed: str, part: ArmTally, reason: str) -> None:
    assert said(last(**(GOOD | {changed: part}))) == ("rollback", reason)


def test_cost_never_rolls_back() -> None:
    assert said(last(**(GOOD | {"canary": arm(4000, 3600, cost=0.1)}))) == ("hold", "evidence_open")


def test_promotion_wins_over_a_rollback_inside_the_margin() -> None:
    """Surely a little worse than the champion, surely less than five points: not worse than what a crown accepts."""
    many = {"canary": arm(40_000, 35_400, cost=0.6), "champion": arm(20_000, 18_000), "teacher": arm(20_000, 18_000)}
    decision = last(**many)
    assert decision.evidence.tests[0].rolls_back and said(decision) == ("promote", "non_inferior")
    dearer = last(**(many | {"canary": arm(40_000, 35_400, cost=0.5)}))
    assert said(dearer) == ("rollback", "success_worse_than_champion")


def test_inside_the_margin_the_teacher_alone_rolls_nothing_back() -> None:
    planned = experiment(champion=False)
    arms = {Arm.CANARY: arm(40_000, 35_000, cost=0.5), Arm.TEACHER: arm(40_000, 36_000)}
    assert said(decide(planned, look(planned, LAST, arms))) == ("hold", "evidence_open")


def test_no_rollback_before_5_canary_and_20_control_units() -> None:
    planned = experiment(champion=False)
    for canary, teacher, expected in ((4, 200, "hold"), (5, 200, "rollback"), (40, 19, "hold"), (40, 20, "rollback")):
        arms = {Arm.CANARY: arm(canary, 0), Arm.TEACHER: arm(teacher, teacher)}
        epoch = EpochTally(epoch=0, stage=0, shares=planned.shares(0), arms=arms)
        found = decide(planned, Look(stage=0, epochs=(epoch,), now=100, started=0, stage_started=0))
        assert (canary, teacher, found.verdict.value) == (canary, teacher, expected)


def test_no_crown_before_20_units_in_each_arm() -> None:
    wide: dict[str, Any] = {
        "margin": 0.999,
        "format_margin": 0.999,
        "steps_margin": 0.999,
        "latency_margin": 0.999,
        "fallback_margin": 0.999,
    }
    for teacher, expected in ((19, "hold"), (20, "promote")):
        planned = experiment(champion=False, alpha=0.4, units_per_day=1, **wide)
        arms = {Arm.CANARY: arm(20, 20, cost=1.0), Arm.TEACHER: arm(teacher, teacher, cost=0.0)}
        assert decide(planned, look(planned, 0, arms)).verdict.value == expected  # so small a route has only the last stage


def test_steps_wait_for_units_age_and_outcomes() -> None:
    planned = experiment()
    champion, teacher = arm(1860, 1674), arm(40, 36)

    def ask(canary: ArmTally, **more: Any) -> tuple[str, str]:
        return said(decide(planned, look(planned, 1, {Arm.CANARY: canary, Arm.CHAMPION: champion, Arm.TEACHER: teacher}, **more)))

    assert ask(arm(100, 90)) == ("advance", "safe")
    assert ask(arm(100, 90), age=3599) == ("hold", "young")
    assert ask(arm(19, 17))[0] == "hold"
    assert said(decide(planned, look(planned, 0, {}))) == ("hold", "no_data")


def test_units_of_an_earlier_stage_do_not_advance_this_one() -> None:
    planned = experiment()
    before = look(planned, 0, {Arm.CANARY: arm(100, 90), Arm.CHAMPION: arm(9700, 8730), Arm.TEACHER: arm(200, 180)})
    assert said(decide(planned, before)) == ("advance", "safe")
    assert said(decide(planned, msgspec.structs.replace(before, stage=1))) == ("hold", "no_data")


def test_units_held_back_for_ever_are_no_part_of_the_sample_ratio_but_of_the_reference() -> None:
    """Of a route's few users far more than their share may happen to be held back, through all its experiments."""
    planned = experiment(champion=False)
    held, drawn = arm(900, 810), arm(2000, 1800)
    epoch = EpochTally(
        epoch=LAST,
        stage=LAST,
        shares=planned.shares(LAST),
        arms={Arm.CANARY: arm(2083, 1875, cost=0.6), Arm.TEACHER: drawn + held},
        held=held,
    )
    decision = decide(planned, Look(stage=LAST, epochs=(epoch,), now=8200, started=1000, stage_started=1000))
    assert decision.evidence.ratio_assigned.units == decision.evidence.ratio_judged.units == 4083
    assert abs(decision.evidence.ratio_assigned.excess) < 1
    assert decision.evidence.tests[0].control == 2900
    unseen = msgspec.structs.replace(epoch, held=ArmTally())
    blind = decide(planned, Look(stage=LAST, epochs=(unseen,), now=8200, started=1000, stage_started=1000))
    assert said(blind) == ("hold", "sample_ratio")


def test_a_broken_sample_ratio_holds_and_still_rolls_back() -> None:
    broken = GOOD | {"canary": arm(5000, 4500, cost=0.6)}
    assert said(last(**broken)) == ("hold", "sample_ratio")
    assert last(**(broken | {"canary": arm(5000, 2500, cost=0.6)})).verdict is Verdict.ROLLBACK


def test_missing_outcomes_hold() -> None:
    few = arm(4000, 3300, cost=0.6, judged=3650)
    decision = last(**(GOOD | {"canary": few}))
    assert decision.verdict is Verdict.HOLD and decision.reason in ("outcomes_missing", "sample_ratio_of_outcomes")
    coverage = decision.evidence.coverage[0]
    assert coverage.bounds is not None and coverage.bounds.upper < -0.02 and not coverage.sound
    inside = last(**(GOOD | {"canary": arm(4000, 3570, cost=0.6, judged=3970)}))
    assert said(inside) == ("promote", "non_inferior")


def test_without_any_outcome_nothing_moves_but_age() -> None:
    blind = {name: arm(tally.matured, 0, judged=0) for name, tally in GOOD.items()}
    assert said(last(**blind)) == ("hold", "no_data")
    planned = experiment()
    old = look(planned, LAST, {Arm(name): tally for name, tally in blind.items()}, age=14 * 86_400)
    assert said(decide(planned, old)) == ("expire", "max_age")


def test_a_crown_at_the_last_moment_is_a_crown() -> None:
    planned = experiment()
    arms = {Arm(name): tally for name, tally in GOOD.items()}
    assert said(decide(planned, look(planned, LAST, arms, age=15 * 86_400))) == ("promote", "non_inferior")


def test_a_canary_of_limited_units_expires() -> None:
    planned = experiment(champion=False, max_canary_units=150)
    enough = {Arm.CANARY: arm(150, 140), Arm.TEACHER: arm(150, 140)}
    assert said(decide(planned, look(planned, len(planned.stages) - 1, enough))) == ("expire", "max_units")


@pytest.mark.parametrize("trip", list(Trip))
def test_a_trip_wire_rolls_back_whatever_the_evidence(trip: Trip) -> None:
    planned = experiment()
    arms = {Arm(name): tally for name, tally in GOOD.items()}
    assert said(decide(planned, look(planned, LAST, arms, trip=trip))) == ("rollback", trip.value)
    assert said(decide(planned, look(planned, 0, {}, trip=trip))) == ("rollback", trip.value)


def test_the_lifetime_budget_adds_up() -> None:
    assert spent_alpha(0.05, 1) == 0
    assert spent_alpha(0.05, 2000) == pytest.approx(0.05, rel=1e-3) and spent_alpha(0.05, 2000) < 0.05
    with pytest.raises(UsageError):
        lifetime_alpha(0.05, 0)
    second = experiment(version=2)
    before = decide(second, look(second, 3, {}))
    assert before.alpha_before == before.alpha_after == pytest.approx(0.05 * 6 / 9.8696, rel=1e-4)
    opened = last(**GOOD, version=2)
    assert opened.alpha_after - opened.alpha_before == pytest.approx(second.crown_alpha)


def test_a_rollback_test_has_its_part_of_alpha() -> None:
    assert experiment().rollback_alpha == pytest.approx(0.05 / 6)
    assert experiment(champion=False).rollback_alpha == pytest.approx(0.05 / 5)


def test_small_routes_start_higher() -> None:
    known = CanarySettings()
    assert planned_stages(known, 1_000_000) == known.stages
    assert planned_stages(known, 400) == (0.05, 0.10, 0.25, 0.50)
    assert planned_stages(known, 100) == (0.2, 0.25, 0.50)
    assert planned_stages(known, 30) == planned_stages(known, 0) == (0.50,)


@pytest.mark.parametrize("bad", [{"stages": (0.5, 0.25)}, {"stages": ()}, {"stages": (0.99,)}, {"alpha": 0.5}, {"margin": 0.0}])
def test_settings_that_no_test_can_be_made_of(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        CanarySettings(**bad)


def test_an_experiment_survives_its_record() -> None:
    planned = experiment()
    assert msgspec.json.decode(msgspec.json.encode(planned), type=Experiment) == planned


counts = st.integers(0, 60)


@st.composite
def tallies(draw: st.DrawFn) -> ArmTally:
    matured = draw(counts)
    judged = draw(st.integers(0, matured))
    moments = {metric: of(draw(st.integers(0, matured)), matured) for metric in GUARDRAILS}
    moments |= {metric: of(draw(st.integers(0, judged)), judged) for metric in (Metric.SUCCESS, Metric.COST)}
    return ArmTally(assigned=matured + draw(counts), matured=matured, judged=judged, moments=moments)


@st.composite
def looks(draw: st.DrawFn) -> tuple[Experiment, Look]:
    planned = experiment(champion=draw(st.booleans()), version=draw(st.integers(1, 4)))
    stage = draw(st.integers(0, LAST))
    epochs = tuple(
        EpochTally(epoch=number, stage=number, shares=planned.shares(number), arms={arm: draw(tallies()) for arm in Arm})
        for number in range(stage + 1)
    )
    age = draw(st.floats(0, 20 * 86_400))
    return planned, Look(stage=stage, epochs=epochs, now=age, started=0, stage_started=draw(st.floats(0, age)))


@settings(max_examples=60, deadline=None)
@given(looks(), st.randoms(use_true_random=False))
def test_a_decision_is_pure_and_all_its_numbers_can_be_published(case: tuple[Experiment, Look], random: Any) -> None:
    planned, seen = case
    decision, shuffled = decide(planned, seen), list(seen.epochs)
    random.shuffle(shuffled)
    assert decide(planned, msgspec.structs.replace(seen, epochs=tuple(shuffled))) == decision
    assert json.loads(json.dumps(decision.numbers, allow_nan=False)) == decision.numbers
    assert msgspec.json.decode(msgspec.json.encode(decision), type=Decision) == decision


@settings(max_examples=60, deadline=None)
@given(looks())
def test_what_moves_up_has_passed_everything(case: tuple[Experiment, Look]) -> None:
    planned, seen = case
    decision = decide(planned, seen)
    evidence = decision.evidence
    if decision.verdict in (Verdict.ADVANCE, Verdict.PROMOTE):
        assert evidence.ratio_assigned.sound and evidence.ratio_judged.sound and all(part.sound for part in evidence.coverage)
        assert evidence.stage_units >= 20 and evidence.stage_age_s >= 3600
        assert (decision.verdict is Verdict.PROMOTE) == (seen.stage == LAST)
    if decision.verdict is Verdict.PROMOTE:
        assert all(result.lower is not None and result.lower > -result.margin for result in evidence.tests)
    if decision.verdict is not Verdict.ROLLBACK:
        assert decide(planned, msgspec.structs.replace(seen, trip=Trip.ERRORS)).verdict is Verdict.ROLLBACK
