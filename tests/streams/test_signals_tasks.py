"""What is issued, whatever fails: never a task that is held out, never twice, never over budget, the weakest families first."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.schemas.ledger import LeaderLedger, Side, TaskText
from stillhouse.schemas.teacher_runs import Issue
from stillhouse.streams.signals.runs import Run, rates
from stillhouse.streams.signals.settings import SignalsSettings
from stillhouse.streams.signals.tasks import DAY, Budget, candidates, choose, day_of, within

NOW = 20_000 * DAY + 7
FAMILIES = ("refund", "cancel")


def run(number: int, family: str, task: int, failed: bool) -> Run:
    return Run(
        key=f"acme/{number}", tenant="acme", family=family, task_id=f"task-{task}", subject=None, content="c",
        outcome="failure" if failed else "success", route="desk", student=True, teachers=(), first_occurred_at=1,
        appended_at=NOW - number,
    )  # fmt: skip


drawn = st.lists(st.tuples(st.sampled_from(FAMILIES), st.integers(0, 20), st.booleans()), max_size=60)
TEXTS = [TaskText(tenant="acme", family=f, task_key=f"task-{n}", text=f"refund order {n}") for f in FAMILIES for n in range(21)]
LEDGER = LeaderLedger(test_share=0.2, validation_share=0.2).assign(TEXTS)


def issue(runs: list[Run], budget: Budget, given: SignalsSettings, issued: set[str]) -> dict[str, Issue]:
    wanted = candidates(
        runs, rates(runs), NOW, given, runners=FAMILIES, teacher_of=lambda route: "big", can_relabel=lambda route: False,
        forgotten=lambda tenant, subject: False,
    )  # fmt: skip
    texts = {r.key: next(t for t in TEXTS if (t.family, t.task_key) == (r.family, r.task_id)) for r in runs}
    return choose(wanted, texts, LEDGER, issued, budget, NOW).issues


@settings(deadline=None)
@given(drawn, st.integers(0, 12), st.integers(0, 20))
def test_nothing_held_out_nothing_twice_nothing_over_budget(found: list[tuple[str, int, bool]], each: int, total: int) -> None:
    runs = [run(number, *one) for number, one in enumerate(found)]
    given = SignalsSettings(family_tasks_per_day=each, tasks_per_day=total)
    first = issue(runs, Budget(given), given, set())
    places = [LEDGER.place("acme", i.task.family or "", i.task_key) for i in first.values()]
    assert all(place is not None and place.side is Side.TRAIN for place in places)
    assert len(first) <= total and all(n <= each for n in Counter(i.task.family for i in first.values()).values())
    assert len({(i.task.family, i.task_key) for i in first.values()}) == len(first) == len({i.task.task_id for i in first.values()})
    again = issue(runs, Budget(given, first.values()), given, set(first))
    assert not set(first) & set(again) and len(first) + len(again) <= total
    good, over = within(given, first.values(), again)
    assert set(good) == set(again) and not over


def test_the_weakest_and_most_frequent_family_comes_first() -> None:
    runs = [run(n, "cancel", n % 20, n < 2) for n in range(20)] + [run(n, "refund", n % 20, True) for n in range(20, 40)]
    assert [f.family for f in rates(runs)] == ["refund", "cancel"]
    given = SignalsSettings(tasks_per_day=3)
    assert {i.task.family for i in issue(runs, Budget(given), given, set()).values()} == {"refund"}


def test_what_two_writers_added_beyond_the_budget_is_taken_back() -> None:
    runs = [run(n, "refund", n % 20, True) for n in range(20)]
    given = SignalsSettings(family_tasks_per_day=4)
    found = issue(runs, Budget(SignalsSettings()), given, set())
    good, over = within(given, [], found)
    assert len(good) == 4 and len(good) + len(over) == len(found)
    assert {i.day for i in found.values()} == {day_of(NOW)}
