"""The controller as a process: killed at any time, doubled, and with its broker gone, it changes nothing but time."""

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from stillhouse.schemas.facts import StudentStage
from stillhouse.schemas.route_state import RouteState
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.serving.canary.publish import StudentsLog
from stillhouse.serving.canary.settings import ControllerSettings
from tests.serving.canary_process.conftest import PARTITIONS
from tests.serving.canary_process.world import ROUTE, SETTINGS, World, registered
from tests.support.brokers import RunningBroker
from tests.support.cli import CLEAN
from tests.support.waiting import PAUSE_S, until_async

CANARY = {name: getattr(SETTINGS, name) for name in ControllerSettings.__struct_fields__} | {"look_s": 0.1}


class Running:
    """One controller process."""

    def __init__(self, config: Path, state: Path, log: Path) -> None:
        command = [sys.executable, "-m", "stillhouse.serving.canary", "--config", str(config), "--state", str(state)]
        with log.open("ab") as err:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, text=True, env=CLEAN)

    def ready(self) -> dict[str, Any]:
        """Its one line."""
        assert self.process.stdout is not None
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        return said

    def end(self, number: int) -> int:
        """Send a signal, and wait until it is gone."""
        self.process.send_signal(number)
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def launch(tmp_path: Path, kafka: KafkaSettings) -> Iterator[Callable[[], Running]]:
    config, started = tmp_path / "stillhouse.toml", list[Running]()
    config.write_text(
        f'[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\nprefix = "{kafka.prefix}"\n'
        f'[routes.{ROUTE}]\nteacher_url = "http://127.0.0.1:1/v1"\nteacher_model = "t"\nhorizon_s = 5\n'
        "[canary]\n" + "".join(f"{name} = {msgspec.json.encode(value).decode()}\n" for name, value in CANARY.items())
    )

    def launch() -> Running:
        started.append(Running(config, tmp_path / "state", tmp_path / "controller.log"))
        return started[-1]

    yield launch
    for one in started:
        if one.process.poll() is None:
            one.end(signal.SIGKILL)
    assert "Traceback" not in (tmp_path / "controller.log").read_text()


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        body: bytes = answer.read()
        return body.decode()


async def breath() -> None:
    """Leave the cores to the controllers for a moment."""
    await asyncio.wait({asyncio.ensure_future(asyncio.Event().wait())}, timeout=PAUSE_S)


async def follow(log: StudentsLog) -> RouteState:
    await log.catch_up()
    return log.students.states.of(ROUTE)


async def test_killed_at_any_time_and_doubled_they_make_one_history(launch: Callable[[], Running], kafka: KafkaSettings) -> None:
    world, log, random = World(kafka, PARTITIONS, now=time.time_ns() // 1000), StudentsLog(kafka), Random(4)
    await log.start()
    world.traffic(RouteState(route=ROUTE), 60)
    world.ripen()
    await log.publish(registered("student-1", world.now))
    controllers, fed, kills = [launch(), launch()], dict[int, int](), 0
    deadline = time.monotonic() + 200
    while (state := await follow(log)).champion is None:
        assert time.monotonic() < deadline, log.students.decisions
        if state.canary is not None and fed.setdefault(state.offset, 0) < 160:
            world.traffic(state, 20)
            fed[state.offset] += 20
        world.ripen()
        # Whatever it is doing: starting, reading, deciding, or between a verdict and its decision.
        if kills < 10 and random.random() < 0.3:
            victim, kills = random.randrange(2), kills + 1
            controllers[victim].end(signal.SIGKILL)
            controllers[victim] = launch()
        await breath()
    assert kills >= 3
    followed = [d.record for d in log.students.decisions if d.accepted and d.record.stage is not StudentStage.REGISTERED]
    assert [r.stage.value for r in followed] == ["shadow", "canary", "canary", "champion"]
    assert [(r.share, r.final) for r in followed[1:3]] == [(0.25, False), (0.5, True)]
    assert len({record.prev for record in followed}) == len(followed)
    await log.stop()


async def test_it_says_what_it_waits_for_and_stops_in_order(launch: Callable[[], Running], kafka: KafkaSettings) -> None:
    one = launch()
    said = one.ready()
    assert (said["ready"], said["pid"]) == ("canary", one.process.pid)
    assert json.loads(read(f"{said['url']}/readyz")) == {"ok": True, "waits": {ROUTE: "no_student"}}
    assert json.loads(read(f"{said['url']}/healthz"))["ok"] is True
    assert f'stillhouse_canary_running{{route="{ROUTE}"}} 0.0' in read(said["metrics"])
    assert one.end(signal.SIGTERM) == 0


async def test_a_broker_that_is_away_is_waited_for(launch: Callable[[], Running], kafka: KafkaSettings, broker: RunningBroker) -> None:
    one = launch()
    said = one.ready()
    broker.kill()
    await until_async(lambda: "stillhouse_canary_errors_total 0.0" not in read(said["metrics"]), "an early end of a look")
    broker.restart()
    log = StudentsLog(kafka)
    await log.start()
    await log.publish(registered("student-1"))
    await until_async(lambda: '"no_history"' in read(f"{said['url']}/readyz"), "the release of the student")
    await log.stop()
    assert one.end(signal.SIGTERM) == 0


def test_without_a_broker_it_ends_as_not_reachable(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stillhouse.serving.canary", "--bootstrap-servers", "127.0.0.1:1", "--state", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=CLEAN, cwd=tmp_path)
    assert ended.returncode == 3
    assert json.loads(ended.stderr.splitlines()[-1])["error"].startswith("no Kafka broker answers")


def test_settings_that_leave_no_control_are_refused_at_the_start(tmp_path: Path) -> None:
    config = tmp_path / "stillhouse.toml"
    config.write_text(f'[routes.{ROUTE}]\nteacher_url = "http://127.0.0.1:1/v1"\nteacher_model = "t"\nholdback = 0.6\n')
    command = [sys.executable, "-m", "stillhouse.serving.canary", "--config", str(config), "--state", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=CLEAN, cwd=tmp_path)
    assert (ended.returncode, json.loads(ended.stderr.splitlines()[-1])["kind"]) == (2, "UsageError")


def test_nothing_heavy_is_in_the_process() -> None:
    code = "import sys, stillhouse.serving.canary.__main__; print(sorted({'torch', 'transformers', 'lancedb'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
