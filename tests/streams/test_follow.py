"""The followed topics: nothing that anybody writes there ends ingest, and no erasure is passed over."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import fastavro
import msgspec
import pytest
from aiokafka.errors import KafkaTimeoutError

from stillhouse.schemas import codec
from stillhouse.schemas.codec import SchemaPendingError, UndecodableError
from stillhouse.schemas.errors import PermanentError, UnreachableError
from stillhouse.schemas.facts import Erasure
from stillhouse.schemas.registry import TopicResolver
from stillhouse.schemas.topics import ERASURES, SCHEMAS
from stillhouse.sdk.kafka import topic_name
from stillhouse.streams.ingest.follow import Erasures, Follower
from tests.support.ingest import Topics

DEEP = b"[" * 200_000 + b"]" * 200_000


def _newer(name: str) -> tuple[dict[str, Any], bytes]:
    """A schema of `Erasure` with a field of its own, and an erasure of tenant "acme" that is written with it."""
    schema = msgspec.json.decode(codec.schema_record(Erasure)[1])
    schema["fields"].append({"name": name, "type": "string", "default": ""})
    out = BytesIO(b"\xc3\x01" + codec.fingerprint(schema))
    out.seek(10)
    record = msgspec.to_builtins(Erasure(tenant="acme", subject="s1", requested_at=1)) | {name: "x"}
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return schema, out.getvalue()


def _follower(topics: Topics) -> tuple[Follower, Erasures, TopicResolver]:
    erasures, schemas = Erasures(), TopicResolver()
    return Follower(topics.kafka, erasures, schemas, schemas), erasures, schemas


def _put(topics: Topics, name: str, key: str, value: bytes) -> None:
    topics.raw(value, key=key, topic=topic_name(topics.kafka, name), source=None)


def test_json_too_deep_for_python_is_no_schema() -> None:
    with pytest.raises(PermanentError, match="no JSON"):
        TopicResolver().feed(b"k", DEEP)


async def test_an_erasure_of_another_release_waits_for_its_schema_and_is_applied(topics: Topics) -> None:
    schema, erasure = _newer(f"more_{topics.kafka.prefix}")
    _put(topics, SCHEMAS, "deep", DEEP)
    follower, erasures, schemas = _follower(topics)
    await follower.start()
    try:
        assert len(schemas) == 0
        _put(topics, SCHEMAS, codec.fingerprint(schema).hex(), msgspec.json.encode(schema))
        _put(topics, ERASURES, "acme", erasure)
        await follower.catch_up()
        assert erasures("acme", "s1") and len(erasures.fresh) == 1
        await follower.poll()
        assert len(erasures.fresh) == 1
    finally:
        await follower.stop()


async def test_an_erasure_that_nobody_can_read_is_not_passed_over(topics: Topics) -> None:
    follower, erasures, _ = _follower(topics)
    await follower.start()
    try:
        _put(topics, ERASURES, "acme", _newer("unknown")[1])
        for _ in range(2):
            with pytest.raises(UndecodableError, match="no schema"):
                await follower.catch_up()
        assert erasures.fresh == []
    finally:
        await follower.stop()


async def test_an_erasure_whose_registry_is_away_is_read_when_that_is_back(topics: Topics) -> None:
    class Registry(TopicResolver):
        away = True

        def by_id(self, schema_id: int, /) -> Any:
            if self.away:
                raise SchemaPendingError("away")
            return msgspec.json.decode(codec.schema_record(Erasure)[1])

    registry, erasures = Registry(), Erasures()
    follower = Follower(topics.kafka, erasures, TopicResolver(), registry)
    await follower.start()
    try:
        _put(topics, ERASURES, "acme", codec.encode(Erasure(tenant="acme", subject="s1", requested_at=1), schema_id=9))
        with pytest.raises(SchemaPendingError):
            await follower.catch_up()
        registry.away = False
        await follower.poll()
        assert erasures("acme", "s1")
    finally:
        await follower.stop()


@pytest.mark.parametrize("call", [Follower.poll, Follower.topics, Follower.catch_up])
async def test_a_broker_that_fails_is_a_broker_that_is_away(topics: Topics, call: Callable[[Follower], Any]) -> None:
    class Failing:
        def __getattr__(self, name: str) -> Any:
            async def fails(*_: Any, **__: Any) -> Any:
                raise KafkaTimeoutError(name)

            return fails

    follower, _, _ = _follower(topics)
    follower._consumer = Failing()
    with pytest.raises(UnreachableError):
        await call(follower)
