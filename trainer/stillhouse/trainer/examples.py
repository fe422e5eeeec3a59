"""What a recipe trains on: a conversation with a loss mask, a weight and the way back to where it came from."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.ledger import Side as Side
from stillhouse.schemas.messages import Message


class TrainMessage(msgspec.Struct, frozen=True):
    """One message; `supervised` says whether its tokens carry loss. Only a teacher's or a person's actions ever do."""

    message: Message
    supervised: bool


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a training set.

    `key` is the trajectory's; `step` the index of the supervised action when `fit` cut the trajectory into steps, else None.
    `plan` is the sequence of tools used, `tokens` the number of supervised tokens as rendered, `weight` the weight of each of
    them (one on average over a window).
    `recovery` marks a trajectory that keeps a failed call as context; `source` names the policy that acted.
    """

    key: str
    task_key: str
    tenant: str
    family: str
    plan: tuple[str, ...]
    messages: tuple[TrainMessage, ...]
    tools: tuple[dict[str, Any], ...] = ()
    weight: float = 1.0
    side: Side = Side.TRAIN
    recovery: bool = False
    source: str = ""
    step: int | None = None
    tokens: int = 0

    @property
    def bare(self) -> tuple[Message, ...]:
        """The messages without their mask, as the renderer takes them."""
        return tuple(m.message for m in self.messages)

    @property
    def mask(self) -> tuple[bool, ...]:
        """`supervised` of each message, in the same order as `bare`."""
        return tuple(m.supervised for m in self.messages)


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as JSON lines; the file appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as f:
        for example in examples:
            f.write(msgspec.json.encode(example) + b"\n")
    part.replace(path)


def read_examples(path: Path) -> Iterator[Example]:
    """The inverse of `write_examples`.

    Raises:
        PermanentError: a line is not an example.
    """
    with path.open("rb") as f:
        for number, line in enumerate(f, 1):
            try:
                yield msgspec.json.decode(line, type=Example)
            except msgspec.DecodeError as e:
                raise PermanentError(
                    f"not a training example: {e}", where=f"{path}:{number}", fix="Curate the window again: `stillhouse windows run`."
                ) from e
