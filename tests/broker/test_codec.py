"""The wire codec: every version of every message, and agreement with aiokafka's own reading of it."""

import random
from typing import Any

import pytest
from aiokafka.protocol.api import RequestStruct
from aiokafka.protocol.commit import OffsetFetchRequest_v3
from aiokafka.protocol.fetch import FetchRequest_v11
from aiokafka.protocol.group import JoinGroupRequest_v5, SyncGroupRequest_v3
from aiokafka.protocol.metadata import MetadataRequest_v5
from aiokafka.protocol.offset import OffsetRequest_v3
from aiokafka.protocol.produce import ProduceRequest_v8
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.broker.codec import DecodeError, Field, Message, Reader, parse, varint
from stillhouse.broker.connection import HANDLERS
from stillhouse.broker.messages import APIS, Api

VERSIONS = [(api, version) for api in APIS.values() for version in range(api.first, api.last + 1)]
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "i8": st.integers(-(2**7), 2**7 - 1),
    "i16": st.integers(-(2**15), 2**15 - 1),
    "i32": st.integers(-(2**31), 2**31 - 1),
    "i64": st.integers(-(2**63), 2**63 - 1),
    "str": st.text(max_size=200),
    "bytes": st.binary(max_size=200),
}


def messages(fields: list[Field], version: int) -> st.SearchStrategy[Message]:
    return st.fixed_dictionaries({f.name: values(f, version) for f in fields if f.first <= version <= f.last})


def values(field: Field, version: int) -> st.SearchStrategy[Any]:
    one = KINDS[field.kind] if field.fields is None else messages(field.fields, version)
    strategy = st.lists(one, max_size=2) if field.array else one
    return st.none() | strategy if field.null else strategy


def with_defaults(message: Message, fields: list[Field]) -> Message:
    """What a reader sees: bytes compare as bytes, and fields of other versions have their defaults."""
    full: Message = {}
    for field in fields:
        value = message.get(field.name, field.default())
        if field.fields is not None and value is not None:
            value = [with_defaults(item, field.fields) for item in value]
        full[field.name] = value
    return full


def encoded(api: Api, schema: str, version: int, message: Message) -> bytes:
    chunks: list[bytes | memoryview] = []
    api.codec(schema, version).encode(message, chunks)
    return b"".join(chunks)


@given(st.data())
def test_what_is_written_is_read(data: st.DataObject) -> None:
    api, version = data.draw(st.sampled_from(VERSIONS))
    schema = data.draw(st.sampled_from([api.request, api.response]))
    fields = parse(schema)
    message = data.draw(messages(fields, version))
    wire = encoded(api, schema, version, message)
    reader = Reader(wire)
    assert api.codec(schema, version).decode(reader) == with_defaults(message, fields)
    assert reader.position == len(wire)
    cut = data.draw(st.integers(0, max(len(wire) - 1, 0)))
    if cut < len(wire):
        with pytest.raises(DecodeError):
            api.codec(schema, version).decode(Reader(wire[:cut]))


@given(st.sampled_from(VERSIONS), st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(what: tuple[Api, int], noise: bytes) -> None:
    api, version = what
    try:
        api.codec(api.request, version).decode(Reader(noise))
    except DecodeError:
        pass


@given(st.integers(0, 2**32 - 1))
def test_varints(value: int) -> None:
    assert Reader(varint(value)).varint() == value


def test_unknown_tags_are_skipped() -> None:
    codec = APIS[12].codec(APIS[12].request, 4)
    wire = encoded(APIS[12], APIS[12].request, 4, {"group": "g", "generation": 3, "member": "m"})
    tagged = wire[:-1] + b"\x02" + b"\x00\x03abc" + b"\x07\x00"
    assert codec.decode(Reader(tagged)) == {"group": "g", "generation": 3, "member": "m", "instance": None}


def test_a_name_that_no_version_has_is_an_error() -> None:
    with pytest.raises(KeyError, match="offest"):
        encoded(APIS[0], APIS[0].response, 8, {"topics": [{"partitions": [{"offest": 1}]}]})


def test_a_malformed_schema_is_an_error() -> None:
    for schema in ("a:i32 b[c:i32", "a=i32"):
        with pytest.raises(ValueError, match="schema"):
            parse(schema)


def test_every_message_but_api_versions_has_a_handler() -> None:
    assert {api.name for api in APIS.values()} == HANDLERS.keys() | {"api_versions"}


ANOTHER_READER: list[type[RequestStruct]] = [
    ProduceRequest_v8,
    FetchRequest_v11,
    OffsetRequest_v3,  # aiokafka's 4 and 5 read the leader epoch as 8 bytes; it does not use them
    MetadataRequest_v5,
    OffsetFetchRequest_v3,
    JoinGroupRequest_v5,
    SyncGroupRequest_v3,
]


@pytest.mark.parametrize("theirs", ANOTHER_READER, ids=lambda theirs: theirs.__name__)
def test_aiokafka_reads_the_same(theirs: type[RequestStruct]) -> None:
    """Same bytes, same field order and widths: encode random answers with ours, read them with aiokafka's, encode again."""
    api, version, rng = APIS[theirs.API_KEY], theirs.API_VERSION, random.Random(7)
    for schema, struct in ((api.request, theirs), (api.response, theirs.RESPONSE_TYPE)):
        for _ in range(20):
            wire = encoded(api, schema, version, filled(parse(schema), version, rng))
            assert struct.decode(wire).encode() == wire


def filled(fields: list[Field], version: int, rng: random.Random) -> Message:
    def value(field: Field) -> Any:
        if field.fields is not None:
            return filled(field.fields, version, rng)
        if field.kind == "bool":
            return rng.random() < 0.5
        return {"str": f"s{rng.random()}", "bytes": rng.randbytes(9)}.get(field.kind, rng.randrange(100))

    present = [f for f in fields if f.first <= version <= f.last]
    return {f.name: [value(f) for _ in range(rng.randrange(3))] if f.array else value(f) for f in present}
