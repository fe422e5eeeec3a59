"""A runner in a process of its own. Each call is a line of a file; it may kill itself at a place."""

import os
import signal
import sys
from pathlib import Path

from stillhouse.sdk import Client, KafkaSettings, RunnerTask
from stillhouse.sdk.runner import Runners
from stillhouse.sdk.runner_claims import Claims
from stillhouse.sdk.store import Store

bootstrap, prefix, folder, lease, die = sys.argv[1:6]
root = Path(folder)
kafka = KafkaSettings(bootstrap_servers=bootstrap, prefix=prefix)
client = Client(settings=kafka, tenant="acme", spool=root / "spool")
runners = Runners(
    client, "acme", KafkaSettings(bootstrap_servers=bootstrap, prefix=prefix), lambda: Store.open(root / "lance"), float(lease)
)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def rerun(task: RunnerTask) -> None:
    if die == "before":
        kill()
    with (root / "paid").open("a") as paid:
        paid.write(f"{task.source_task_id}\n")
    with task.trajectory(model="big") as run:
        run.step("done", cost_micro_usd=10)
        run.end(True)


async def also(task: RunnerTask) -> None:
    rerun(task)


if die == "after":
    Claims.finish = lambda *_, **__: kill()  # type: ignore[assignment,method-assign]
runners.add("refund", rerun)
runners.add("cancel", also)
print("ready", flush=True)
runners.run()
