"""Values as bytes: what is written is read, and nothing else is."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import fastavro
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.schemas import codec_schemas
from stillhouse.schemas.codec import (
    KINDS,
    SchemaPendingError,
    UndecodableError,
    decode,
    decode_any,
    encode,
    fingerprint,
    headers_for,
    schema_record,
)
from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import (
    AgentEvent,
    Body,
    ClientReport,
    FeedbackGiven,
    Policy,
    StepTaken,
    Task,
    TrajectoryEnded,
    TrajectoryStarted,
)
from stillhouse.schemas.facts import Erasure, TrajectoryFacts, Watermark
from stillhouse.schemas.messages import Message
from tests.schemas.samples import GOLDEN, SAMPLES, STEP, event, golden_name

EVENT = event(STEP)
DATA = encode(EVENT)


class Answers:
    """A resolver with fixed answers."""

    def __init__(self, schema: dict[str, Any] | None = None, error: Exception | None = None) -> None:
        self.schema, self.error, self.asked = schema, error, 0

    def by_fingerprint(self, fingerprint: bytes, /) -> dict[str, Any] | None:
        self.asked += 1
        return self.schema

    def by_id(self, schema_id: int, /) -> dict[str, Any] | None:
        self.asked += 1
        if self.error:
            raise self.error
        return self.schema


def reason(data: bytes, kind: type = AgentEvent, resolver: Any = None) -> str:
    with pytest.raises(UndecodableError) as error:
        decode(data, kind, resolver)
    return error.value.reason


def changed(schema: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A copy of a record schema with other fields added at its end."""
    copy: dict[str, Any] = json.loads(json.dumps(schema))
    copy["fields"] += [{"name": name, **rest} for name, rest in fields.items()]
    return copy


def written(schema: dict[str, Any], record: dict[str, Any]) -> bytes:
    """A record as a foreign producer writes it: single-object encoding with its own schema."""
    from io import BytesIO

    parsed = codec_schemas.parse(schema)
    out = BytesIO(b"\xc3\x01" + parsed.fingerprint)
    out.seek(10)
    fastavro.schemaless_writer(out, parsed.parsed, record)
    return out.getvalue()


@pytest.mark.parametrize("stem", SAMPLES)
def test_every_value_comes_back(stem: str) -> None:
    value = SAMPLES[stem]
    assert decode(encode(value), type(value)) == value
    assert decode_any(encode(value)) == value


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.bin")), ids=lambda p: p.stem)
def test_golden_files_of_every_release_are_read_as_their_json_says(path: Path) -> None:
    kind = next(k for k in KINDS if k.__name__ == path.name.partition("-")[0])
    value: Any = decode(path.read_bytes(), kind)
    assert value == msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=kind)


def test_the_newest_release_has_golden_files_for_everything_and_writes_them() -> None:
    for stem, value in SAMPLES.items():
        assert (GOLDEN / f"{golden_name(stem)}.bin").read_bytes() == encode(value), stem
    assert {stem.partition(".")[0] for stem in SAMPLES} == {kind.__name__ for kind in KINDS}


def test_optional_fields_may_be_absent() -> None:
    bodies: list[Body] = [
        TrajectoryStarted(),
        StepTaken(action=Message(role="assistant")),
        TrajectoryEnded(),
        FeedbackGiven(),
        ClientReport(),
    ]
    for body in bodies:
        bare = AgentEvent(event_id="e", tenant="t", trajectory_id="r", occurred_at=0, body=body)
        assert decode(encode(bare), AgentEvent) == bare


def test_the_framing_is_single_object_encoding() -> None:
    schema = json.loads((codec_schemas.FOLDER / "AgentEvent" / "1.0.0.avsc").read_text())
    assert DATA[:2] == b"\xc3\x01"
    assert DATA[2:10] == fingerprint(schema)


def test_the_fingerprint_is_the_specification_s() -> None:
    # Known value: CRC-64-AVRO of the canonical form of "int" is 7275d51a3f395c8f (Avro's own test vectors), little-endian here.
    from fastavro.schema import fingerprint as of_text

    assert bytes.fromhex(of_text('"int"', "CRC-64-AVRO"))[::-1].hex() == "7275d51a3f395c8f"
    bare = {"type": "record", "name": "x.R", "fields": [{"name": "a", "type": "int"}]}
    assert fingerprint(bare | {"doc": "words"}) == fingerprint(bare)


