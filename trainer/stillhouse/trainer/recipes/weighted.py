"""Filtered behavioural cloning with a weight a trajectory.

As `bc-trajectory`, but short successful trajectories count for more: curation's weights, one on average over a window's
supervised tokens, so that they do not move the learning rate.

Loss: Σᵢ wᵢ Σₜ ℓᵢₜ / N, N = the supervised tokens of the whole optimizer step, over accumulation and ranks.
"""

from collections.abc import Sequence

from stillhouse.schemas.render import Renderer
from stillhouse.trainer.collate import Row, row_of
from stillhouse.trainer.examples import Example
from stillhouse.trainer.recipes.recipe import Recipe


def rows(examples: Sequence[Example], renderer: Renderer) -> list[Row]:
    """One row an example, with the example's weight."""
    return [row_of(renderer.encode(e.bare, e.tools, supervised=e.mask), e.weight) for e in examples]


RECIPE = Recipe("weighted", rows)
