"""Labels in curation: the teacher's action at a student's state is taught, nothing before it, and no run loses its place to it."""

from typing import Any

from stillhouse.schemas.events import Outcome, PolicyRole
from stillhouse.schemas.labels import RELABELLER
from stillhouse.schemas.ledger import LeaderLedger
from stillhouse.schemas.trajectory import Step, Trajectory
from stillhouse.trainer.curate.draw import Quota
from stillhouse.trainer.curate.pipeline import Curated, curate
from stillhouse.trainer.settings import CurationSettings
from tests.trainer.curation_factory import STUDENT, WordCounter, call, reply, run

SETTINGS = CurationSettings(test_share=0, validation_share=0, leader_limit=1)
WENT = (
    call("find", {"error": "no such mail"}, policy=STUDENT, email="bob@web.io"),
    call("find", {"id": "41"}, email="ann@web.io"),  # the teacher, who stood in for the student once
    call("look", {"state": "open"}, policy=STUDENT, id="41"),
)


def label(*steps: Step, name: str = "label", parent: str = "failed", task: str = "t") -> Trajectory:
    more: dict[str, Any] = {"agent": RELABELLER, "parent_trajectory": parent, "resume_step": len(steps) - 1}
    return run(*steps, name=name, task=task, outcome=Outcome.UNKNOWN, **more)


def curated(*trajectories: Trajectory, quota: Quota | None = None) -> Curated:
    return curate(trajectories, LeaderLedger(test_share=0, validation_share=0), SETTINGS, WordCounter(), quota=quota)


def test_only_the_last_action_is_taught_and_the_state_is_as_it_was() -> None:
    made = curated(label(*WENT, call("cancel", id="41")))
    (example,) = made.train
    taught = [one.message.tool_calls[0].name for one in example.messages if one.supervised]
    assert taught == ["cancel"]
    assert [one.message.tool_calls[0].name for one in example.messages if one.message.tool_calls] == ["find", "find", "look", "cancel"]
    (stage,) = [one for one in made.waterfall.stages if one.name == "success"]
    assert stage.notes == {"labels": 1} and example.source == "teacher:big"


def test_what_only_looks_like_a_label_needs_an_outcome() -> None:
    same = (*WENT, call("cancel", id="41"))
    alike = [
        run(*same, name="agent", outcome=Outcome.UNKNOWN),
        run(*same, name="whole", outcome=Outcome.UNKNOWN, agent=RELABELLER),
        label(*WENT, name="student's"),
    ]
    made = curated(*alike)
    assert not made.train and {why for _, why in made.reasons.values()} == {"no_outcome"}


def test_no_run_loses_its_place_to_a_label_and_few_runs_are_labelled_of_one_task() -> None:
    whole = run(call("find", {"id": "41"}, email="ann@web.io"), call("cancel", {"ok": True}, id="41"), reply("Done."), name="whole")
    labels = [label(call("find", email="ann@web.io"), name="first"), label(*WENT, call("cancel", id="41"), name="third")]
    same = label(*WENT, call("cancel", id="41"), name="twice")
    others = [label(*WENT, call("cancel", id="41"), name="again", parent="other"), label(*WENT, reply("No."), name="other", parent="other")]
    made = curated(whole, *labels, same, *others)
    reasons = {key: why for key, (_, why) in made.reasons.items()}
    assert reasons == {same.key: "same_task_and_plan"} | {one.key: "leader_full" for one in others}
    assert whole.key in {example.key for example in made.train}


def test_of_a_window_with_a_size_at_most_half_are_labels() -> None:
    asks = [f"Cancel order {n}, mail a{n}@web.io" for n in range(8)]
    runs = [run(call("cancel", id=str(n)), name=f"r{n}", task=f"t{n}", ask=asks[n], at=n) for n in range(4)]
    labels = [
        run(call("refund", id=str(n)), name=f"l{n}", task=f"t{n}", ask=asks[n], outcome=Outcome.UNKNOWN, agent=RELABELLER,
            parent_trajectory=f"failed{n}", resume_step=0)
        for n in range(8)
    ]  # fmt: skip
    made = curated(*runs, *labels, quota=Quota(size=2))
    kept = sorted(example.key for example in made.train)
    assert [key for key in kept if key in {one.key for one in runs}] == sorted(one.key for one in runs[:2])
    assert len(kept) == 4 and len(made.returned) == 8
    assert all(example.source.startswith(PolicyRole.TEACHER.value) for example in made.train)
