"""What each recipe makes of a trajectory."""

import pytest

from stillhouse.schemas.errors import UsageError
from stillhouse.schemas.render import Renderer, RenderSpec
from stillhouse.trainer.collate import IGNORED, Row
from stillhouse.trainer.examples import Example, TrainMessage
from stillhouse.trainer.models_tokenizer import save_tokenizer, tiny_tokenizer
from stillhouse.trainer.recipes import RECIPES, recipe
from tests.trainer.training_factory import example, examples, talk

CALL, REPLY = '{"name": "cancel", "arguments": {"id": "1001"}}<|im_end|>', "Order 1001 is cancelled.<|im_end|>"


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tiny_tokenizer(), folder)
    return Renderer(RenderSpec(grammar="bare-json").for_model(folder), folder)


def learnt(row: Row, renderer: Renderer) -> str:
    return renderer.decode([label for label in row.labels if label != IGNORED])


def recovering() -> Example:
    """A failed call before the right one: in the context, not learnt."""
    messages = [talk(1)[1], talk(7)[2], talk(1)[3], *talk(1)[2:]]
    marks = [False, False, False, True, False, True]
    return example(1, messages=tuple(TrainMessage(m, s) for m, s in zip(messages, marks, strict=True)), recovery=True, weight=1.5)


@pytest.mark.parametrize("name", ["bc-trajectory", "weighted"])
def test_a_trajectory_is_one_row(name: str, renderer: Renderer) -> None:
    (row,) = recipe(name).rows([recovering()], renderer)
    assert learnt(row, renderer) == CALL + REPLY
    assert "1007" in renderer.decode(row.ids)
    assert row.weight == (1.5 if name == "weighted" else 1.0)
    assert renderer.decode(row.ids).endswith(REPLY)


def test_a_step_is_one_row_that_ends_with_its_action(renderer: Renderer) -> None:
    rows = recipe("bc-step").rows([recovering()], renderer)
    assert [learnt(r, renderer) for r in rows] == [CALL, REPLY]
    assert [renderer.decode(r.ids).endswith(learnt(r, renderer)) for r in rows] == [True, True]
    assert rows[1].ids[: len(rows[0].ids)] == rows[0].ids


def test_all_recipes_learn_the_same_tokens(renderer: Renderer) -> None:
    counts = {name: sum(r.supervised for r in made.rows(examples(5), renderer)) for name, made in RECIPES.items()}
    assert len(set(counts.values())) == 1


def test_an_unknown_recipe_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="bc-trajectory, bc-step, weighted"):
        recipe("magic")
