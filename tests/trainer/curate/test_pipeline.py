"""Curation as a whole: accounts that add up, one hash in any order, only the teacher is learned from."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import Outcome, Policy, PolicyRole
from stillhouse.schemas.ledger import LeaderLedger
from stillhouse.schemas.trajectory import Status, Trajectory
from stillhouse.trainer.curate.draft import Draft
from stillhouse.trainer.curate.draw import Quota
from stillhouse.trainer.curate.pipeline import Curated, Tools, curate
from stillhouse.trainer.examples import Side, read_examples, write_examples
from stillhouse.trainer.settings import CurationSettings, WindowSettings
from stillhouse.trainer.waterfall import StageYield, Waterfall
from tests.trainer.curation_factory import STUDENT, WordCounter, call, reply, run

STAGES = ["side", "source", "success", "standardise", "prune", "efficiency", "compress", "dedupe", "weight", "fit"]
S = CurationSettings()


def trajectory(i: int, steps: int = 3, outcome: Outcome = Outcome.SUCCESS, role: str = "teacher", **more: Any) -> Trajectory:
    policy = Policy(role=PolicyRole(role), model="m")
    body = [call("look", {"x": f"k{i}"}, id=str(i), policy=policy)] * (steps - 2)
    end = (call("cancel", {"ok": True}, id=f"k{i}", policy=policy), reply(f"Order k{i} is gone.", policy=policy))
    fields = {"name": f"r{i}", "task": f"t{i % 17}", "ask": f"Cancel order {i % 17}", "family": "abc"[i % 3], "at": i, **more}
    return run(*body, *end, outcome=outcome, **fields)


MANY = [trajectory(i, 3 + i % 5) for i in range(60)]


def curated(trajectories: list[Trajectory], settings: CurationSettings = S, **more: Any) -> Curated:
    return curate(trajectories, LeaderLedger(), settings, WordCounter(), **more)


def test_the_stages_stand_in_their_order_and_say_why() -> None:
    got = curated(MANY).waterfall
    assert [s.name for s in got.stages] == STAGES
    assert got.trajectories == 60 and got.events == sum(t.revision for t in MANY)
    assert set(got.stages[0].dropped) <= {"test", "validation"} and got.stages[7].dropped["same_task_and_plan"] > 0
    assert got.supervised_tokens == sum(e.tokens for e in curated(MANY).train)
    shown = got.to_json()
    assert shown["stages"][0]["in"] == 60 and shown["manifest_hash"] == got.manifest_hash
    assert len(got.lines()) == 12 + len(got.notes)


def test_every_dropped_trajectory_has_one_stage_and_reason() -> None:
    got = curated(MANY)
    assert len(got.reasons) + got.waterfall.kept == 60
    assert {e.key for e in got.train}.isdisjoint(got.reasons)


KINDS = st.tuples(
    st.integers(0, 40),
    st.integers(2, 9),
    st.sampled_from(list(Outcome)),
    st.sampled_from(["teacher", "human", "student", "script", "unknown"]),
    st.sampled_from(list(Status)),
    st.booleans(),
)


def kind(i: int, drawn: tuple[int, int, Outcome, str, Status, bool]) -> Trajectory:
    task, steps, outcome, role, status, headless = drawn
    return trajectory(task, steps, outcome, role, name=f"n{i}", status=status, headless=headless)


@settings(max_examples=60, deadline=None)
@given(st.lists(KINDS, max_size=25), st.booleans(), st.integers(10, 200))
def test_the_waterfall_adds_up_whatever_comes(drawn: list[Any], selves: bool, limit: int) -> None:
    trajectories = [kind(i, d) for i, d in enumerate(drawn)]
    rules = CurationSettings(self_training=selves, unlabelled="keep" if selves else "drop")
    got = curate(trajectories, LeaderLedger(), rules, WordCounter(limit=limit), quota=Quota(size=5) if selves else None)
    entering = len(trajectories)
    for stage in got.waterfall.stages:
        assert stage.entered == entering == stage.kept + sum(stage.dropped.values())
        entering = stage.kept
    assert entering == got.waterfall.kept == len({e.key for e in got.train})
    assert all(any(e.mask) for e in got.train) and all(e.side is Side.TRAIN for e in got.train)
    total = sum(e.tokens for e in got.train)
    assert math.isclose(sum(e.weight * e.tokens for e in got.train), total, rel_tol=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(len(MANY))))
def test_no_order_of_arrival_changes_the_manifest(order: list[int]) -> None:
    assert curated([MANY[i] for i in order]).manifest_hash == curated(MANY).manifest_hash


@pytest.mark.parametrize(
    "other",
    [
        lambda: curated(MANY, CurationSettings(recovery_share=0.5)),
        lambda: curated(MANY[1:]),
        lambda: curated([msgspec.structs.replace(MANY[0], content="other"), *MANY[1:]]),
        lambda: curate(MANY, LeaderLedger(), S, WordCounter(limit=9999)),
        lambda: curated(MANY, again=[MANY[0].key]),
    ],
)
def test_any_other_input_or_setting_does(other: Any) -> None:
    assert other().manifest_hash != curated(MANY).manifest_hash


def test_the_settings_of_the_section_are_those_of_curation() -> None:
    assert curated(MANY, WindowSettings(size=9)).manifest_hash == curated(MANY).manifest_hash


@pytest.mark.parametrize(
    ("change", "stage", "reason"),
    [
        ({"role": "student"}, "source", "no_teacher"),
        ({"role": "script"}, "source", "no_teacher"),
        ({"status": Status.INCOMPLETE}, "source", "incomplete"),
        ({"status": Status.FAILED}, "source", "failed_record"),
        ({"headless": True}, "source", "headless"),
        ({"outcome": Outcome.UNKNOWN}, "success", "no_outcome"),
        ({"outcome": Outcome.FAILURE}, "success", "failure"),
        ({"outcome": Outcome.ABORTED}, "success", "aborted"),
    ],
)
def test_why_a_trajectory_is_not_learned_from(change: dict[str, Any], stage: str, reason: str) -> None:
    train = next(t for t in MANY if curated([t]).train)
    i = int(train.trajectory_id[1:])
    assert curated([trajectory(i, **change)]).reasons == {train.key: (stage, reason)}


def test_a_students_steps_are_context_even_in_a_success() -> None:
    train = next(t for t in MANY if curated([t]).train)
    mixed = msgspec.structs.replace(train, steps=(msgspec.structs.replace(train.steps[0], policy=STUDENT), *train.steps[1:]))
    (example,) = curated([mixed]).train
    assert [s for m, s in zip(example.bare, example.mask, strict=True) if m.role == "assistant"] == [False, True, True]


def test_self_training_wants_a_verifier() -> None:
    train = next(t for t in MANY if curated([t]).train)
    i, selves = int(train.trajectory_id[1:]), CurationSettings(self_training=True)
    assert not curated([trajectory(i, role="student", outcome_source="user")], selves).train
    assert curated([trajectory(i, role="student", outcome_source="verifier")], selves).train


def test_the_teachers_failures_are_held_out_too() -> None:
    failures = [trajectory(i, outcome=Outcome.FAILURE, task=f"f{i}", ask=f"Order {i}") for i in range(100)]
    got = curated(failures)
    assert got.waterfall.stages[0].dropped.keys() == {"test", "validation"}


def test_held_out_tasks_stay_out_for_ever() -> None:
    first = curated(MANY)
    held = {(t.task.family, t.task.id) for t in MANY} - {(e.family, e.task_key) for e in first.train}
    later = curate([trajectory(i, name=f"late{i}") for i in range(60)], first.ledger, S, WordCounter())
    assert held and not held & {(e.family, e.task_key) for e in later.train}
    assert {e.task_key for e in later.validation} == {e.task_key for e in first.validation}


def test_what_was_not_drawn_returns_to_the_pool() -> None:
    got = curated(MANY, quota=Quota(size=4))
    assert [s.name for s in got.waterfall.stages] == [*STAGES[:8], "draw", *STAGES[8:]]
    assert len(got.train) == 4 and len(got.returned) == got.waterfall.stages[8].dropped["over_quota"]


def test_examples_survive_the_disk(tmp_path: Any) -> None:
    got = curated(MANY)
    write_examples(tmp_path / "train.jsonl", got.train)
    assert tuple(read_examples(tmp_path / "train.jsonl")) == got.train
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(PermanentError, match="not a training example"):
        list(read_examples(tmp_path / "bad.jsonl"))


def test_accounts_that_do_not_add_up_are_refused() -> None:
    lost = StageYield(name="side", entered=3, kept=1, dropped={"test": 1})
    with pytest.raises(PermanentError, match="does not add up"):
        Waterfall(events=3, trajectories=3, stages=(lost,), kept=1, examples=1, supervised_tokens=1).check()


def test_progress_names_each_stage() -> None:
    seen: list[tuple[str, int]] = []
    got = curated(MANY, tools=Tools(report=lambda name, kept: seen.append((name, kept))))
    assert seen == [(s.name, s.kept) for s in got.waterfall.stages]


def test_a_family_whose_reasoning_is_left_whole_is_left_whole_in_validation_too() -> None:
    long = " ".join(f"Sentence number {i} says little." for i in range(30))
    rows = []
    for i in range(60):
        steps = (call("cancel", {"ok": True}, id=f"k{i}", reasoning=long), reply("Done."))
        rows.append(run(*steps, name=f"r{i}", task=f"t{i}", ask=f"Cancel order {i}", family="ab"[i % 2], at=i))

    def loss(drafts: Sequence[Draft]) -> float:
        words = sum(len((d.steps[0].action.reasoning or "").split()) for d in drafts) / len(drafts)
        return 2.0 - words / 100 if drafts[0].family == "a" else 1.0

    got = curate(rows, LeaderLedger(), S, WordCounter(shows_reasoning=True), tools=Tools(action_loss=loss))
    for examples in (got.train, got.validation):
        kept = {(e.family, m.message.reasoning == long) for e in examples for m in e.messages if m.supervised and m.message.tool_calls}
        assert kept == {("a", True), ("b", False)}
