"""The supervisor: order, announcements, restarts, orphans, one stack a folder."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.console.stack import record as records
from stillhouse.console.stack.process import Process, create_time, same_process
from stillhouse.console.stack.stack import Stack, StackEvent
from stillhouse.schemas.errors import PermanentError
from tests.support.parts import failing, listener, sometimes
from tests.support.pipes import open_pipes


class Events:
    """What a stack said, with a way to wait for more."""

    def __init__(self) -> None:
        self.seen: list[StackEvent] = []
        self._more = asyncio.Event()

    def __call__(self, event: StackEvent) -> None:
        self.seen.append(event)
        self._more.set()

    async def wait_for(self, part: str, what: str, times: int = 1) -> None:
        async with asyncio.timeout(30):
            while sum(e.part == part and e.what == what for e in self.seen) < times:
                self._more.clear()
                await self._more.wait()


async def _no_wait(seconds: float) -> None:
    await asyncio.sleep(0)


async def test_parts_start_in_order_and_later_ones_hear_of_earlier_ones(tmp_path: Path) -> None:
    events = Events()
    async with Stack(tmp_path, parts=(listener("broker"), listener("ingest", after=("broker",))), on_event=events) as stack:
        record = records.running(tmp_path)
        assert list(record.pids) == ["broker", "ingest"]
        assert all(p.alive for p in record.pids.values())
        assert stack._ready["ingest"]["heard"] == [stack._ready["broker"]["url"]]
    assert [(e.part, e.what) for e in events.seen][-2:] == [("ingest", "stopped"), ("broker", "stopped")]
    assert not any(p.alive for p in record.pids.values())
    assert records.read(tmp_path) is None


async def test_a_killed_part_comes_back_at_its_address(tmp_path: Path) -> None:
    events = Events()
    async with Stack(tmp_path, parts=(listener("broker"),), on_event=events, sleep=_no_wait) as stack:
        before = stack._ready["broker"]["url"]
        for times in (1, 2):
            os.kill(stack.record.pids["broker"].pid, signal.SIGKILL)
            await events.wait_for("broker", "ready", times + 1)
        assert stack._ready["broker"]["url"] == before
        assert stack.record.pids["broker"].alive


async def test_restarts_are_counted_where_status_reads_them(tmp_path: Path) -> None:
    events = Events()
    async with Stack(tmp_path, parts=(listener("broker"),), on_event=events, sleep=_no_wait) as stack:
        os.kill(stack.record.pids["broker"].pid, signal.SIGKILL)
        await events.wait_for("broker", "ready", 2)
        async with asyncio.timeout(10):
            while records.running(tmp_path).restarts != {"broker": 1}:
                await asyncio.sleep(0)


async def test_a_part_that_does_not_start_stops_the_rest_and_says_why(tmp_path: Path) -> None:
    events = Events()
    with pytest.raises(PermanentError, match=r"ingest did not start.*the disk is full, make room"):
        await Stack(tmp_path, parts=(listener("broker"), failing("ingest")), on_event=events).start()
    assert ("broker", "stopped") in [(e.part, e.what) for e in events.seen]
    assert records.read(tmp_path) is None


@pytest.mark.parametrize("lingers", [False, True])
async def test_a_process_that_says_nothing_in_time_leaves_no_pipe(tmp_path: Path, lingers: bool) -> None:
    """Also where a child of its own holds its output for a moment longer than it lives."""
    script = "import signal, subprocess, sys\n" + ("subprocess.Popen(['sleep', '1'])\n" if lingers else "")
    silent = Process("silent", (sys.executable, "-c", script + "signal.sigwait([signal.SIGTERM])"), tmp_path / "log", {})
    before = open_pipes()
    with pytest.raises(PermanentError, match=r"silent did not get ready in 0.5 s"):
        await silent.start(0.5)
    assert open_pipes() == before


async def test_a_part_that_ends_again_and_again_is_given_up_with_its_reason(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    async with Stack(tmp_path, parts=(sometimes("ingest", str(flag)),), sleep=_no_wait) as stack:
        flag.touch()
        os.kill(stack.record.pids["ingest"].pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            with pytest.raises(PermanentError, match=r"ingest did not start.*flag is up"):
                await stack.wait()


async def test_one_stack_a_state_folder(tmp_path: Path) -> None:
    async with Stack(tmp_path, parts=(listener("broker"),)):
        with pytest.raises(PermanentError, match=r"already runs here.*stillhouse down"):
            await Stack(tmp_path, parts=(listener("broker"),)).start()
        assert records.running(tmp_path).pids["broker"].alive


async def test_what_a_killed_supervisor_left_is_ended_before_the_next_start(tmp_path: Path) -> None:
    orphan = subprocess.Popen(
        [sys.executable, "-c", "import signal; print('up', flush=True); signal.sigwait([signal.SIGTERM])"], stdout=subprocess.PIPE
    )
    assert orphan.stdout is not None
    orphan.stdout.readline()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = records.ProcessId(pid=orphan.pid, started=create_time(orphan.pid))
    supervisor = records.ProcessId(pid=dead.pid, started=1.0)
    records.write(tmp_path, records.StackRecord(bootstrap_servers="", supervisor=supervisor, pids={"broker": left}))
    async with Stack(tmp_path, parts=(listener("broker"),)):
        assert same_process(orphan.pid, left.started) is None
    orphan.wait()
    orphan.stdout.close()


def test_a_reused_process_id_is_not_ours() -> None:
    assert same_process(os.getpid(), create_time(os.getpid())) is not None
    assert same_process(os.getpid(), create_time(os.getpid()) - 100) is None
