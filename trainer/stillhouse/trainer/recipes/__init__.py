"""Recipes: what of a curated window becomes a row, and with which weight. One file each, over one loss."""

from stillhouse.schemas.errors import UsageError
from stillhouse.trainer.recipes import bc_step, bc_trajectory, weighted
from stillhouse.trainer.recipes.recipe import Recipe

RECIPES: dict[str, Recipe] = {r.name: r for r in (bc_trajectory.RECIPE, bc_step.RECIPE, weighted.RECIPE)}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in RECIPES:
        raise UsageError(f"no recipe {name!r}", fix=f"Use one of: {', '.join(RECIPES)}.")
    return RECIPES[name]