@pytest.mark.parametrize("stem", SAMPLES)
def test_a_value_that_is_cut_off_anywhere_is_refused(stem: str) -> None:
    value: Any = SAMPLES[stem]
    data = encode(value)
    for length in range(10, len(data)):
        assert reason(data[:length], type(value)) == "corrupt", length


def test_bytes_after_the_value_are_refused() -> None:
    assert reason(DATA + b"\0") == "corrupt"
    assert reason(DATA + DATA) == "corrupt"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"{}", "framing"),
        (b"\xc3\x01abc", "framing"),
        (b"\0\0\0", "framing"),
        (b"\xc3\x01" + b"8" * 8, "unknown_fingerprint"),
    ],
)
def test_what_is_no_value_of_ours(data: bytes, expected: str) -> None:
    assert reason(data) == expected


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_undecodable(tail: bytes) -> None:
    for kind in (AgentEvent, TrajectoryFacts):
        try:
            decode(codec_schemas.newest(kind.__name__).fingerprint.join((b"\xc3\x01", tail)), kind)
        except UndecodableError as error:
            assert error.reason in ("corrupt", "invalid")


@given(st.integers(10, len(DATA) - 1), st.integers(0, 255))
def test_a_damaged_byte_is_a_value_or_undecodable(place: int, byte: int) -> None:
    try:
        decode(DATA[:place] + bytes([byte]) + DATA[place + 1 :], AgentEvent)
    except UndecodableError as error:
        assert error.reason in ("corrupt", "invalid")


def test_another_record_is_invalid_and_named() -> None:
    assert reason(DATA, Erasure) == "invalid"
    with pytest.raises(UndecodableError, match="a AgentEvent where one of TrajectoryFacts, Watermark belongs"):
        decode_any(DATA, (TrajectoryFacts, Watermark))


def test_invalid_content_is_named() -> None:
    record = {"event_id": "", "tenant": "t", "trajectory_id": "r", "occurred_at": 0}
    schema = codec_schemas.newest("AgentEvent").schema
    body: Any = ("stillhouse.ClientReport", {"dropped": {}})
    assert reason(written(schema, record | {"body": body})) == "invalid"
    broken = ("stillhouse.StepTaken", {"action": '{"role": "robot"}'})
    assert reason(written(schema, record | {"event_id": "e", "body": broken})) == "invalid"


def test_what_the_schema_does_not_allow_is_not_written() -> None:
    for bad in (
        msgspec.structs.replace(EVENT, tenant=None),
        msgspec.structs.replace(EVENT, occurred_at=2**70),
        msgspec.structs.replace(EVENT, agent="\ud800"),
    ):
        with pytest.raises(PermanentError, match="AgentEvent"):
            encode(bad)
    with pytest.raises(PermanentError):
        encode(object())


def test_a_newer_writer_is_read_through_its_own_schema() -> None:
    newer = changed(codec_schemas.newest("Erasure").schema, ticket={"type": "string", "default": ""})
    data = written(newer, {"tenant": "t", "subject": "s", "requested_at": 5, "reason": "r", "ticket": "long enough to be misread"})
    resolver = Answers(newer)
    assert reason(data, Erasure) == "unknown_fingerprint"
    assert decode(data, Erasure, resolver) == Erasure(tenant="t", subject="s", requested_at=5, reason="r")
    decode(data, Erasure, resolver)
    assert resolver.asked == 1


def test_a_newer_enum_symbol_becomes_unknown() -> None:
    text = json.dumps(codec_schemas.newest("AgentEvent").schema).replace('"script"]', '"script", "swarm"]')
    record = {"event_id": "e", "tenant": "t", "trajectory_id": "r", "occurred_at": 0, "policy_role": "swarm"}
    data = written(json.loads(text), record | {"body": ("stillhouse.ClientReport", {})})
    assert decode(data, AgentEvent, Answers(json.loads(text))).policy == Policy()


