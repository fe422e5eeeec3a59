"""What is written before a reply ends: the conversation, the money, the events."""

import sqlite3
from collections.abc import Sequence

import structlog

from stillhouse.schemas.events import PolicyRole
from stillhouse.serving.gateway.answers import Answer, Exchange, events_of
from stillhouse.serving.gateway.assignment import TEACHER
from stillhouse.serving.gateway.desk import Desk, Route
from stillhouse.serving.gateway.identity import chain_hash
from stillhouse.serving.gateway.memory import Spent

log = structlog.get_logger()


async def settle(desk: Desk, route: Route, exchange: Exchange, answers: Sequence[Answer]) -> None:
    """Write it, in one transaction, and hand the events over. A memory that fails is counted, and no reason to fail the request."""
    call, last = exchange.call, answers[-1]
    events = desk.capture.redact(events_of(exchange, answers, desk.now())) if exchange.given.capture else []
    try:
        if last.message is not None and last.error is None:
            desk.memory.remember_chain(chain_hash(route.name, call.tenant, [*call.messages, last.message]), call.trajectory)
        desk.memory.spend(exchange.run.key, [_spent(exchange, answer) for answer in answers])
        desk.capture.keep(events)
        await desk.memory.committed()
    except sqlite3.Error as error:
        desk.instruments.count("memory_errors_total")
        log.error("memory_failed", error=str(error))
    desk.capture.send(events)
    for answer in answers:
        _measure(desk, route.name, answer)


def variant_of(answer: Answer) -> str:
    """Who answered, as metrics and the ledger name it."""
    return answer.policy.model if answer.policy.role is PolicyRole.STUDENT else TEACHER


def _spent(exchange: Exchange, answer: Answer) -> Spent:
    return Spent(
        tenant=exchange.call.tenant,
        route=exchange.call.route,
        variant=variant_of(answer),
        input_tokens=answer.usage.input_tokens or 0,
        cached_tokens=answer.usage.cached_tokens or 0,
        output_tokens=answer.usage.output_tokens or 0,
        cost_micro_usd=answer.cost_micro_usd,
        estimated=answer.estimated,
    )


def _measure(desk: Desk, route: str, answer: Answer) -> None:
    count, variant = desk.instruments.count, variant_of(answer)
    tokens = {"input": answer.usage.input_tokens, "cached": answer.usage.cached_tokens, "output": answer.usage.output_tokens}
    for kind, number in tokens.items():
        if number:
            count("tokens_total", route, variant, kind, amount=number)
    count("cost_micro_usd_total", route, variant, amount=answer.cost_micro_usd)
    if answer.cost_micro_usd == 0 and (answer.usage.input_tokens or answer.usage.output_tokens):
        count("unpriced_total", route, variant)
    if answer.estimated:
        count("estimated_total", route, variant)
