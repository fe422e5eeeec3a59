"""No single record may stop a partition: what it holds is stored, or it is in the DLQ."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from pytest_httpserver import HTTPServer

from stillhouse.schemas import codec, registry
from stillhouse.schemas.codec import SchemaPendingError
from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.event_set import WIDE_INTEGER, member, pack, unpack
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.schemas.registry import ConfluentRegistry
from stillhouse.sdk.kafka import confluent_producer_args
from stillhouse.sdk.store import Store
from stillhouse.streams import dlq
from stillhouse.streams.ingest import decode
from stillhouse.streams.ingest.decode import Decoder
from stillhouse.streams.ingest.limits import RatioLimit
from stillhouse.streams.ingest.records import UNATTRIBUTED, source_of
from stillhouse.streams.ingest.status import Labels
from tests.support.events import event, step, trajectory
from tests.support.ingest import Topics, expected_hash, running
from tests.support.waiting import until_async

WIDE = 12345678901234567890123


@dataclass
class Given:
    """A record as a client gives it."""

    value: bytes | None
    offset: int = 0
    headers: tuple[tuple[str, bytes | None], ...] = (("ce_source", b"acme/sdk"),)
    key: bytes | None = b"acme/t-1"
    topic: str = "agent.events"
    partition: int = 0
    timestamp: int = 1


def _decoder() -> Decoder:
    return Decoder(None, RatioLimit(0.5, 1000, 60.0), lambda: 0.0)


def _calling(arguments: dict[str, Any]) -> Message:
    return Message(role="assistant", tool_calls=(ToolCall(id="c", name="f", arguments=arguments),))


def test_integers_beyond_64_bits_are_kept_and_the_identity_of_all_else_is_as_it_was() -> None:
    wide = event(step(0, action=_calling({"n": WIDE, "in": [-WIDE, {"x": 2**64}]})), 1)
    kept = member(wide)
    assert unpack(pack(wide.key, [kept])[1]) == {kept.digest: kept}
    assert member(codec.decode(codec.encode(wide), type(wide))) == kept
    narrow = event(step(0, action=_calling({"n": 2**64 - 1})), 1)
    assert member(narrow).digest.hex() == "200885494640ac925b8222a1ee53e919"
    with pytest.raises(PermanentError, match="extension"):
        unpack(pack(wide.key, [kept])[1].replace(bytes([0xC7, 10, WIDE_INTEGER]), bytes([0xC7, 10, 7])))


@pytest.mark.parametrize("error", [OverflowError("wide"), ValueError("odd"), TypeError("none of JSON's"), RecursionError("deep")])
def test_what_cannot_be_stored_is_rejected_alone(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = trajectory(1)[0], trajectory(2)[0]

    def picky(one: Any) -> Any:
        if one.key == bad.key:
            raise error
        return member(one)

    monkeypatch.setattr(decode, "member", picky)
    found = _decoder().batch([Given(codec.encode(one), place) for place, one in enumerate((good, bad, good))])
    assert [arrived.offset for arrived in found.events] == [0, 2]
    assert [(one.record.offset, one.reason) for one in found.rejected] == [(1, "invalid")]


@pytest.mark.parametrize("status", [400, 404, 405, 410, 422])
def test_a_registry_that_refuses_an_id_has_no_such_schema(httpserver: HTTPServer, status: int) -> None:
    httpserver.expect_request("/schemas/ids/7").respond_with_data("no", status=status)
    assert ConfluentRegistry(httpserver.url_for("/")).by_id(7) is None


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500])
def test_a_registry_that_does_not_answer_the_question_is_asked_again(httpserver: HTTPServer, status: int) -> None:
    httpserver.expect_request("/schemas/ids/7").respond_with_data("no", status=status)
    with pytest.raises(SchemaPendingError):
        ConfluentRegistry(httpserver.url_for("/")).by_id(7)


def test_ids_that_are_not_there_are_remembered_up_to_a_bound(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MOST_ABSENT", 3)
    httpserver.expect_request(re.compile("/schemas/ids/.*")).respond_with_data("no", status=404)
    asked = ConfluentRegistry(httpserver.url_for("/"))
    for schema_id in (1, 2, 3, 4, 4, 3, 1):
        assert asked.by_id(schema_id) is None
    assert [int(request.path.rpartition("/")[2]) for request, _ in httpserver.log] == [1, 2, 3, 4, 1]


def test_a_label_that_others_choose_has_a_hundred_values_and_then_one() -> None:
    label = Labels()
    assert [label(str(n)) for n in range(100)] == [str(n) for n in range(100)]
    assert (label("new"), label("newer"), label("7")) == ("other", "other", "7")


def test_a_header_without_a_value_names_no_source_and_stays_as_it_is() -> None:
    empty = (("ce_source", None), ("x", None))
    assert source_of(Given(b"", headers=empty)) == UNATTRIBUTED
    assert source_of(Given(b"", headers=(*empty, ("ce_source", b"a\xff")))) == "a\ufffd"
    sent = dlq.headers_of(empty, stage="decode", reason="empty", detail="", topic="t", partition=0, offset=0, key=None)
    assert sent[:2] == [("ce_source", None), ("x", None)]


def _produce(topics: Topics, value: bytes, key: str) -> None:
    producer: Any = Producer(confluent_producer_args(topics.kafka))
    producer.produce(topics.events, value, key=key, headers=[("ce_source", None), ("other", None)])
    assert producer.flush(30) == 0


async def test_wide_numbers_and_null_headers_become_rows(topics: Topics, store: Store, tmp_path: Path) -> None:
    run = trajectory(1)
    run[1] = event(step(0, action=_calling({"number": WIDE})), 1, at=1)
    for one in run:
        _produce(topics, codec.encode(one), one.key)
    _produce(topics, b"garbage", run[0].key)
    async with running(topics, store):
        await until_async(lambda: topics.unread() == 0, "all committed")
    assert store.table_hash() == expected_hash(tmp_path / "expected", run)
    calls = [call for message in store.load(["acme/t-1"])["acme/t-1"].messages() for call in message.tool_calls]
    assert WIDE in [call.arguments.get("number") for call in calls]
    (letter,) = dlq.entries(topics.kafka)
    assert (letter.reason, dict(letter.headers)["other"]) == ("framing", None)
