"""Behavioural cloning, one step a row.

Each supervised action is a row of its own: the conversation up to it is context, only the action carries loss. It reads a
conversation of n actions n times, and is what a view needs whose context at step k is not the beginning of the context at
step k + 1.

Loss: the mean over the supervised tokens of the optimizer step; a trajectory's weight is not used.
"""

from collections.abc import Sequence

from stillhouse.schemas.render import Renderer
from stillhouse.trainer.collate import Row, row_of
from stillhouse.trainer.examples import Example
from stillhouse.trainer.recipes.recipe import Recipe


def rows(examples: Sequence[Example], renderer: Renderer) -> list[Row]:
    """One row a supervised action."""
    made = []
    for example in examples:
        for step in (i for i, wanted in enumerate(example.mask) if wanted):
            only = [i == step for i in range(step + 1)]
            made.append(row_of(renderer.encode(example.bare[: step + 1], example.tools, supervised=only)))
    return made


RECIPE = Recipe("bc-step", rows)
