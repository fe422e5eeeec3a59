"""kill -9 of a real student server: nothing is asked of what comes back before it was loaded and attested."""

import os
import signal
from pathlib import Path

import pytest

from stillhouse.serving.gateway.backend import EngineError, Verdict
from stillhouse.serving.gateway.engine import HttpEngine
from tests.serving.engine.test_contract import call
from tests.support.engines import Family, free_port, student_server
from tests.support.waiting import until_async

pytestmark = pytest.mark.model


async def test_a_killed_engine_serves_again_only_what_was_attested_again(tmp_path: Path, family: Family) -> None:
    port = free_port()
    engine = HttpEngine(f"http://127.0.0.1:{port}", family.students, watch_every_s=0.1)
    with student_server(family.base, tmp_path / "log", port) as first:
        await engine.load(family.child)
        await engine.attest(family.child)
        assert (await engine.reply(family.child, call("Thanks."), None)).message["content"] == "Bye."
        os.kill(first.pid, signal.SIGKILL)
        await until_async(lambda: not engine.ready(family.child), "the engine's end is seen")
        with pytest.raises(EngineError) as caught:
            await engine.reply(family.child, call("Thanks."), None)
        assert caught.value.reason == "away"
    with student_server(family.base, tmp_path / "log", port) as second:
        assert second.url == engine.url
        with pytest.raises(EngineError):
            await engine.attest(family.child)
        assert not engine.ready(family.child)
        await engine.load(family.child)
        assert (await engine.attest(family.child)).verdict is Verdict.ACCEPTED
        assert (await engine.reply(family.child, call("Thanks."), None)).message["content"] == "Bye."
        await engine.close()


async def test_a_restart_between_two_looks_is_seen_by_the_process_start(tmp_path: Path, family: Family) -> None:
    """What came back lists the student again, because somebody loaded it: without its start time nothing would look new."""
    port = free_port()
    engine = HttpEngine(f"http://127.0.0.1:{port}", family.students, watch_every_s=3600)
    with student_server(family.base, tmp_path / "log", port) as first:
        await engine.load(family.child)
        await engine.attest(family.child)
        os.kill(first.pid, signal.SIGKILL)
    with student_server(family.base, tmp_path / "log", port) as second:
        second.post("load_lora_adapter", lora_name=family.child, lora_path=str(family.folder(family.child)))
        assert engine.ready(family.child)
        await engine.look()
        assert not engine.ready(family.child)
        await engine.close()


async def test_a_request_that_finds_it_away_is_followed_by_a_look_at_once(tmp_path: Path, family: Family) -> None:
    """Else every request until the next look would be one more error of a student that has done nothing."""
    engine = HttpEngine(f"http://127.0.0.1:{(port := free_port())}", family.students, watch_every_s=3600)
    with student_server(family.base, tmp_path / "log", port) as server:
        await engine.load(family.child)
        await engine.attest(family.child)
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(EngineError):
            await engine.reply(family.child, call("Thanks."), None)
        await until_async(lambda: not engine.ready(family.child), "its end is seen")
        await engine.close()
