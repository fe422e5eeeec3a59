"""Importers on recorded runs: the numbers that their sources state."""

from collections import Counter
from pathlib import Path

import pytest

from stillhouse.schemas.events import AgentEvent, Outcome, StepTaken, TrajectoryEnded, TrajectoryStarted
from stillhouse.schemas.fold import fold
from stillhouse.sdk.importers import IMPORTERS, detect

pytestmark = pytest.mark.data

# folder or file, importer, runs, steps, successes: as each SOURCE.md counts them.
STATED = [
    ("tau2_claude_sonnet45_airline", "tau2", 50, 467, 36),
    ("tau2_gpt_oss_120b_airline", "tau2", 50, 887, 19),
    ("tau2_qwen25_7b_airline", "tau2", 50, 732, 9),
    ("mini_swe_deepseek_dev", "mini-swe", 46, 3810, 16),
    ("intercode_bash", "intercode", 1402, 8522, 423),
    ("fireact_finetune/raw/data/finetune/gpt_format/hotpotqa_multimethod.jsonl", "fireact", 733, 1949, 693),
    ("fireact_finetune/raw/data/finetune/alpaca_format/hotpotqa.json", "fireact", 500, 1385, 500),
]


def counted(events: list[AgentEvent]) -> tuple[int, int, int]:
    """Runs, steps and successes."""
    kinds = Counter(type(event.body) for event in events)
    won = sum(isinstance(event.body, TrajectoryEnded) and event.body.outcome is Outcome.SUCCESS for event in events)
    assert kinds[TrajectoryStarted] == kinds[TrajectoryEnded]
    assert len({event.event_id for event in events}) == len(events)
    return kinds[TrajectoryStarted], kinds[StepTaken], won


@pytest.mark.parametrize(("place", "name", "runs", "steps", "won"), STATED, ids=lambda v: str(v).rpartition("/")[2])
def test_what_the_source_counts_arrives(data_folder: Path, place: str, name: str, runs: int, steps: int, won: int) -> None:
    assert counted(list(IMPORTERS[name].read(data_folder / place))) == (runs, steps, won)


def test_tau_bench_loses_no_message(data_folder: Path) -> None:
    """200 runs of 50 tasks, 84 successes, 2,454 + 1,490 + 1,164 messages and the system prompts."""
    path = data_folder / "tau_bench_airline_gpt4o/raw/historical_trajectories/gpt-4o-airline.json"
    assert detect(path) == "tau-bench"
    events = list(IMPORTERS["tau-bench"].read(path))
    assert counted(events) == (200, 2454, 84)
    runs: dict[str, list[AgentEvent]] = {}
    for event in events:
        runs.setdefault(event.key, []).append(event)
    trajectories = [fold(run) for run in runs.values()]
    roles = Counter(message.role for trajectory in trajectories for message in trajectory.messages())
    assert roles == {"system": 200, "assistant": 2454, "user": 1490, "tool": 1164}
    assert Counter(t.task.id for t in trajectories).keys() == {f"airline/{number}" for number in range(50)}
    assert {t.task.family for t in trajectories} == {"airline"}
    assert sum(step.error is not None for t in trajectories for step in t.steps) == 73
    assert IMPORTERS["tau-bench"].report["reward_info is null: a run cut at its step limit, failed by its reward"] == 5


def test_toolbench_gives_every_branch_and_answer(data_folder: Path) -> None:
    path = data_folder / "toolbench_gpt35/raw/toolbench/tooleval/results/default_evalset/gpt-3.5-turbo_CoT/G1_category.json"
    events = list(IMPORTERS["toolbench"].read(path))
    assert counted(events)[0] == 100
    trees = list(IMPORTERS["toolbench"].read(data_folder / "toolbench_gpt35/raw/data_example/answer"))
    assert counted(trees)[0] > len(list((data_folder / "toolbench_gpt35/raw/data_example/answer").rglob("*.json")))


def test_every_langfuse_trace_gives_a_step_with_an_action(data_folder: Path) -> None:
    files = sorted((data_folder / "langfuse_framework_traces/raw/framework-traces").glob("*.trace.json"))
    assert files
    for file in files:
        actions = [event.body.action for event in IMPORTERS["langfuse"].read(file) if isinstance(event.body, StepTaken)]
        assert actions, file.name
        assert all(action.content or action.tool_calls for action in actions), file.name
        assert not any("answer of a known shape" in reason and count > 2 for reason, count in IMPORTERS["langfuse"].report.items())
