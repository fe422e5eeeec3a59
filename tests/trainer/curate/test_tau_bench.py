"""Curation meets the recorded tau-bench airline runs (200 runs of 50 tasks, 84 successes)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stillhouse.schemas.events import Outcome
from stillhouse.schemas.ledger import LeaderLedger
from stillhouse.schemas.messages import Message
from stillhouse.schemas.openai import message_from_openai
from stillhouse.schemas.trajectory import Step, Trajectory
from stillhouse.trainer.curate.pipeline import curate
from stillhouse.trainer.curate.prune import prune
from stillhouse.trainer.settings import CurationSettings
from tests.trainer.curation_factory import TEACHER, WordCounter, drafted, run

RUNS = "tau_bench_airline_gpt4o/raw/historical_trajectories/gpt-4o-airline.json"
READS = ("get_user_details", "get_reservation_details", "search_direct_flight", "search_onestop_flight", "list_all_airports", "calculate")

pytestmark = pytest.mark.data


def steps_of(messages: Sequence[Message]) -> list[Step]:
    steps: list[Step] = []
    state: list[Message] = []
    for message in messages:
        if message.role == "assistant":
            steps.append(Step(index=len(steps), action=message, policy=TEACHER, event_id="", occurred_at=0, state=tuple(state)))
            state = []
        elif message.role == "tool":
            steps[-1] = msgspec.structs.replace(steps[-1], observation=(*steps[-1].observation, message))
        else:
            state.append(message)
    return steps


def trajectory(record: dict[str, Any]) -> Trajectory:
    messages = [message_from_openai(m) for m in record["traj"]]
    made = run(
        *steps_of(messages[1:]),
        name=f"{record['task_id']}-{record['trial']}",
        task=str(record["task_id"]),
        family="airline",
        ask=record["info"]["task"]["instruction"],
        outcome=Outcome.SUCCESS if record["reward"] == 1 else Outcome.FAILURE,
        tools=(),
        system_prompt=messages[0].text,
    )
    first = msgspec.structs.replace(made.steps[0], state=made.steps[0].state[1:])  # the record has the user's own first words
    return msgspec.structs.replace(made, steps=(first, *made.steps[1:]))


@pytest.fixture(scope="module")
def runs(data_folder: Path) -> list[Trajectory]:
    if not (data_folder / RUNS).exists():
        pytest.skip(f"no {RUNS}")
    return [trajectory(r) for r in json.loads((data_folder / RUNS).read_bytes())]


@pytest.mark.parametrize("reads", [(), READS])
def test_every_error_of_a_success_is_evidence(runs: list[Trajectory], reads: tuple[str, ...]) -> None:
    successes = [drafted(t) for t in runs if t.outcome is Outcome.SUCCESS]
    notes = prune(successes, CurationSettings(read_only_tools=reads)).notes
    assert len(successes) == 84
    assert notes["evidence"] == 13 and notes["recoveries"] == 0 and "corrected_retry" not in notes["calls"]


def test_the_waterfall_of_the_whole_file(runs: list[Trajectory]) -> None:
    got = curate(runs, LeaderLedger(), CurationSettings(), WordCounter(limit=1500))
    got.waterfall.check()
    stages = {s.name: s for s in got.waterfall.stages}
    held = sum(stages["side"].dropped.values())
    assert got.waterfall.trajectories == 200 and held > 0 == held % 4  # a task's four attempts stand on one side
    assert stages["success"].kept <= 84 and stages["standardise"].dropped == {}
    assert stages["fit"].notes["cut"] > 0 and got.waterfall.examples > got.waterfall.kept
