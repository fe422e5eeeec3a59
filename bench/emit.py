"""What `emit` costs the agent's thread, and how fast the background thread takes a full queue. Prints one JSON object.

Two paces, because they differ: an agent that does something between steps, and bursts as fast as Python goes (there the background
thread competes for the interpreter lock). `ratio` is emit's median over that of json.dumps of the same step, in the same run.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillhouse.sdk import Client, KafkaSettings, Limits
from stillhouse.sdk.kafka import apply_topics

ACTION = {
    "role": "assistant",
    "content": "The customer wants the blue lamp instead of the red one, so I look the order up first. " * 4,
    "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "find_order", "arguments": '{"order_id": "A-1001"}'}}],
}
OBSERVATION = [{"role": "tool", "tool_call_id": "call_1", "content": json.dumps({"lines": [{"sku": "L-7", "quantity": 1}] * 12})}]
USAGE = {"prompt_tokens": 1200, "completion_tokens": 80}


def percentiles(times: list[int]) -> dict[str, float]:
    ordered = sorted(times)
    return {f"p{p}_us": round(ordered[min(len(ordered) - 1, len(ordered) * p // 100)] / 1000, 2) for p in (50, 90, 99)}


def timed(call: Callable[[], object], count: int, pause: Callable[[int], None]) -> list[int]:
    times = []
    for number in range(count):
        pause(number)
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return times


def paced(_number: int) -> None:
    time.sleep(0.001)


def measure(client: Client, count: int, burst: int) -> dict[str, Any]:
    with client.trajectory(task="Swap the lamp", family="swap") as run:

        def emit() -> None:
            run.step(action=ACTION, observation=OBSERVATION, usage=USAGE, latency_ms=812.5)

        def dump() -> None:
            json.dumps({"action": ACTION, "observation": OBSERVATION, "usage": USAGE, "latency_ms": 812.5})

        def bursts(number: int) -> None:
            if number % burst == 0:
                client.flush(30)

        emit()
        slow, fast, dumps = timed(emit, count, paced), timed(emit, count * 5, bursts), timed(dump, count, paced)
    medians = sorted(slow)[len(slow) // 2], sorted(dumps)[len(dumps) // 2]
    return {
        "event_bytes": len(json.dumps([ACTION, OBSERVATION, USAGE])),
        "paced": percentiles(slow),
        "bursts": percentiles(fast),
        "json_dumps_paced": percentiles(dumps),
        "ratio": round(medians[0] / medians[1], 2),
    }


def drain(client: Client, count: int) -> dict[str, Any]:
    """From the first emit of a full queue to the moment everything is with the broker or on disk."""
    before = client.stats
    with client.trajectory(task="Swap the lamp") as run:
        start = time.perf_counter()
        for _ in range(count - 2):
            run.step(action=ACTION, observation=OBSERVATION, usage=USAGE)
    emitted = time.perf_counter() - start
    while (now := client.stats).sent + now.spooled - before.sent - before.spooled < count:
        time.sleep(0.002)
    return {"events": count, "emitted_s": round(emitted, 3), "safe_s": round(time.perf_counter() - start, 3)}


@contextmanager
def broker(address: str) -> Iterator[str]:
    if address:
        yield address
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "stillhouse.broker", "--port", "0", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["bootstrap_servers"]
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap-servers", default="", help="default: an embedded broker of its own")
    parser.add_argument("--events", type=int, default=4000)
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    result: dict[str, Any] = {}
    with broker(options.bootstrap_servers) as servers, tempfile.TemporaryDirectory() as spool:
        apply_topics(KafkaSettings(bootstrap_servers=servers), partitions=6, replication=1)
        for name, address in (("broker_there", servers), ("broker_away", "127.0.0.1:1")):
            client = Client(address, spool=Path(spool) / name)
            result[name] = measure(client, options.events, 1000) if name == "broker_there" else {}
            result[name] |= {"full_queue": drain(client, Limits().queue_events), "rejected": client.stats.rejected}
            client.close(1)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
