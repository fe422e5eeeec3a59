"""The demo's users: order-desk agents that ask the gateway, as many as are wanted, for as long as they are wanted."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stillhouse.console.demo.watch import within
from stillhouse.examples.order_desk.fleet import FleetReport, run_fleet
from stillhouse.examples.order_desk.replay import save_tasks
from stillhouse.examples.order_desk.tasks import DeskTask, make_tasks
from stillhouse.sdk.client import Client

News = Callable[[str], None]


@dataclass
class Traffic:
    """Agents in front of one route.

    Args:
        url: the gateway's, for clients, up to and with `/v1`.
        route: what they name as the model.
        client: publishes the starts and ends of their runs; the gateway publishes the steps.
        tasks_file: where every task is kept that was given to an agent.
        seed: of the tasks.
        fleet: agents at once.
    """

    url: str
    route: str
    client: Client
    tasks_file: Path
    seed: int
    fleet: int
    runs: int = 0
    succeeded: int = 0
    given: dict[str, DeskTask] = field(default_factory=dict)

    async def until(
        self,
        over: Callable[[], Awaitable[bool]],
        name: str,
        most: int,
        families: Sequence[str],
        news: News,
        weights: Mapping[str, float] | None = None,
    ) -> FleetReport:
        """Let agents work until a condition holds; runs that have begun are ended.

        Args:
            over: looked at again and again.
            name: of this stretch of tasks; another name gives other tasks.
            most: tasks at most.
            families: of the tasks, in turn,
            news: told how it goes.
            weights: or drawn by these.
        """
        tasks = make_tasks("train", most, self.seed, families=families, weights=weights, name=name)
        save_tasks(self.tasks_file, tasks)
        self.given |= {task.id: task for task in tasks}
        watching = asyncio.create_task(within(over, math.inf))

        def tell(report: FleetReport) -> None:
            news(f"{report.done} runs, {report.succeeded} succeeded")

        try:
            report = await run_fleet(
                iter(tasks), self.url, self.route, self.client, self.fleet, tell, gateway=True, stop=watching.done, timeout_s=120.0
            )
        finally:
            if not watching.done():
                watching.cancel()
            outcome = (await asyncio.gather(watching, return_exceptions=True))[0]
        if isinstance(outcome, Exception):
            raise outcome
        self.runs += report.done
        self.succeeded += report.succeeded
        return report
