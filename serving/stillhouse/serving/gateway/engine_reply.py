"""One reply of an engine: what is asked, what of the stream may be shown, and what came in the end."""

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from stillhouse.schemas.actions import certain_text
from stillhouse.schemas.render import RenderSpec
from stillhouse.serving.gateway.backend import Call, OnText
from stillhouse.serving.gateway.engine_wire import Completion, EngineWire, Usage

HELD_TOKENS = 32
"""Tokens of a text that are waited for before any is shown: until then it may still turn out malformed and be the teacher's to answer."""
_PASSED_ON = ("top_p", "seed", "stop", "presence_penalty", "frequency_penalty")


def request_body(student: str, call: Call, spec: RenderSpec, ids: Sequence[int], limit: int) -> dict[str, Any]:
    """The completion request for a call.

    A caller that says no temperature gets the likeliest tokens: that is how a student is trained and measured.

    Args:
        student: its name at the engine.
        call: the request.
        spec: the student's view.
        ids: the rendered conversation.
        limit: tokens of the reply at most.
    """
    body = {
        "model": student,
        "prompt": list(ids),
        "max_tokens": limit,
        "temperature": call.temperature if call.temperature is not None else 0.0,
        "stop_token_ids": list(spec.stop_ids),
        "skip_special_tokens": False,  # vLLM's: a special token that was written is part of what was written
        "spaces_between_special_tokens": False,
        "return_token_ids": True,
    }
    return body | {name: call.body[name] for name in _PASSED_ON if call.body.get(name) is not None}


class Written:
    """What a student writes, as it comes.

    Args:
        grammar: its action grammar.

    Attributes:
        text: all of it.
        shown: how many characters of it were given out by `show`.
        tokens: how many tokens it has, as far as the engine says.
        finish: OpenAI's finish reason, when it came.
        usage: OpenAI's usage object, when it came.
    """

    def __init__(self, grammar: str) -> None:
        self._grammar = grammar
        self.text, self.shown, self.tokens = "", 0, 0
        self.finish: str | None = None
        self.usage: Usage | None = None

    def take(self, chunk: Completion) -> None:
        """Take a chunk of a stream, or a whole completion."""
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices[:1]:
            piece = choice.text or ""
            # An engine that does not name the tokens of a chunk sends one at a time.
            self.tokens += len(choice.token_ids) if choice.token_ids is not None else bool(piece)
            self.text += piece
            self.finish = choice.finish_reason or self.finish

    def show(self) -> str:
        """The text that may be shown now and was not shown before."""
        if self.tokens < HELD_TOKENS:
            return ""
        before, self.shown = self.shown, certain_text(self.text, self._grammar, after=self.shown)
        return self.text[before : self.shown]

    def rest(self, content: str) -> str:
        """At the end, when text was shown: what is left of the message's content."""
        left = content[self.shown :]
        self.shown = len(content)
        return left

    @property
    def output_tokens(self) -> int:
        """As the engine counts them; from one that does not, as they came, with the token that ended the turn."""
        said = self.usage.completion_tokens if self.usage else None
        return self.tokens + (self.finish == "stop") if said is None else said

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that the engine did not compute anew."""
        details = self.usage.prompt_tokens_details if self.usage else None
        return (details.cached_tokens or 0) if details else 0


async def written(wire: EngineWire, body: dict[str, Any], grammar: str, on_text: OnText | None) -> Written:
    """Let the engine write; with `on_text` what may be shown is shown as it comes.

    Raises:
        EngineError: of the engine.
        EngineRefusedError: it refuses the request.
    """
    found = Written(grammar)
    if on_text is None:
        found.take(await wire.complete(body))
        return found
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    async with aclosing(wire.stream(streamed)) as chunks:
        async for chunk in chunks:
            found.take(chunk)
            if piece := found.show():
                await on_text(piece)
    return found
