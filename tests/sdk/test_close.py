"""Closing twice at once: from a signal handler within close, and from two threads. And headers for whatever id a model made."""

import json
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest

from stillhouse.schemas.events import TrajectoryStarted
from stillhouse.sdk import Client, CloseReport, KafkaSettings
from stillhouse.sdk import client as client_module
from tests.support.agents import NO_BROKER, agent, arrived, finish, until


def test_a_signal_handler_may_close_within_close(spool: Path) -> None:
    script = """
import json, signal, sys
from stillhouse.sdk import Client
client = Client(sys.argv[1], spool=sys.argv[2])
handled = []
signal.signal(signal.SIGALRM, lambda *_: handled.append(client.close(1).left))
client.feedback("r")
signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)
left = client.close(2).left
signal.setitimer(signal.ITIMER_REAL, 0)
print(json.dumps([left, handled[0], client.close(0).left]))
"""
    assert json.loads(finish(agent(script, NO_BROKER, spool))) == [1, 1, 1]


def test_a_signal_handler_may_close_and_emit_while_the_thread_is_started(spool: Path) -> None:
    script = """
import json, signal, sys
from stillhouse.sdk import Client, client as module
def handler(*_):
    client.feedback("handler")
class Slow(module.Worker):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        signal.raise_signal(signal.SIGALRM)
client = Client(sys.argv[1], spool=sys.argv[2])
signal.signal(signal.SIGALRM, handler)
client._after_fork()
module.Worker = Slow
client.feedback("first")
print(json.dumps(client.close(0.5).left))
"""
    assert json.loads(finish(agent(script, NO_BROKER, spool))) == 2


def test_a_second_caller_waits_for_its_own_time_only(embedded_kafka: KafkaSettings, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_GRACE_S", 0.0)
    client, held, go = Client(settings=embedded_kafka, spool=spool), threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go.wait(30)

    client._handover.call(hold)
    assert held.wait(30)
    client.feedback("r")
    reports: list[CloseReport] = []
    other = threading.Thread(target=lambda: reports.append(client.close(30)))
    other.start()
    until(lambda: client._closing, "the first caller")
    client.close(0)
    assert other.is_alive() and not reports
    go.set()
    other.join(30)
    assert [(report.left, report.sent) for report in reports] == [(0, 1)]
    assert client.close(0) is reports[0]


@pytest.mark.parametrize(("raw", "sent"), [("run \ud800", "run \ufffd"), ("\ud83d\ude00", "\U0001f600"), ("ü%", "ü%")])
def test_the_headers_name_the_run_that_the_events_name(raw: str, sent: str, embedded_kafka: KafkaSettings, spool: Path) -> None:
    with Client(settings=embedded_kafka, spool=spool) as client:
        t = client.trajectory(task={"id": raw, "family": raw}, trajectory_id=raw)
        headers = t.openai_headers()
    (start,) = arrived(embedded_kafka)
    assert isinstance(start.body, TrajectoryStarted)
    assert {name: unquote(value) for name, value in headers.items()} == {
        "x-stillhouse-trajectory": start.trajectory_id,
        "x-stillhouse-task": start.body.task.id,
        "x-stillhouse-family": start.body.task.family,
    }
    assert start.trajectory_id == sent and all(value.isascii() for value in headers.values())


def test_what_no_header_can_say_is_left_out(spool: Path) -> None:
    class Unfit:
        def __str__(self) -> str:
            raise RuntimeError("no")

    client = Client(NO_BROKER, spool=spool)
    assert client.trajectory(task={"id": Unfit()}, trajectory_id="r").openai_headers() == {"x-stillhouse-trajectory": "r"}
    client.close(0)
