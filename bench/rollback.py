"""Swap and rollback under load: failed requests, and seconds from the decision in the log to the last request that its student answered.

    PYTHONPATH=. nice -n 15 python bench/rollback.py

A gateway on the embedded broker, a real student server with a tiny model, and clients that never pause. Half of the units are the
canary's. One student is rolled back and its child put in its place (the swap), then that one is rolled back too.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from stillhouse.schemas.facts import StudentStage, StudentState
from stillhouse.serving.canary.publish import StudentsLog
from stillhouse.serving.gateway.engine import HttpEngine
from stillhouse.serving.gateway.server import Gateway, Ports
from tests.serving.gateway.world import Events, Upstream, config_of
from tests.support.agents import make_topics
from tests.support.brokers import start_embedded
from tests.support.engines import SYSTEM, Family, make_family, student_server

CLIENTS, SHARE, LIMIT_S = 8, 0.5, 5.0


class Load:
    """Clients that ask without a pause; keeps when each answer came, and from whom."""

    def __init__(self, url: str) -> None:
        self.answers: list[tuple[float, float, str]] = []
        self.failed = 0
        self._url, self._stop = url, asyncio.Event()

    async def run(self) -> None:
        """Ask until stopped."""
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(self._client(session, n) for n in range(CLIENTS)))

    async def _client(self, session: aiohttp.ClientSession, number: int) -> None:
        while not self._stop.is_set():
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Where is {20 + number}?"}]
            began = time.monotonic()
            async with session.post(f"{self._url}/v1/chat/completions", json={"model": "desk", "messages": messages}) as answer:
                await answer.read()
                self.failed += answer.status != 200
                self.answers.append((began, time.monotonic(), answer.headers.get("x-stillhouse-variant", "")))

    async def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait while the clients go on."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.05)

    def served(self, variant: str, since: float = 0.0) -> int:
        """How many requests that began since then a variant answered."""
        return sum(who == variant for began, _, who in self.answers if began >= since)

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()


async def _roll_back(log: StudentsLog, load: Load, student: str) -> dict[str, Any]:
    decided = time.monotonic()
    assert await log.publish(StudentState(student=student, stage=StudentStage.ROLLED_BACK, route="desk", reason="bench"))
    count = len(load.answers)
    await load.until(lambda: len(load.answers) > count + 200)
    last = max((ended for _, ended, who in load.answers if who == student), default=decided)
    return {"student": student, "seconds_to_last_answer": round(max(0.0, last - decided), 3)}


async def _measure(folder: Path, family: Family, engine_url: str, bootstrap: str) -> dict[str, Any]:
    kafka = make_topics(bootstrap, prefix="bench")
    log = StudentsLog(kafka)
    await log.start()
    async with Upstream().running() as upstream:
        where = f'bootstrap_servers = "{kafka.bootstrap_servers}"\nprefix = "{kafka.prefix}"'
        engine = HttpEngine(engine_url, family.students)
        gateway = Gateway(config_of(folder, upstream.url, {"student_timeout_s": "20.0"}, kafka=where), {"desk": engine}, sink=Events())
        url, _ = await gateway.start(Ports())
        load, found = Load(url), []
        running = asyncio.create_task(load.run())
        try:
            for student in (family.parent, family.child):
                assert await log.publish(StudentState(student=student, stage=StudentStage.CANARY, route="desk", share=SHARE))
                await load.until(lambda name=student: load.served(name) >= 50)  # type: ignore[misc]
                found.append(await _roll_back(log, load, student))
        finally:
            load.stop()
            await running
            await gateway.stop()
            await log.stop()
    students = sum(load.served(name) for name in (family.parent, family.child))
    return {"requests": len(load.answers), "by_students": students, "failed": load.failed, "rollbacks": found}


def main() -> None:
    """Measure once, print it, and fail when it is not as promised."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = start_embedded(folder / "broker")
        try:
            family = make_family(folder)
            with student_server(family.base, folder / "student.log") as server:
                found = asyncio.run(_measure(folder / "gateway", family, server.url, broker.bootstrap))
        finally:
            broker.stop()
    print(json.dumps(found, indent=2))
    assert found["failed"] == 0 and all(one["seconds_to_last_answer"] <= LIMIT_S for one in found["rollbacks"])


if __name__ == "__main__":
    main()
