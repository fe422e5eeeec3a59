"""What a teacher's tokens cost on a route: by its own price list, or by a model's public prices."""

import math
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache

from stillhouse.schemas.errors import MissingExtraError, PermanentError
from stillhouse.sdk.routes import RouteSettings

MICRO = 1_000_000

TokenPrice = Callable[[int, int, int], int]


def token_price(route: RouteSettings, where: str) -> TokenPrice:
    """Micro-dollars, rounded up, of (input, cached, output) tokens at a route's teacher; cached ones are part of the input.

    Raises:
        PermanentError: `price_model` has no public price.
        MissingExtraError: public prices are not installed.
    """
    if route.price_model:
        price = lru_cache(4096)(lambda a, b, c: _listed(route.price_model, a, b, c))
        try:
            price(1, 0, 1)
        except LookupError as error:
            fix = "Name a model of genai-prices, or give input_usd_per_mtok and output_usd_per_mtok."
            raise PermanentError(f"no public price of {route.price_model}", where=f"[routes.{where}] price_model", fix=fix) from error
        except ImportError as error:
            raise MissingExtraError("prices of models", "serving") from error
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
