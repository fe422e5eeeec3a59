"""What the stand-in teacher is called and what its tokens cost: those of a real model, as genai-prices lists it."""

import math

from genai_prices import Usage as PriceUsage
from genai_prices import calc_price

from stillhouse.schemas.events import Usage

STAND_IN = "order-desk-expert"
PRICED_AS = "gpt-4o"
NOTICE = f"stand-in teacher (scripted), priced as {PRICED_AS} by genai-prices"


def cost_micro_usd(usage: Usage, model: str) -> int | None:
    """What a request cost, in millionths of a dollar, rounded up; None for a model that has no list price.

    The stand-in is charged as `PRICED_AS`.
    """
    priced = PRICED_AS if model == STAND_IN else model
    tokens = PriceUsage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, cache_read_tokens=usage.cached_tokens)
    try:
        return math.ceil(calc_price(tokens, model_ref=priced).total_price * 1_000_000)
    except LookupError:
        return None
