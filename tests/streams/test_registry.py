"""With a schema registry configured: the SDK frames events under its id, and ingest resolves what others framed."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stillhouse.schemas import codec
from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import AgentEvent
from stillhouse.schemas.fingerprint import Schema
from stillhouse.schemas.registry import ConfluentRegistry
from stillhouse.schemas.topics import DLQ
from stillhouse.sdk.client import Client
from stillhouse.sdk.framing import Framing
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.store import Store
from tests.support.events import event, step, trajectory
from tests.support.ingest import Topics, expected_hash, running
from tests.support.waiting import until, until_async


class Registry:
    """A small schema registry: ids from 41 on, by subject; away, or refusing, when told so."""

    def __init__(self) -> None:
        self.schemas: dict[int, str] = {}
        self.subjects: dict[str, int] = {}
        self.status = 200
        self.asked = 0
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self, body: object) -> None:
                registry.asked += 1
                data = json.dumps(body).encode()
                self.send_response(registry.status if body is not None else 404)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                schema = registry.schemas.get(int(self.path.rpartition("/")[2]))
                self._answer(None if schema is None else {"schema": schema})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if registry.status == 200:
                    number = registry.subjects.setdefault(self.path.split("/")[2], 41 + len(registry.subjects))
                    registry.schemas[number] = body["schema"]
                    self._answer({"id": number})
                else:
                    self._answer({"message": "not now"})

            def log_message(self, format: str, *args: object) -> None:
                """Nothing on standard error."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    yield made
    made.stop()


def _with(topics: Topics, registry: Registry) -> KafkaSettings:
    return msgspec.structs.replace(topics.kafka, schema_registry=registry.url)


async def test_events_go_under_the_registrys_id_and_become_rows(topics: Topics, store: Store, registry: Registry, tmp_path: Path) -> None:
    topics.kafka = _with(topics, registry)
    events = [*trajectory(1), *trajectory(2)]
    with Client(settings=topics.kafka, spool=tmp_path / "spool") as client:
        assert all(client.put(one) for one in events)
    assert {message.value()[:5] for message in topics.read("agent.events")} == {b"\0" + (41).to_bytes(4, "big")}
    assert registry.subjects == {f"{topics.events}-value": 41}
    async with running(topics, store):
        await until_async(lambda: topics.unread() == 0, "all committed")
    assert store.table_hash() == expected_hash(tmp_path / "expected", events)
    assert topics.read(DLQ) == []


async def test_a_registry_that_is_away_stops_no_agent_and_ingest_waits_for_it(
    topics: Topics, store: Store, registry: Registry, tmp_path: Path
) -> None:
    topics.kafka = _with(topics, registry)
    registry.status = 503
    events = trajectory(1)
    with Client(settings=topics.kafka, spool=tmp_path / "spool") as client:
        assert all(client.put(one) for one in events[:3])
    assert {message.value()[:2] for message in topics.read("agent.events")} == {b"\xc3\x01"}
    number = 77
    registry.schemas[number] = json.dumps(_newest())
    asked = registry.asked
    async with running(topics, store) as worker:
        for one in events[3:]:
            topics.raw(codec.encode(one, schema_id=number), key=one.key)
        await until_async(lambda: registry.asked > asked and not worker.status.ready()[0], "it waits for the registry")
        assert topics.unread() > 0
        registry.status = 200
        await until_async(lambda: topics.unread() == 0, "all committed")
    assert store.table_hash() == expected_hash(tmp_path / "expected", events)
    assert topics.read(DLQ) == []


def _newest() -> Schema:
    found: Schema = json.loads(codec.schema_record(type(event(step(0))))[1])
    return found


def test_the_registry_is_asked_again_but_not_for_each_event(registry: Registry) -> None:
    now = 0.0
    registry.status = 503
    framing = Framing(ConfluentRegistry(registry.url), "agent.events", retry_s=30, clock=lambda: now)
    assert [framing.schema_id(wait=10) for _ in range(5)] == [None] * 5
    assert registry.asked == 1
    registry.status, now = 200, 31.0
    assert framing.schema_id(wait=10) == 41
    assert [framing.schema_id() for _ in range(5)] == [41] * 5
    assert registry.asked == 2
    one = event(step(0))
    assert codec.decode(codec.encode(one, schema_id=41), type(one), framing) == one
    assert Framing(None, "agent.events").schema_id(wait=10) is None


def test_a_registry_that_refuses_the_schema_is_not_asked_again(registry: Registry) -> None:
    now = 0.0
    registry.status = 409
    with pytest.raises(PermanentError):
        ConfluentRegistry(registry.url).register("agent.events-value", _newest())
    framing = Framing(ConfluentRegistry(registry.url), "agent.events", clock=lambda: now)
    assert framing.schema_id(wait=10) is None
    until(lambda: registry.asked == 2, "asked")
    now = 1e6
    assert framing.schema_id(wait=10) is None
    assert registry.asked == 2


async def test_the_event_loop_never_waits_for_the_registry(
    topics: Topics, store: Store, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics.kafka = _with(topics, registry)
    number = ConfluentRegistry(registry.url).register("theirs", msgspec.json.decode(codec.schema_record(AgentEvent)[1]))
    threads: list[threading.Thread] = []
    ask = ConfluentRegistry._ask

    def watched(self: ConfluentRegistry, *args: Any) -> Any:
        threads.append(threading.current_thread())
        return ask(self, *args)

    monkeypatch.setattr(ConfluentRegistry, "_ask", watched)
    events = trajectory(1)
    for one in events:
        topics.raw(codec.encode(one, schema_id=number), key=one.key)
    for unknown in range(900, 905):
        topics.raw(codec.encode(events[0], schema_id=unknown), key=events[0].key)
    async with running(topics, store):
        await until_async(lambda: topics.unread() == 0, "all committed")
    assert store.table_hash() == expected_hash(tmp_path / "expected", events)
    assert len(topics.read(DLQ)) == 5
    assert len(threads) == 6 and threading.main_thread() not in threads
