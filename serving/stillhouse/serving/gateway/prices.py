"""What a request cost where nobody said so: an estimate of tokens, and a share of the time that the students' server was busy."""

import math
from collections.abc import Callable

from stillhouse.schemas.events import Usage

CHARACTERS_PER_TOKEN = 4
"""For streams that ended before their usage came."""


def estimate(request_characters: int, reply_characters: int) -> Usage:
    """Usage of a reply that ended before the upstream said it."""
    return Usage(
        input_tokens=math.ceil(request_characters / CHARACTERS_PER_TOKEN), output_tokens=math.ceil(reply_characters / CHARACTERS_PER_TOKEN)
    )


class BusyTime:
    """Divides a server's busy time among the requests that it has at once: the parts add up to the time that it was busy.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._open, self._sum, self._since = 0, 0.0, clock()

    def enter(self) -> float:
        """A request begins; gives what `leave` needs."""
        self._advance()
        self._open += 1
        return self._sum

    def leave(self, mark: float) -> float:
        """The request ends; gives its seconds of the server's time."""
        self._advance()
        self._open -= 1
        return self._sum - mark

    def _advance(self) -> None:
        now = self._clock()
        if self._open:
            self._sum += (now - self._since) / self._open
        self._since = now
