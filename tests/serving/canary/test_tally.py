"""The book: a fold of facts in any order, as often as they come; a unit is its first assignment's."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.schemas.assign import Arm, held_back, stage_shares
from stillhouse.schemas.errors import UsageError
from stillhouse.schemas.events import Assignment, Outcome
from stillhouse.schemas.facts import Scores, TrajectoryFacts
from stillhouse.serving.canary.cost import cost_score
from stillhouse.serving.canary.sequence import Moments
from stillhouse.serving.canary.tally import ArmTally, Book, EpochTally
from stillhouse.serving.canary.units import Metric, Scales, Unit, scores, unit_of

HORIZON = 100
SCALES = Scales(step_cap=10, budget_usd=0.5, price_usd=0.2, source="verifier")


def facts(key: str = "t/1", unit: str = "u1", arm: str = "canary", **changes: Any) -> TrajectoryFacts:
    epoch = changes.pop("epoch", 0)
    experiment = changes.pop("experiment", "e1")
    known: dict[str, Any] = {
        "key": key, "tenant": "t", "trajectory_id": key, "revision": 1, "content": "c", "status": "ended", "outcome": Outcome.SUCCESS,
        "outcome_source": "verifier", "occurred_at": 1000, "scores": Scores(steps=4, format_errors=1), "cost_micro_usd": 100_000,
        "requests": 4, "slow_requests": 2, "fallbacks": 1,
        "assignment": Assignment(route="desk", unit=unit, experiment=experiment, arm=arm, epoch=epoch),
    }  # fmt: skip
    return TrajectoryFacts(**(known | changes))


def book() -> Book:
    made = Book("e1", SCALES, HORIZON)
    for epoch, share in enumerate((0.1, 0.5)):
        made.open_epoch(epoch, epoch, stage_shares(share, champion=True, last=epoch == 1))
    return made


def after(*observed: TrajectoryFacts, watermark: int = 10_000) -> tuple[EpochTally, ...]:
    made = book()
    for each in observed:
        made.observe(each)
    return made.look(watermark)


def test_scores_of_a_unit() -> None:
    found = scores(unit_of(facts(), SCALES), SCALES)
    assert found == {
        Metric.FORMAT: 0.75, Metric.STEPS: 0.6, Metric.LATENCY: 0.5, Metric.FALLBACKS: 0.75, Metric.SUCCESS: 1.0,
        Metric.COST: cost_score(0.1, 1.0, budget=0.5, price=0.2),
    }  # fmt: skip


def test_an_outcome_of_another_source_is_none() -> None:
    unit = unit_of(facts(outcome_source="judge"), SCALES)
    assert Metric.SUCCESS not in scores(unit, SCALES) and Metric.COST not in scores(unit, SCALES)
    assert unit_of(facts(outcome=Outcome.UNKNOWN), SCALES).judged == 0
    aborted = scores(unit_of(facts(outcome=Outcome.ABORTED), SCALES), SCALES)
    assert aborted[Metric.SUCCESS] == 0


def test_a_unit_without_requests_or_steps_has_nothing_to_complain_of() -> None:
    assert set(scores(Unit(trajectories=1), SCALES).values()) == {1.0}


def test_young_units_are_only_assigned() -> None:
    made = book()
    made.observe(facts())
    assert made.look(1099)[0].of(Arm.CANARY) == ArmTally(assigned=1)
    ripe = made.look(1100)[0].of(Arm.CANARY)
    assert (ripe.assigned, ripe.matured, ripe.judged, ripe.of(Metric.SUCCESS)) == (1, 1, 1, Moments.of(1.0))
    assert made.look(0)[0].of(Arm.CANARY) == ripe  # a watermark that goes back changes nothing


def test_a_matured_unit_without_an_outcome_is_missing() -> None:
    found = after(facts(outcome=Outcome.UNKNOWN))[0].of(Arm.CANARY)
    assert (found.matured, found.judged, found.of(Metric.SUCCESS), found.of(Metric.STEPS).n) == (1, 0, Moments(), 1)
    assert found.coverage == Moments.of(0.0)


def test_a_unit_stays_in_its_first_arm_whatever_comes_later() -> None:
    """Its later trajectory failed under another arm's name: the failure is the first arm's."""
    moved = facts("t/2", arm="champion", epoch=1, occurred_at=1050, outcome=Outcome.FAILURE)
    first, second = after(moved, facts())
    assert first.of(Arm.CANARY).of(Metric.SUCCESS) == Moments.of(0.5)
    assert first.of(Arm.CHAMPION).assigned == second.of(Arm.CHAMPION).assigned == 0


def test_what_begins_after_the_horizon_does_not_count() -> None:
    late = facts("t/2", occurred_at=1101, outcome=Outcome.FAILURE)
    assert after(facts(), late)[0].of(Arm.CANARY).of(Metric.SUCCESS) == Moments.of(1.0)


def test_a_late_outcome_makes_a_unit_no_younger() -> None:
    """The horizon is of its start: feedback that comes after it must not begin it anew."""
    made = book()
    made.observe(facts(first_occurred_at=1000, occurred_at=5000))
    assert made.look(1100)[0].of(Arm.CANARY).matured == 1


def test_the_trajectory_that_began_first_says_arm_and_epoch_though_it_ended_last() -> None:
    first = facts(first_occurred_at=1000, occurred_at=1090)
    later = facts("t/2", arm="champion", epoch=1, first_occurred_at=1010, occurred_at=1020)
    one, other = after(later, first)
    assert (one.of(Arm.CANARY).matured, other.of(Arm.CHAMPION).assigned) == (1, 0)


def test_a_later_revision_replaces_an_earlier_one() -> None:
    unknown, known = facts(outcome=Outcome.UNKNOWN), facts(revision=2)
    made = book()
    made.observe(unknown)
    assert made.look(2000)[0].of(Arm.CANARY).judged == 0
    made.observe(known)
    made.observe(unknown)  # an old record once more
    assert made.look(2000) == after(known)


def test_facts_of_others_are_ignored_and_broken_assignments_counted() -> None:
    made = book()
    made.observe(facts(experiment="e0"))
    made.observe(facts(assignment=None))
    made.observe(facts("t/3", unit="u3", arm="shadow"))
    made.observe(facts("t/4", unit="u4", epoch=7))
    assert all(not epoch.arms for epoch in made.look(10_000))
    assert made.excluded == {"unknown_arm": 1, "unknown_epoch": 1}


def test_the_permanent_holdback_is_the_teachers_and_told_apart() -> None:
    shares = stage_shares(0.1, champion=True, last=False)
    kept = next(f"u{n}" for n in range(1000) if held_back(f"u{n}", shares))
    drawn = next(f"u{n}" for n in range(1000) if not held_back(f"u{n}", shares))
    found = after(facts("t/1", kept, "teacher"), facts("t/2", drawn, "teacher"), facts("t/3", "v", "holdback"), facts("t/4", "w"))[0]
    assert (found.of(Arm.TEACHER).matured, found.held.matured, found.of(Arm.CANARY).matured) == (3, 2, 1)
    made = book()
    for revision in (1, 2):
        made.observe(facts("t/1", kept, "teacher", revision=revision))
    assert made.look(10_000)[0].held.assigned == 1 and made.excluded == {}


def test_an_epoch_has_one_allocation() -> None:
    made = book()
    made.open_epoch(0, 0, stage_shares(0.1, champion=True, last=False))
    with pytest.raises(UsageError, match="another allocation"):
        made.open_epoch(0, 0, stage_shares(0.2, champion=True, last=False))


@st.composite
def streams(draw: st.DrawFn) -> list[TrajectoryFacts]:
    count = draw(st.integers(0, 12))
    return [
        facts(
            f"t/{number % 6}",
            unit=f"u{number % 3}",
            arm=draw(st.sampled_from(["canary", "champion", "teacher", "shadow"])),
            epoch=draw(st.integers(0, 2)),
            occurred_at=1000 + draw(st.integers(0, 150)),
            revision=number + 1,
            outcome=draw(st.sampled_from([Outcome.SUCCESS, Outcome.FAILURE, Outcome.UNKNOWN])),
            cost_micro_usd=draw(st.integers(0, 900_000)),
        )
        for number in range(count)
    ]


@settings(max_examples=150, deadline=None)
@given(streams(), st.randoms(use_true_random=False), st.lists(st.integers(900, 1400), max_size=6))
def test_order_repetition_and_looks_between_change_nothing(stream: list[TrajectoryFacts], random: Any, watermarks: list[int]) -> None:
    shuffled = stream * 2
    random.shuffle(shuffled)
    made = book()
    for number, each in enumerate(shuffled):
        made.observe(each)
        if number < len(watermarks):
            made.look(watermarks[number])

    def values(epochs: tuple[EpochTally, ...]) -> list[Any]:
        """Without arms that have become empty again."""
        return [{arm: tally for arm, tally in epoch.arms.items() if tally.assigned} for epoch in epochs]

    final = max([1200, *watermarks])
    assert values(made.look(final)) == values(after(*stream, watermark=final))
    assert msgspec.json.decode(msgspec.json.encode(made.look(final)), type=tuple[EpochTally, ...]) == made.look(final)
