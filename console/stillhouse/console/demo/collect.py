"""A fleet of order-desk agents works on the teacher and publishes through the SDK; back when all of it is stored."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stillhouse.examples.order_desk.fleet import FleetReport, run_fleet
from stillhouse.examples.order_desk.tasks import DeskTask
from stillhouse.schemas.errors import RetryableError
from stillhouse.sdk.client import Client
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.store import Store

STORED_SECONDS = 120.0
POLL_SECONDS = 0.2


async def collect(
    tasks: Sequence[DeskTask],
    url: str,
    model: str,
    kafka: KafkaSettings,
    spool: Path,
    store: Store,
    fleet: int,
    news: Callable[[str], None],
) -> FleetReport:
    """Run the tasks and wait until each is a row.

    Raises:
        RetryableError: the rows are not there in time.
    """
    before = _ended(store)

    def tell(report: FleetReport) -> None:
        news(f"{report.done}/{report.tasks} runs, {report.succeeded} succeeded, ${report.cost_micro_usd / 1e6:.2f}")

    async with Client(settings=kafka, agent="order-desk", spool=spool) as client:
        report = await run_fleet(tasks, url, model, client, concurrency=fleet, on_progress=tell)
    deadline = time.monotonic() + STORED_SECONDS
    while (stored := await asyncio.to_thread(_ended, store)) < before + len(tasks):
        if time.monotonic() > deadline:
            missing = before + len(tasks) - stored
            raise RetryableError(f"{missing} of {len(tasks)} runs are not stored", where=store.uri, fix="See logs/ingest.log.")
        await asyncio.sleep(POLL_SECONDS)
    return report


def _ended(store: Store) -> int:
    return len(store.trajectories(where="status = 'ended'", columns=["key"]))
