"""What the gateway asks of an engine that serves students: one interface for `stillhouse-student`, vLLM and any other."""

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from stillhouse.schemas.errors import PermanentError, RetryableError
from stillhouse.schemas.messages import Message

OnText = Callable[[str], Awaitable[None]]
"""Takes the next piece of a text reply."""


class EngineError(RetryableError):
    """The engine is away, too slow, busy, or answered what it must not: the teacher answers instead.

    Args:
        reason: one word of low cardinality, for metrics: `away`, `timeout`, `busy`, `upstream`.
    """

    def __init__(self, what: str, *, reason: str, where: str = "", fix: str = "") -> None:
        self.reason = reason
        super().__init__(what, where=where, fix=fix)


class ContextFullError(PermanentError):
    """The conversation and the shortest reply do not fit into the student's context."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request of an agent, as the gateway understood it.

    Args:
        route: the model name that the caller used.
        tenant: whose request it is.
        trajectory: id of the run that it belongs to.
        step: the number of assistant messages already in it.
        body: the request as it was parsed; never changed.
        messages: its messages in the canonical form.
        tools: its OpenAI tool definitions.
        stream: whether the caller wants a stream.
        max_tokens: the caller's bound of the reply.
        temperature: the caller's.
    """

    route: str
    tenant: str
    trajectory: str
    step: int
    body: dict[str, Any]
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    stream: bool = False
    max_tokens: int | None = None
    temperature: float | None = None

    @property
    def system_prompt(self) -> str | None:
        """The text of the system messages that it begins with; None when there are none."""
        texts: list[str] = []
        for message in self.messages:
            if message.role != "system":
                break
            texts.append(message.text)
        return "\n".join(texts) if texts else None


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A student's whole reply.

    Args:
        message: the assistant's message in OpenAI's form (tool arguments as JSON text).
        finish_reason: OpenAI's.
        format_error: why it is no action of the student's grammar; then `message` holds the raw text as its content.
        latency_ms: from the call to the last token.
        model: the name that the engine serves the student by.
    """

    message: dict[str, Any]
    finish_reason: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    format_error: str | None = None
    latency_ms: float = 0.0
    model: str = ""


class Verdict(StrEnum):
    """What attestation found."""

    ACCEPTED = "accepted"
    INDISTINGUISHABLE = "indistinguishable"
    REFUSED = "refused"


class Attestation(msgspec.Struct, frozen=True, kw_only=True):
    """Whether what the engine serves under a student's name is that student, with the numbers it was decided by."""

    verdict: Verdict
    reason: str = ""
    numbers: dict[str, float] = {}


class StudentEngine(Protocol):
    """A server of students. No method blocks the event loop; `covers` and `ready` do no input or output."""

    def covers(self, student: str, call: Call) -> bool:
        """Whether the student was distilled on this system prompt with these tools."""
        ...

    async def reply(self, student: str, call: Call, on_text: OnText | None) -> Reply:
        """Let the student answer.

        Nothing is shown before it is known to be good: a reply with tool calls is held until they parse; a text reply goes to `on_text`
        in pieces once it has 32 tokens, its beginning included. A reply that never went to `on_text` is only returned.

        Raises:
            EngineError: away, too slow, busy or broken, also in the middle of a reply.
            ContextFullError: the conversation does not fit.
        """
        ...

    async def load(self, student: str) -> None:
        """Load, list and warm a student.

        Raises:
            EngineError: the engine is away or busy.
            PermanentError: the student's folder or the engine refuses it.
        """
        ...

    async def unload(self, student: str) -> None:
        """Unload it; one that is not loaded is no error.

        Raises:
            EngineError: the engine is away.
        """
        ...

    async def attest(self, student: str) -> Attestation:
        """Compare what is served with the student's own probes.

        Raises:
            EngineError: the engine is away.
        """
        ...

    def ready(self, student: str) -> bool:
        """Whether it is loaded, warmed and attested."""
        ...

    def refusal(self, student: str) -> Attestation | None:
        """The latest attestation when it refused the student, or found its files changed; None when there is no such."""
        ...

    async def close(self) -> None:
        """Close connections and background work."""
        ...
