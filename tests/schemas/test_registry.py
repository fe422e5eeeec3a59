"""Where writers' schemas come from when they are none of our releases."""

import json
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from stillhouse.schemas.codec import SchemaPendingError, decode, encode, schema_record
from stillhouse.schemas.codec_schemas import newest
from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import AgentEvent
from stillhouse.schemas.fingerprint import fingerprint
from stillhouse.schemas.registry import ConfluentRegistry, Resolvers, TopicResolver
from tests.schemas.samples import STEP, event

SCHEMA = newest("AgentEvent").schema


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_topic_teaches_schemas_by_fingerprint() -> None:
    topic = TopicResolver()
    key, value = schema_record(AgentEvent)
    assert topic.by_fingerprint(fingerprint(SCHEMA)) is None
    assert topic.feed(key, value) == fingerprint(SCHEMA)
    topic.feed(key, value)
    assert topic.by_fingerprint(fingerprint(SCHEMA)) == SCHEMA
    assert len(topic) == 1
    assert topic.by_id(1) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [(b"00", json.dumps(SCHEMA).encode()), (None, None), (b"x", b"{"), (b"\xff", b"{}"), (b"x", b'{"type": "string"}'), (b"x", b"[]")],
)
def test_the_topic_believes_no_record_that_does_not_fit_its_key(key: bytes | None, value: bytes | None) -> None:
    topic = TopicResolver()
    with pytest.raises(PermanentError):
        topic.feed(key, value)
    assert len(topic) == 0


def test_ids_are_asked_for_once(httpserver: HTTPServer) -> None:
    httpserver.expect_ordered_request("/schemas/ids/7", headers={"Authorization": "Basic bWU6cHc="}).respond_with_json(
        {"schema": json.dumps(SCHEMA)}
    )
    registry = ConfluentRegistry(httpserver.url_for("/"), "me", "pw")
    data = encode(event(STEP), schema_id=7)
    assert decode(data, AgentEvent, registry) == event(STEP)
    assert registry.by_id(7) == SCHEMA
    assert registry.by_fingerprint(b"8" * 8) is None
    assert len(httpserver.log) == 1


def test_an_unknown_id_is_asked_for_again_after_a_while(httpserver: HTTPServer) -> None:
    clock = Clock()
    registry = ConfluentRegistry(httpserver.url_for("/"), clock=clock)
    httpserver.expect_ordered_request("/schemas/ids/7").respond_with_json({"error_code": 40403}, status=404)
    httpserver.expect_ordered_request("/schemas/ids/7").respond_with_json({"schema": json.dumps(SCHEMA)})
    assert registry.by_id(7) is None
    clock.now = 29
    assert registry.by_id(7) is None
    clock.now = 31
    assert registry.by_id(7) == SCHEMA


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_a_registry_that_fails_is_pending(httpserver: HTTPServer, status: int) -> None:
    httpserver.expect_request("/schemas/ids/7").respond_with_data("no", status=status)
    with pytest.raises(SchemaPendingError, match=str(status)):
        ConfluentRegistry(httpserver.url_for("/")).by_id(7)


def test_a_registry_that_is_away_is_pending() -> None:
    with pytest.raises(SchemaPendingError, match="does not answer"):
        ConfluentRegistry("http://127.0.0.1:9").by_id(7)


@pytest.mark.parametrize("answer", [{"schema": "{", "x": 1}, {}, {"schemaType": "JSON", "schema": "{}"}, {"schema": '"string"'}])
def test_what_is_no_avro_record_is_unknown(httpserver: HTTPServer, answer: dict[str, Any]) -> None:
    httpserver.expect_request("/schemas/ids/7").respond_with_json(answer)
    assert ConfluentRegistry(httpserver.url_for("/")).by_id(7) is None


def test_answers_that_are_no_object_are_pending(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/schemas/ids/7").respond_with_data("<html>")
    httpserver.expect_request("/schemas/ids/8").respond_with_json([])
    for schema_id in (7, 8):
        with pytest.raises(SchemaPendingError):
            ConfluentRegistry(httpserver.url_for("/")).by_id(schema_id)


def test_registration(httpserver: HTTPServer) -> None:
    registry = ConfluentRegistry(httpserver.url_for("/"))
    path = "/subjects/agent.events-value/versions"
    httpserver.expect_ordered_request(path, method="POST", json={"schema": json.dumps(SCHEMA)}).respond_with_json({"id": 12})
    httpserver.expect_ordered_request(path).respond_with_json({"message": "incompatible"}, status=409)
    httpserver.expect_ordered_request(path).respond_with_json({})
    assert registry.register("agent.events-value", SCHEMA) == 12
    for _ in range(2):
        with pytest.raises(PermanentError):
            registry.register("agent.events-value", SCHEMA)


def test_the_first_resolver_that_knows_answers(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/schemas/ids/7").respond_with_json({"schema": json.dumps(SCHEMA)})
    topic = TopicResolver()
    both = Resolvers([topic, ConfluentRegistry(httpserver.url_for("/"))])
    assert both.by_fingerprint(fingerprint(SCHEMA)) is None
    topic.feed(*schema_record(AgentEvent))
    assert both.by_fingerprint(fingerprint(SCHEMA)) == SCHEMA
    assert both.by_id(7) == SCHEMA
