"""What an evaluation cost: by tokens for a provider's model, by time for a server of one's own."""

import math
from datetime import UTC, datetime

import msgspec

from stillhouse.schemas.errors import UsageError
from stillhouse.schemas.events import Usage
from stillhouse.trainer.evaluation.benchmark import ListPrice, Price, ReplicaPrice, TokenPrice


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars. `marginal` counts the time that the model computed, `loaded` all the time it was there; a provider's are equal.

    Per success both are None when nothing succeeded; marginal is None when the server does not say how long it computed.
    """

    marginal_usd: float | None
    loaded_usd: float
    marginal_per_success_usd: float | None
    loaded_per_success_usd: float | None
    basis: str


def cost_of(price: Price, usage: Usage, *, busy_s: float | None, wall_s: float, successes: float) -> Cost:
    """The cost of what was measured.

    Args:
        price: of the policy.
        usage: tokens of all episodes.
        busy_s: seconds that the replicas computed; None when not known.
        wall_s: seconds that they were held.
        successes: tasks done.

    Raises:
        UsageError: genai-prices does not know the model of a list price.
    """
    if isinstance(price, ReplicaPrice):
        hourly = price.usd_per_hour / 3600
        marginal = None if busy_s is None else busy_s * hourly
        loaded, basis = wall_s * price.replicas * hourly, f"${price.usd_per_hour:g} per replica-hour, {price.replicas} replica(s)"
    else:
        loaded, basis = token_cost(price, usage)
        marginal = loaded
    return Cost(
        marginal_usd=marginal, loaded_usd=loaded, basis=basis,
        marginal_per_success_usd=marginal / successes if marginal is not None and successes else None,
        loaded_per_success_usd=loaded / successes if successes else None,
    )  # fmt: skip


class BreakEven(msgspec.Struct, frozen=True, kw_only=True):
    """After how many successes of the student its distillation is paid; None where it never is. `why` says it in a sentence."""

    successes: int | None
    why: str


def break_even(spend_usd: float, *, teacher_usd: float | None, student_usd: float | None) -> BreakEven:
    """The volume from which on distilling was cheaper than going on with the teacher.

    Args:
        spend_usd: what distilling cost: the teacher's runs that were made for it, training, evaluation.
        teacher_usd: the teacher's cost of a success.
        student_usd: the student's, fully loaded: what it costs while it waits is part of what it must save.

    Raises:
        UsageError: the spend is no amount of money.
    """
    if not (math.isfinite(spend_usd) and spend_usd >= 0):
        raise UsageError(f"a distillation cannot have cost {spend_usd} USD", fix="Give what was spent, 0 or more.")
    for name, usd in (("teacher", teacher_usd), ("student", student_usd)):
        if usd is None:
            return BreakEven(successes=None, why=f"the {name} has no cost per success: nothing that was measured succeeded.")
    assert teacher_usd is not None and student_usd is not None
    saved = teacher_usd - student_usd
    if saved <= 0:
        return BreakEven(
            successes=None, why=f"never: a success of the student costs ${student_usd:.2g} (loaded), the teacher's ${teacher_usd:.2g}."
        )
    volume = spend_usd / saved
    if not math.isfinite(volume):
        return BreakEven(successes=None, why="never: what a success saves is too little to count.")
    successes = math.ceil(volume)
    return BreakEven(
        successes=successes, why=f"${spend_usd:.2f} spent, ${saved:.2g} saved at each success (loaded): paid after {successes:,}."
    )


def token_cost(price: TokenPrice | ListPrice, usage: Usage) -> tuple[float, str]:
    """US dollars of some tokens, and in words what they were priced by.

    Raises:
        UsageError: genai-prices does not know the model.
    """
    inputs, outputs, cached = usage.input_tokens or 0, usage.output_tokens or 0, usage.cached_tokens or 0
    if isinstance(price, ListPrice):
        return _listed(price, inputs, outputs, cached)
    cached_price = price.input_usd_per_mtok if price.cached_usd_per_mtok is None else price.cached_usd_per_mtok
    total = ((inputs - cached) * price.input_usd_per_mtok + cached * cached_price + outputs * price.output_usd_per_mtok) / 1e6
    return total, f"declared: ${price.input_usd_per_mtok:g} / ${price.output_usd_per_mtok:g} per million tokens in / out"


def _listed(price: ListPrice, inputs: int, outputs: int, cached: int) -> tuple[float, str]:
    from genai_prices import Usage as Priced
    from genai_prices import calc_price

    tokens = Priced(input_tokens=inputs, output_tokens=outputs, cache_read_tokens=cached)
    try:
        found = calc_price(tokens, price.model, provider_id=price.provider, genai_request_timestamp=datetime.now(UTC))
    except LookupError as error:
        raise UsageError(f"genai-prices has no price for {price.model}: {error}", fix="Declare the price per million tokens.") from error
    return float(found.total_price), f"{price.model} by genai-prices ({found.provider.id})"
