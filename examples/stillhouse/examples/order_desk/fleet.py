"""A fleet of desk agents at work: many episodes at once, every one published through the SDK.

`python -m stillhouse.examples.order_desk.fleet --bootstrap-servers … --teacher-url … --count 100`
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from openai import AsyncOpenAI

from stillhouse.examples.order_desk.agent import ChatSettings, Turn, connect, run_episode
from stillhouse.examples.order_desk.environment import ENVIRONMENT
from stillhouse.examples.order_desk.pricing import NOTICE, STAND_IN, cost_micro_usd
from stillhouse.examples.order_desk.replay import save_tasks
from stillhouse.examples.order_desk.tasks import FAMILIES, PARTS, DeskTask, make_tasks
from stillhouse.examples.order_desk.tools import SYSTEM_PROMPT, TOOLS
from stillhouse.schemas.errors import StillhouseError
from stillhouse.schemas.events import Outcome, Policy, PolicyRole
from stillhouse.sdk.client import Client
from stillhouse.sdk.trajectory import Trajectory

AGENT = "order-desk"


@dataclass
class FleetReport:
    """What a fleet did so far. `aborted` counts the runs that ended without an outcome, by reason.

    Costs are in millionths of a dollar; 0 for a model without a list price.
    """

    tasks: int
    succeeded: int = 0
    failed: int = 0
    aborted: Counter[str] = field(default_factory=Counter)
    families: dict[str, dict[str, int]] = field(default_factory=dict)
    turns: int = 0
    cost_micro_usd: int = 0
    seconds: float = 0.0
    notice: str = ""

    @property
    def done(self) -> int:
        """Runs that are over."""
        return self.succeeded + self.failed + self.aborted.total()

    def count(self, task: DeskTask, outcome: Outcome, reason: str, turns: int, cost: int) -> None:
        """Enter one run that is over."""
        if outcome is Outcome.ABORTED:
            self.aborted[reason] += 1
        else:
            self.succeeded += outcome is Outcome.SUCCESS
            self.failed += outcome is Outcome.FAILURE
        row = self.families.setdefault(task.family, dict.fromkeys(("success", "failure", "aborted"), 0))
        row[outcome.value] += 1
        self.turns += turns
        self.cost_micro_usd += cost


async def run_fleet(
    tasks: Iterable[DeskTask],
    url: str,
    model: str,
    client: Client,
    concurrency: int = 24,
    on_progress: Callable[[FleetReport], None] | None = None,
    *,
    role: PolicyRole = PolicyRole.TEACHER,
    settings: ChatSettings | None = None,
    timeout_s: float = 60.0,
    gateway: bool = False,
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> FleetReport:
    """Run every task once and publish it. A run whose model cannot be had ends as aborted, with its reason, and the others go on.

    Args:
        tasks: what to do; an endless stream needs a `stop`.
        url: the OpenAI-compatible address of the model, up to and with `/v1`.
        model: the model name; it is also the policy's in the events, and what prices are looked up by.
        client: publishes the runs. It is neither flushed nor closed here.
        concurrency: episodes at once.
        on_progress: called with the report after every run.
        role: the policy's role in the events.
        settings: retries and sampling; `model` wins over the one in it.
        timeout_s: the longest wait for one answer.
        gateway: the address is a gateway, which publishes the steps and knows whose they are and what they cost; `model` is a route.
        stop: asked before each run; once it says so, no other begins.
        clock: seconds that only go forward.
    """
    chosen = replace(settings or ChatSettings(model=model), model=model)
    report, began = FleetReport(tasks=len(tasks) if isinstance(tasks, Sized) else 0, notice=NOTICE if model == STAND_IN else ""), clock()
    policy = None if gateway else Policy(role=role, model=model)
    waiting, endless = iter(tasks), not isinstance(tasks, Sized)

    async def agent(chat: AsyncOpenAI) -> None:
        while not stop() and (task := next(waiting, None)) is not None:
            report.tasks += endless
            await _publish_run(task, chat, chosen, client, policy, report)
            report.seconds = clock() - began
            if on_progress:
                on_progress(report)

    async with connect(url, timeout_s=timeout_s) as chat, asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(tasks)) if isinstance(tasks, Sized) else concurrency):
            group.create_task(agent(chat))
    return report


def steps_into(trajectory: Trajectory, task: DeskTask, model: str, spent: Callable[[int], None]) -> Callable[[Turn], None]:
    """Publishes each turn as a step of a run; `spent` hears what it cost."""
    began = False

    def publish(turn: Turn) -> None:
        nonlocal began
        cost = cost_micro_usd(turn.usage, model)
        trajectory.step(
            action=turn.action,
            observation=list(turn.observation),
            state=[] if began else [{"role": "user", "content": task.instruction}],
            usage=turn.usage,
            cost_micro_usd=cost,
            latency_ms=turn.latency_s * 1000,
        )
        began = True
        spent(cost or 0)

    return publish


async def _publish_run(
    task: DeskTask, chat: AsyncOpenAI, settings: ChatSettings, client: Client, policy: Policy | None, report: FleetReport
) -> None:
    """Run one task; without a policy a gateway stands in front of the model and publishes the steps."""
    turns: list[Turn] = []
    costs: list[int] = []
    about = {"id": task.id, "family": task.family, "instruction": task.instruction}
    with client.trajectory(task=about, tools=TOOLS, system_prompt=SYSTEM_PROMPT, environment=ENVIRONMENT, policy=policy) as trajectory:
        step = steps_into(trajectory, task, settings.model, costs.append) if policy is not None else None

        def publish(turn: Turn) -> None:
            if step is not None:
                step(turn)
            turns.append(turn)

        try:
            headers = trajectory.openai_headers() if policy is None else None
            result = await run_episode(task, chat, settings, publish, headers)
        except StillhouseError as error:
            trajectory.feedback(source="proxy", outcome=Outcome.ABORTED, label=str(error))
            trajectory.end(outcome=Outcome.ABORTED)
            report.count(task, Outcome.ABORTED, str(error), len(turns), sum(costs))
            return
        outcome = Outcome.SUCCESS if result.verdict.success else Outcome.FAILURE
        trajectory.end(outcome=outcome, reward=float(result.verdict.success), verifier=ENVIRONMENT)
        report.count(task, outcome, result.verdict.reason, len(turns), sum(costs))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a fleet from the command line. Progress goes to stderr, the report as one JSON object to stdout.

    Returns:
        0; 1 when no run came to an outcome; 2 for wrong arguments; 3 when events are left unsent (they stay in the spool).
    """
    chosen = _parser().parse_args(arguments)
    families = chosen.families.split(",") if chosen.families else None
    try:
        tasks = make_tasks(chosen.part, chosen.count, chosen.seed, families=families, name=chosen.name)
        client = Client(bootstrap_servers=chosen.bootstrap_servers, tenant=chosen.tenant, agent=AGENT, spool=chosen.spool)
    except StillhouseError as error:
        print(error, file=sys.stderr)
        return 2
    if chosen.tasks_file:
        save_tasks(chosen.tasks_file, tasks)
    with client:
        report = asyncio.run(
            run_fleet(tasks, chosen.teacher_url, chosen.model, client, chosen.concurrency, _Progress(), timeout_s=chosen.timeout)
        )
        left = client.flush(chosen.flush_timeout)
    print(json.dumps({**asdict(report), "unsent_events": left}))
    return 1 if report.tasks and report.aborted.total() == report.tasks else 3 if left else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stillhouse.examples.order_desk.fleet", description="Order-desk agents at work.")
    parser.add_argument("--bootstrap-servers", help="the broker; default: [kafka] of the configuration")
    parser.add_argument("--teacher-url", required=True, help="OpenAI-compatible address of the model, up to and with /v1")
    parser.add_argument("--model", default=STAND_IN)
    parser.add_argument("--count", type=int, default=100, help="tasks to run")
    parser.add_argument("--families", help=f"comma-separated, of: {', '.join(FAMILIES)}; default: all")
    parser.add_argument("--part", choices=PARTS, default="train")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tasks-file", type=Path, help="add the tasks to this file, for [window] environment_data")
    parser.add_argument("--name", default="", help="a stream of tasks of its own")
    parser.add_argument("--concurrency", type=int, default=24, help="episodes at once")
    parser.add_argument("--tenant", default="default")
    parser.add_argument("--spool", type=Path, help="folder for events that cannot be sent yet; default: spool/ of the state folder")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for one answer")
    parser.add_argument("--flush-timeout", type=float, default=30.0, help="seconds to wait for the broker at the end")
    return parser


class _Progress:
    """A line on stderr at most every two seconds, and one at the end."""

    def __init__(self) -> None:
        self._said = 0.0

    def __call__(self, report: FleetReport) -> None:
        if report.done == report.tasks or report.seconds - self._said >= 2:
            self._said = report.seconds
            aborted = f", {report.aborted.total()} aborted" if report.aborted else ""
            print(f"{report.done} of {report.tasks} runs, {report.succeeded} succeeded{aborted}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
