"""Compression is measured by the parent: how well it predicts the actions, with all, compressed and no reasoning."""

from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.schemas.render import Renderer
from stillhouse.trainer.action_loss import ParentLoss, action_rows
from stillhouse.trainer.collate import IGNORED
from stillhouse.trainer.curate.compress import compress
from stillhouse.trainer.curate.counting import RenderCounter
from stillhouse.trainer.curate.draft import Draft
from stillhouse.trainer.examples import TrainMessage
from stillhouse.trainer.planning import action_loss_of
from stillhouse.trainer.settings import TrainerSettings, WindowSettings
from tests.trainer.curation_factory import call, drafted, reply, run
from tests.trainer.training_factory import base_in, example

pytestmark = pytest.mark.model

THINKS = "Order 41 can be cancelled. Blue is a colour that many people like. So I cancel order 41."
TRAINER = TrainerSettings(reasoning="content", grammar="bare-json", threads=1)
WINDOW = WindowSettings(reasoning_tokens=60)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_in(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def parent(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent")
    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def renderer(base: Path) -> Renderer:
    return Renderer(TRAINER.render().for_model(base), base)


def thinking(name: str = "r", family: str = "cancel") -> Draft:
    return drafted(run(call("cancel", {"ok": True}, id="41", reasoning=THINKS), reply("Done."), name=name, family=family))


def test_only_what_an_action_does_is_scored_not_how_it_was_reasoned(renderer: Renderer) -> None:
    acts = Message(role="assistant", reasoning=THINKS, tool_calls=(ToolCall(id="c", name="cancel", arguments={"id": "41"}),))
    says = Message(role="assistant", reasoning="It worked.", content="Order 41 is cancelled.")
    result = Message(role="tool", content="{}", tool_call_id="c")
    messages = ((Message(role="user", content="Cancel 41"), False), (acts, True), (result, False), (says, True))
    (row,) = action_rows(example(1, messages=tuple(TrainMessage(m, s) for m, s in messages)), renderer)
    scored = renderer.decode([label for label in row.labels if label != IGNORED])
    assert '{"name": "cancel", "arguments": {"id": "41"}}' in scored and "Order 41 is cancelled." in scored
    assert "Blue" not in scored and "It worked" not in scored and "Blue" in renderer.decode(row.ids)


def test_the_parent_measures_full_compressed_and_no_reasoning(base: Path, parent: Path, renderer: Renderer) -> None:
    loss = ParentLoss(base, parent, renderer, WINDOW, threads=1)
    result = compress([thinking("a"), thinking("b")], WINDOW, RenderCounter(renderer), loss)
    measured = result.notes["measured"]["cancel"]
    assert set(measured) == {"full", "compressed", "none"} and all(0 < n < 20 for n in measured.values())
    assert len(set(measured.values())) == 3
    assert result.notes["off"] == (["cancel"] if measured["compressed"] - measured["full"] > WINDOW.reasoning_loss else [])


def test_what_fits_in_no_way_is_not_measured(base: Path, parent: Path) -> None:
    narrow = Renderer(TrainerSettings(reasoning="content", grammar="bare-json", context_limit=8).render().for_model(base), base)
    assert ParentLoss(base, parent, narrow, WINDOW)([thinking()]) is None


def test_settings_switch_it(base: Path, parent: Path) -> None:
    assert action_loss_of(WINDOW, TrainerSettings(), base) is None  # the student sees no reasoning
    assert action_loss_of(WindowSettings(reasoning_rows=0), TRAINER, base) is None
    make = action_loss_of(WINDOW, TRAINER, base)
    assert make is not None and make(parent)([thinking()]) is not None
