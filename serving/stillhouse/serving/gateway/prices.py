"""What a request costs: tokens by a price list, or a share of the time that the students' server was busy."""

import math
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import Usage
from stillhouse.sdk.routes import RouteSettings

MICRO = 1_000_000
CHARACTERS_PER_TOKEN = 4
"""For streams that ended before their usage came."""

TokenPrice = Callable[[int, int, int], int]


def token_price(route: RouteSettings, where: str) -> TokenPrice:
    """Micro-dollars, rounded up, of (input, cached, output) tokens at a route's teacher; cached ones are part of the input.

    Raises:
        PermanentError: `price_model` has no public price.
    """
    if route.price_model:
        price = lru_cache(4096)(lambda a, b, c: _listed(route.price_model, a, b, c))
        try:
            price(1, 0, 1)
        except LookupError as error:
            fix = "Name a model of genai-prices, or give input_usd_per_mtok and output_usd_per_mtok."
            raise PermanentError(f"no public price of {route.price_model}", where=f"[routes.{where}] price_model", fix=fix) from error
        return price
    fresh, out = Decimal(str(route.input_usd_per_mtok)), Decimal(str(route.output_usd_per_mtok))
    cached = fresh if route.cached_usd_per_mtok is None else Decimal(str(route.cached_usd_per_mtok))
    # A dollar per million tokens is a micro-dollar a token.
    return lambda given, hit, written: math.ceil((given - hit) * fresh + hit * cached + written * out)


def _listed(model: str, given: int, hit: int, written: int) -> int:
    from genai_prices import Usage as Tokens
    from genai_prices import calc_price

    tokens = Tokens(input_tokens=given, output_tokens=written, cache_read_tokens=hit)
    return math.ceil(calc_price(tokens, model_ref=model).total_price * MICRO)


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