def test_a_newer_body_waits_for_an_upgrade_as_invalid() -> None:
    newer = changed(codec_schemas.newest("AgentEvent").schema)
    body = next(field for field in newer["fields"] if field["name"] == "body")
    body["type"].append({"type": "record", "name": "Paused", "fields": []})
    data = written(newer, {"event_id": "e", "tenant": "t", "trajectory_id": "r", "occurred_at": 0, "body": ("stillhouse.Paused", {})})
    assert reason(data, AgentEvent, Answers(newer)) == "invalid"


def test_a_resolver_that_answers_with_another_schema_is_not_believed() -> None:
    assert reason(b"\xc3\x01" + b"7" * 8 + DATA[10:], resolver=Answers(codec_schemas.newest("AgentEvent").schema)) == "unknown_fingerprint"
    assert reason(b"\0\0\0\0\x07" + DATA[10:], resolver=Answers({"type": "nonsense"})) == "invalid"
    assert reason(b"\0\0\0\0\x07" + DATA[10:], resolver=Answers({"type": "record", "name": "Other", "fields": []})) == "invalid"


def test_confluent_framing_both_ways() -> None:
    data = encode(EVENT, schema_id=258)
    assert data[:5] == b"\0\0\0\x01\x02"
    resolver = Answers(codec_schemas.newest("AgentEvent").schema)
    assert decode(data, AgentEvent, resolver) == EVENT == decode(data, AgentEvent, resolver)
    assert resolver.asked == 1
    assert reason(data) == "unknown_schema_id"
    assert reason(data, resolver=Answers(None)) == "unknown_schema_id"


def test_a_registry_that_is_away_is_retryable() -> None:
    with pytest.raises(SchemaPendingError):
        decode(encode(EVENT, schema_id=1), AgentEvent, Answers(error=SchemaPendingError("away")))


def test_schema_records_name_themselves() -> None:
    for kind in KINDS:
        key, value = schema_record(kind)
        assert fingerprint(json.loads(value)).hex().encode() == key


def test_cloudevents_headers() -> None:
    headers = dict(headers_for(EVENT, "sdk"))
    assert headers["ce_source"] == b"acme%2Feu/sdk"
    assert headers["ce_id"] == EVENT.event_id.encode()
    assert headers["ce_type"] == b"stillhouse.StepTaken"
    assert headers["ce_specversion"] == b"1.0"
    assert headers["content-type"] == b"application/vnd.apache.avro+binary"
    assert datetime.fromisoformat(headers["ce_time"].decode()).timestamp() == pytest.approx(EVENT.occurred_at / 1e6)
    assert "ce_time" not in dict(headers_for(msgspec.structs.replace(EVENT, occurred_at=2**62), "sdk"))


def _flat(kind: type) -> set[str]:
    nested = {Policy: "policy_"} if kind is AgentEvent else {}
    names = set()
    for field in msgspec.structs.fields(kind):
        names |= {nested[field.type] + f.name for f in msgspec.structs.fields(field.type)} if field.type in nested else {field.name}
    return names


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_schemas_and_classes_have_the_same_fields(kind: type) -> None:
    assert {field["name"] for field in codec_schemas.newest(kind.__name__).schema["fields"]} == _flat(kind)


def test_every_enum_has_the_default_unknown() -> None:
    found = []

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("type") == "enum":
                found.append(node["name"])
                assert node["default"] == node["symbols"][0] == "unknown"
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    for kind in KINDS:
        visit(codec_schemas.newest(kind.__name__).schema)
    assert {"PolicyRole", "Outcome", "FeedbackSource", "TeacherTaskKind", "StudentStage"} <= set(found)


@given(
    st.builds(Task, id=st.none() | st.text(max_size=5), family=st.none() | st.text(max_size=5)),
    st.integers(-(2**63), 2**63 - 1),
    st.dictionaries(
        st.text(max_size=4), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4), max_size=3
    ),
)
def test_round_trip_of_any_content(task: Task, occurred_at: int, tool: dict[str, Any]) -> None:
    body = TrajectoryStarted(task=task, tools=(tool,))
    value = AgentEvent(event_id="e", tenant="t", trajectory_id="r", occurred_at=occurred_at, body=body)
    assert decode(encode(value), AgentEvent) == value
