"""From the tokens of the model's thread to text on the event loop, piece by piece, with stop strings."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from stillhouse.serving.student.generation import FinishReason, Generation, Result
from stillhouse.serving.student.loop import ModelLoop


class TextStream:
    """Text that grows by tokens. What is handed out is never taken back: half a character or the beginning of a stop string waits.

    Args:
        decode: token ids to text.
        stop_ids: tokens that end the text and are no part of it.
        stops: strings that end it and are no part of it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop_ids: frozenset[int], stops: Sequence[str]) -> None:
        self.text = ""
        self.stopped = False
        self._decode, self._stop_ids, self._stops = decode, stop_ids, stops
        self._tokens: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        """Take a token; the new text that is certain now."""
        if self.stopped or token in self._stop_ids:
            return ""
        self._tokens.append(token)
        self.text = self._decode(self._tokens)
        found = [at for at in (self.text.find(s) for s in self._stops) if at >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
            return self.rest()
        held = max((_overlap(self.text, s) for s in self._stops), default=0)
        return self._give(len(self.text.rstrip("\ufffd")) if self.text.endswith("\ufffd") else len(self.text) - held)

    def rest(self) -> str:
        """At the end: what waited."""
        return self._give(len(self.text))

    def _give(self, end: int) -> str:
        piece = self.text[self._given : end]
        self._given = max(self._given, end)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class Reply:
    """A generation on its way to a client.

    Args:
        loop: the model's thread.
        generation: what to generate; its callbacks are set here.
        decode: token ids to text.
        stops: strings that end the text.
        live: deliver pieces as they come (else all of it at the end).
    """

    def __init__(
        self, loop: ModelLoop, generation: Generation, decode: Callable[[Sequence[int]], str], stops: Sequence[str], *, live: bool
    ) -> None:
        self.generation = generation
        self.result = Result()
        self._loop = loop
        self._fresh: list[int] = []
        self._live = live or bool(stops)
        self._stream = TextStream(decode, generation.stop_ids, stops)

    @property
    def text(self) -> str:
        """What was said, without whatever stopped it."""
        return self._stream.text

    @property
    def finish(self) -> FinishReason:
        """Why it ended."""
        return "stop" if self._stream.stopped else self.result.finish or "abort"

    def take_tokens(self) -> list[int]:
        """The tokens that came since the last call: of a live reply, all of them add up to the result's."""
        taken, self._fresh = self._fresh, []
        return taken

    async def pieces(self) -> AsyncIterator[str]:
        """Generate. Leaving early, by whatever way, cancels what is left of it.

        Raises:
            QueueFullError: too many wait.
            Exception: what the model's thread failed with.
        """
        arrived: asyncio.Queue[int | Result] = asyncio.Queue()
        here = asyncio.get_running_loop()

        def deliver(item: int | Result) -> None:
            here.call_soon_threadsafe(arrived.put_nowait, item)

        ticket = self._loop.submit(replace(self.generation, on_token=deliver if self._live else None, on_end=deliver))
        try:
            while not isinstance(item := await arrived.get(), Result):
                self._fresh.append(item)
                if piece := self._stream.push(item):
                    yield piece
                if self._stream.stopped:
                    ticket.cancel()
            self.result = item
        finally:
            ticket.cancel()
        if self.result.error:
            raise self.result.error
        for token in [] if self._live else self.result.tokens:
            self._stream.push(token)
        if piece := self._stream.rest():
            yield piece

    async def finished(self) -> "Reply":
        """The same, when it is over."""
        async for _ in self.pieces():
            pass
        return self
