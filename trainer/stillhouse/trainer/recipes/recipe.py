"""What every recipe is."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from stillhouse.schemas.render import Renderer
from stillhouse.trainer.collate import Row
from stillhouse.trainer.examples import Example


class Recipe(NamedTuple):
    """A name, and the rows that examples become. Every row has at least one supervised token, or the job fails."""

    name: str
    rows: Callable[[Sequence[Example], Renderer], list[Row]]
