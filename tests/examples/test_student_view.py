"""What reaches a student: pruning brings the teacher's detours back to the shortest way, and that fits into 255 tokens."""

import json
from pathlib import Path

import pytest

from stillhouse.examples.order_desk.gold import clean_trajectory, gold_calls
from stillhouse.examples.order_desk.replay import DeskReplay
from stillhouse.examples.order_desk.tasks import PARTS, Part, make_tasks
from stillhouse.examples.order_desk.tools import SYSTEM_PROMPT, TOOLS
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.schemas.render import Renderer, RenderSpec
from stillhouse.schemas.trajectory import Trajectory
from stillhouse.trainer.curate.draft import draft_of
from stillhouse.trainer.curate.prune import prune_draft
from stillhouse.trainer.examples import Side
from stillhouse.trainer.models import cache_folder
from stillhouse.trainer.settings import CurationSettings
from tests.examples.playing import Played, play
from tests.examples.recorded import recorded

CONTEXT = 255
# Where the tokenizer is not at hand: the longest clean run measured with it has 255 tokens in 850 characters.
CHARACTERS = 870
VIEW = RenderSpec(system="replace", system_prompt="Order desk agent.", tools="drop", grammar="bare-json", context_limit=CONTEXT)
TASKS = make_tasks("train", 240, seed=1)
WON = [played for played in map(play, TASKS) if played.verdict.success]


def pruned(played: Played, recovery_share: float) -> tuple[Trajectory, list[Message]]:
    run = recorded(played)
    draft = draft_of(run, task_key=played.task.id, leader=played.task.id, side=Side.TRAIN)
    return run, [step.action for step in prune_draft(draft, CurationSettings(recovery_share=recovery_share)).draft.steps]


def test_pruning_leaves_the_shortest_way_of_nearly_every_success() -> None:
    clean = 0
    for played in WON:
        _, actions = pruned(played, recovery_share=0.0)
        calls = [(call.name, call.arguments) for action in actions for call in action.tool_calls]
        clean += calls == gold_calls(played.task)
    assert clean / len(WON) >= 0.96
    assert sum(len(played.calls) == len(gold_calls(played.task)) for played in WON) / len(WON) < 0.7  # there was something to prune


def test_what_is_pruned_still_succeeds_on_a_fresh_desk() -> None:
    replay = DeskReplay(TASKS)
    for played in WON:
        run, actions = pruned(played, recovery_share=0.25)
        assert replay(run, actions) is True
        assert replay(run, actions[:-1]) is False  # nobody told the customer
    stranger = recorded(play(make_tasks("seen", 1, seed=1)[0]))
    assert replay(stranger, [step.action for step in stranger.steps]) is None


def test_a_replay_of_a_failure_fails() -> None:
    lost = [played for played in map(play, TASKS) if not played.verdict.success]
    replay = DeskReplay(TASKS)
    assert lost and not any(replay(recorded(p), [s.action for s in recorded(p).steps]) for p in lost)
    raw = Message(role="assistant", tool_calls=(ToolCall(id="a", name="cancel", raw_arguments="{id"),))
    assert replay(recorded(WON[0]), [raw]) is False


@pytest.mark.parametrize("part", PARTS)
def test_a_clean_run_is_short(part: Part) -> None:
    for task in make_tasks(part, 400, seed=3):
        assert len(as_text(clean_trajectory(task))) <= CHARACTERS


@pytest.mark.model
@pytest.mark.parametrize("part", PARTS)
def test_a_clean_run_fits_into_the_context(part: Part, renderer: Renderer) -> None:
    for task in make_tasks(part, 400, seed=3):
        messages = [Message(role="system", content=SYSTEM_PROMPT), *clean_trajectory(task)]
        assert len(renderer.encode(messages, TOOLS).ids) <= CONTEXT


@pytest.mark.model
def test_the_students_prompt_has_four_tokens(renderer: Renderer) -> None:
    with_prompt, without = (
        Renderer(RenderSpec(system="replace", system_prompt=text, tools="drop", grammar="bare-json"), tokenizer_folder())
        for text in (VIEW.system_prompt, "")
    )
    turn = [Message(role="user", content="x")]
    assert len(with_prompt.encode(turn).ids) - len(without.encode(turn).ids) == 4


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(VIEW, tokenizer_folder())


def tokenizer_folder() -> Path:
    folders = sorted(cache_folder().glob("smollm2-135m-*/tokenizer.json"))
    if not folders:
        pytest.skip(f"the base model is not in {cache_folder()} (stillhouse models fetch)")
    return folders[0].parent


def as_text(messages: tuple[Message, ...]) -> str:
    """The run as the student's template writes it, without a tokenizer."""
    texts = [("system", VIEW.system_prompt)]
    for m in messages:
        texts.append((m.role, m.text or json.dumps({"name": m.tool_calls[0].name, "arguments": m.tool_calls[0].arguments})))
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in texts)
