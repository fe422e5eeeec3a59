"""What the demo spent and what became of its events: figures that must add up."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from stillhouse.console.context import Context
from stillhouse.console.demo.settings import ROUTE
from stillhouse.console.demo.watch import within
from stillhouse.console.stack.record import StackRecord
from stillhouse.console.status_routes import read_routes, spent_usd
from stillhouse.schemas.topics import DLQ, EVENTS
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.kafka_read import record_count
from stillhouse.sdk.store import Store

SETTLE_S = 60.0


@dataclass(frozen=True)
class Accounts:
    """Money in US dollars; events as numbers.

    Args:
        teacher_only_usd: what all runs would have cost at the mean cost of the runs that the teacher alone did.
        spent_usd: what gateway and runner paid, teacher and students.
        reruns_usd: the runner's part of it.
        ledger: the gateway's, by variant.
        emitted: records of `agent.events`.
        stored: events in the store.
        dlq: records of `agent.events.dlq`.
    """

    teacher_only_usd: float
    spent_usd: float
    reruns_usd: float
    ledger: Mapping[str, float]
    emitted: int
    stored: int
    dlq: int


async def accounts_of(loaded: Context, record: StackRecord, runs: int, reruns: int, rerun_micro_usd: int) -> Accounts:
    """Add everything up, once all that was emitted is stored or in the DLQ (or a minute has passed: then it does not add up, and shows).

    Args:
        loaded: settings of the stack.
        record: where everything is.
        runs: of agents through the gateway.
        reruns: of the runner.
        rerun_micro_usd: what they cost.
    """
    store = loaded.store()
    emitted = stored = dlq = 0

    async def settled() -> bool:
        nonlocal emitted, stored, dlq
        emitted, stored, dlq = await asyncio.to_thread(_events, loaded.kafka, store)
        return emitted == stored + dlq

    await within(settled, SETTLE_S)
    routes = await asyncio.to_thread(read_routes, str(record.admin))
    ledger, reruns_usd = spent_usd(routes[ROUTE]), rerun_micro_usd / 1e6
    mean = await asyncio.to_thread(_teacher_mean, store)
    return Accounts(
        teacher_only_usd=mean * (runs + reruns),
        spent_usd=sum(ledger.values()) + reruns_usd,
        reruns_usd=reruns_usd,
        ledger=ledger,
        emitted=emitted,
        stored=stored,
        dlq=dlq,
    )


def _events(kafka: KafkaSettings, store: Store) -> tuple[int, int, int]:
    rows = store.trajectories(columns=["key", "chunks"])
    stored = sum(len(members) for members in store.event_sets({row["key"]: row["chunks"] for row in rows}).values())
    return record_count(kafka, EVENTS), stored, record_count(kafka, DLQ)


def _teacher_mean(store: Store) -> float:
    """Mean cost of a run that the teacher alone did, in US dollars."""
    rows = store.trajectories(where="status = 'ended'", columns=["policies", "cost_micro_usd"])
    costs = [row["cost_micro_usd"] for row in rows if {p["role"] for p in row["policies"] or ()} == {"teacher"}]
    return sum(costs) / len(costs) / 1e6 if costs else 0.0
