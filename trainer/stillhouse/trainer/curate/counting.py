"""How long a conversation is, as the student will see it."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from stillhouse.schemas.actions import unwritable
from stillhouse.schemas.messages import Message
from stillhouse.schemas.render import Renderer


class Counted(NamedTuple):
    """Tokens of a conversation, and those of them that carry loss."""

    total: int
    supervised: int


class Counter(Protocol):
    """What curation asks of the student's view: the context limit, whether reasoning is shown, and lengths."""

    @property
    def limit(self) -> int:
        """Tokens that a conversation may have."""
        ...

    @property
    def shows_reasoning(self) -> bool:
        """Whether the student sees and writes reasoning."""
        ...

    @property
    def identity(self) -> str:
        """What this view is, for the manifest's hash."""
        ...

    def count(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], supervised: Sequence[bool]) -> Counted:
        """Tokens of a conversation."""
        ...

    def words(self, text: str) -> int:
        """Tokens of a text."""
        ...

    def unwritable(self, message: Message) -> str | None:
        """Why a message cannot be a training target in the student's grammar; None when it can."""
        ...


class RenderCounter:
    """Counts with the renderer that trains and serves the student.

    Args:
        renderer: the student's.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self.limit = renderer.spec.context_limit
        self.shows_reasoning = renderer.spec.reasoning == "content"
        # What it will be distilled on is a result of curation, not an input.
        self.identity = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(renderer.spec, distilled_on=()))).hexdigest()

    def count(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], supervised: Sequence[bool]) -> Counted:
        """Tokens of the rendered conversation."""
        ids, mask = self._renderer.encode(messages, tools, supervised=supervised)
        return Counted(len(ids), sum(mask))

    def words(self, text: str) -> int:
        """Tokens of the text as an assistant's turn, its frame included."""
        return len(self._renderer.encode([Message(role="assistant", content=text)]).ids)

    def unwritable(self, message: Message) -> str | None:
        """As the renderer will judge it."""
        return unwritable(message, self._renderer.spec.grammar, reasoning=self.shows_reasoning)
