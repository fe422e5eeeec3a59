"""Behavioural cloning, a whole trajectory in one pass.

Every supervised action of a conversation is learnt from one forward pass over it: the cheapest way, and exact as long as
the context of each action is rendered as it will be when the student is asked (nothing hidden is in it).

Loss: the mean over the supervised tokens of the optimizer step; a trajectory's weight is not used.
"""

from collections.abc import Sequence

from stillhouse.schemas.render import Renderer
from stillhouse.trainer.collate import Row, row_of
from stillhouse.trainer.examples import Example
from stillhouse.trainer.recipes.recipe import Recipe


def rows(examples: Sequence[Example], renderer: Renderer) -> list[Row]:
    """One row an example."""
    return [row_of(renderer.encode(e.bare, e.tools, supervised=e.mask)) for e in examples]


RECIPE = Recipe("bc-trajectory", rows)
