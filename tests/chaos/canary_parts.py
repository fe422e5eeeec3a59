"""The processes around a canary: started by command, killed by signal, started again at once on the same ports."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from stillhouse.serving.canary.settings import ControllerSettings
from stillhouse.streams.settings import IngestSettings
from tests.serving.canary_process.world import ROUTE, SETTINGS
from tests.serving.gateway.world import ROUTE as TERMS
from tests.support.cli import CLEAN
from tests.support.engines import free_port
from tests.support.ingest import QUICK, Topics
from tests.support.waiting import PAUSE_S

READY_S = 60.0
HORIZON_S = 2.0
CANARY = msgspec.structs.replace(
    SETTINGS,
    # Killed servers cost the canary latency and fallbacks. Here its own answers decide, and nothing leaves the first stage upwards.
    stages=(0.4, 0.5), min_age_s=3600.0, max_canary_units=0, latency_margin=0.9, fallback_margin=0.9, look_s=0.2,
)  # fmt: skip


async def breath() -> None:
    """Leave the cores to the processes for a moment."""
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), PAUSE_S)


@dataclass
class Part:
    """One process.

    Args:
        name: as the test names it.
        command: what follows `python -m`.
        log: its standard error, of all its lives.
        env: beside the environment.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    ready: dict[str, Any] | None = None
    downs: list[tuple[float, float]] = field(default_factory=list)

    def start(self) -> None:
        """Start it; `up` waits for its ready line."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=CLEAN | dict(self.env),
            )
        self._since, self.ready = time.time(), None
        self._reading = asyncio.create_task(self._read(self._process))

    async def up(self) -> dict[str, Any]:
        """Its ready line."""
        async with asyncio.timeout(READY_S):
            while self.ready is None:
                await breath()
                if self._reading.done():
                    self._reading.result()
        return self.ready

    def kill_and_start(self) -> None:
        """kill -9, and at once another one, which is not waited for."""
        at = self._since if self.ready is None else time.time()
        assert self._process.poll() is None, f"{self.name} was gone: {self.tail()}"
        self._process.kill()
        self._process.wait()
        self.start()
        self._since = at  # a kill on its way up makes the same outage longer

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        self._process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(self._process.wait, READY_S)
        return code

    async def close(self) -> None:
        """Make sure that it is gone."""
        if self._process.poll() is None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        await self._reading

    def was_down(self, began: float, ended: float) -> bool:
        """Whether it was away at some time between."""
        now = [(self._since, time.time())] if self.ready is None else []
        return any(since <= ended and began <= until for since, until in [*self.downs, *now])

    def tail(self) -> str:
        """The end of what it logged."""
        return self.log.read_text(errors="replace")[-3000:]

    async def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout as stdout:  # one line is all that any of them says there
            line = await asyncio.to_thread(stdout.readline)
        if process is not self._process:
            return  # killed on its way up
        assert line, f"{self.name} did not start: {self.tail()}"
        self.ready = json.loads(line)
        self.downs.append((self._since, time.time()))


def parts(state: Path, base: Path, teacher_url: str, topics: Topics) -> dict[str, Part]:
    """Gateway, controller, student server and ingest over one state folder; not started yet."""
    engine, gateway = free_port(), free_port()
    config = _config(state, teacher_url, f"http://127.0.0.1:{engine}", topics)
    common = ("--state", str(state), "--config", str(config))
    defaults = msgspec.structs.asdict(IngestSettings())
    quick = {f"STILLHOUSE_INGEST__{k.upper()}": str(v) for k, v in msgspec.structs.asdict(QUICK).items() if v != defaults[k]}
    student = ("--model", str(base), "--port", str(engine), "--threads", "1", "--wait-ms", "1")
    commands: dict[str, tuple[str, ...]] = {
        "gateway": ("stillhouse.serving.gateway", *common, "--port", str(gateway), "--metrics-port", str(free_port())),
        "controller": ("stillhouse.serving.canary", *common),
        "student": ("stillhouse.serving.student", *student),
        "ingest": ("stillhouse.streams.ingest", *common, "--ordinal", "0"),
    }
    envs = {"ingest": quick, "student": {"OMP_NUM_THREADS": "1"}}
    return {name: Part(name, command, state / f"{name}.log", envs.get(name, {})) for name, command in commands.items()}


def _config(state: Path, teacher_url: str, engine_url: str, topics: Topics) -> Path:
    def lines(values: Mapping[str, Any]) -> list[str]:
        return [f"{name} = {value}" for name, value in values.items()]

    route = TERMS | {
        "teacher_url": f'"{teacher_url}"', "engine_url": f'"{engine_url}"', "horizon_s": str(HORIZON_S),
        "teacher_timeout_s": "30.0", "student_timeout_s": "20.0",
    }  # fmt: skip
    canary = {name: msgspec.json.encode(getattr(CANARY, name)).decode() for name in ControllerSettings.__struct_fields__}
    kafka = {"bootstrap_servers": f'"{topics.kafka.bootstrap_servers}"', "prefix": f'"{topics.kafka.prefix}"'}
    path = state / "stillhouse.toml"
    path.write_text("\n".join([f"[routes.{ROUTE}]", *lines(route), "[canary]", *lines(canary), "[kafka]", *lines(kafka), ""]))
    return path


def seed_of(environment: str, default: int) -> int:
    """The seed of a chaos test: its own, or what the environment says."""
    return int(os.environ.get(environment, default))
