"""Values of the topics as bytes, and back.

Written as Avro single-object encoding (`C3 01`, 8-byte fingerprint) or, when a schema registry gave an id, in Confluent
framing (`00`, 4-byte id); read in either. The writer's schema is always resolved into ours: reading new bytes with an
old schema would truncate silently.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from typing import Any, Literal, Protocol, TypeVar
from weakref import WeakKeyDictionary

import fastavro
import msgspec
from fastavro.read import SchemaResolutionError

from stillhouse.schemas import codec_schemas
from stillhouse.schemas.codec_records import Record, event_from_record, event_to_record
from stillhouse.schemas.codec_schemas import WriterSchema
from stillhouse.schemas.errors import PermanentError, RetryableError
from stillhouse.schemas.events import AgentEvent
from stillhouse.schemas.facts import CanaryVerdict, Erasure, StudentState, TeacherTask, TrajectoryFacts, Watermark
from stillhouse.schemas.fingerprint import Schema, fingerprint

__all__ = [
    "KINDS",
    "SchemaPendingError",
    "SchemaResolver",
    "UndecodableError",
    "decode",
    "decode_any",
    "encode",
    "fingerprint",
    "headers_for",
    "schema_id_of",
    "schema_record",
]

T = TypeVar("T")
Reason = Literal["empty", "framing", "unknown_fingerprint", "unknown_schema_id", "corrupt", "invalid"]

KINDS: tuple[type, ...] = (AgentEvent, TrajectoryFacts, Watermark, TeacherTask, StudentState, CanaryVerdict, Erasure)
CONTENT_TYPE = "application/vnd.apache.avro+binary"

_SINGLE_OBJECT = b"\xc3\x01"
_CONFLUENT = b"\x00"
# Read past the end, these zeros show a length that overran the value, whatever the reader makes of a short read.
_GUARD = bytes(16)
_YEAR_10000 = 253_402_300_800


class UndecodableError(PermanentError):
    """Bytes that never become a value: for the DLQ.

    Args:
        reason: why, as the DLQ's headers and metrics name it.
        what: the same for a person.
    """

    def __init__(self, reason: Reason, what: str) -> None:
        self.reason: Reason = reason
        super().__init__(what, where=reason)


class SchemaPendingError(RetryableError):
    """The registry that knows the writer's schema is away: wait, never the DLQ."""


class SchemaResolver(Protocol):
    """Where writers' schemas come from that are none of our releases. Both return None for what they do not know.

    Either may raise `SchemaPendingError` when what it asks is away.
    """

    def by_fingerprint(self, fingerprint: bytes, /) -> Schema | None:
        """The schema with this CRC-64-AVRO fingerprint (8 bytes, little-endian)."""
        ...

    def by_id(self, schema_id: int, /) -> Schema | None:
        """The schema with this id in a Confluent-style registry."""
        ...


_BY_FINGERPRINT: dict[bytes, WriterSchema] = {}
_BY_ID: WeakKeyDictionary[SchemaResolver, dict[int, WriterSchema]] = WeakKeyDictionary()


def encode(value: object, *, schema_id: int | None = None) -> bytes:
    """A value of one of `KINDS`, written with the newest released schema.

    Args:
        value: an instance of one of `KINDS`.
        schema_id: the id a registry gave to that schema; Confluent framing is written then.

    Raises:
        PermanentError: a field holds what its type in the schema does not allow.
    """
    writer = codec_schemas.newest(type(value).__name__)
    head = _SINGLE_OBJECT + writer.fingerprint if schema_id is None else _CONFLUENT + schema_id.to_bytes(4, "big")
    out = BytesIO()
    out.write(head)
    try:
        record = event_to_record(value) if isinstance(value, AgentEvent) else msgspec.to_builtins(value)
        fastavro.schemaless_writer(out, writer.parsed, record)
    except (ValueError, TypeError, OverflowError, KeyError, AttributeError) as error:
        raise PermanentError(f"cannot be written as {writer.name} {writer.version}: {error}", where=writer.name) from error
    return out.getvalue()


def decode(data: bytes, kind: type[T], resolver: SchemaResolver | None = None) -> T:
    """The value that `data` holds.

    Args:
        data: a record's value as it came from the topic.
        kind: the class expected there, one of `KINDS`.
        resolver: where to ask for a writer's schema that is none of our releases.

    Raises:
        UndecodableError: it never will be one (`reason` says why).
        SchemaPendingError: the registry is away; the same call may work later.
    """
    writer, start = _writer_of(data, resolver)
    if writer.name != kind.__name__:
        raise UndecodableError("invalid", f"a {writer.name} where a {kind.__name__} belongs")
    return _value(data, start, writer, kind)


def decode_any(data: bytes, kinds: tuple[type, ...] = KINDS, resolver: SchemaResolver | None = None) -> Any:
    """Like `decode`, where a topic holds several kinds (`trajectories`: facts and watermarks).

    Raises:
        UndecodableError: it never will be one of `kinds`.
        SchemaPendingError: the registry is away; the same call may work later.
    """
    writer, start = _writer_of(data, resolver)
    for kind in kinds:
        if writer.name == kind.__name__:
            return _value(data, start, writer, kind)
    raise UndecodableError("invalid", f"a {writer.name} where one of {', '.join(k.__name__ for k in kinds)} belongs")


def schema_record(kind: type) -> tuple[bytes, bytes]:
    """Key and value of the record that tells the topic `schemas` how this distribution writes `kind`."""
    writer = codec_schemas.newest(kind.__name__)
    return writer.fingerprint.hex().encode(), msgspec.json.encode(writer.schema)


def headers_for(event: AgentEvent, way_in: str) -> list[tuple[str, bytes]]:
    """Record headers by the CloudEvents Kafka binding (binary mode).

    Args:
        event: the value.
        way_in: how it came: `sdk`, `gateway`, `otlp`, `import`, …; with the tenant it is `ce_source`, by which limits are kept.
    """
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", event.event_id.encode()),
        ("ce_type", f"stillhouse.{type(event.body).__name__}".encode()),
        ("ce_source", f"{event.key.partition('/')[0]}/{way_in}".encode()),
        ("content-type", CONTENT_TYPE.encode()),
    ]
    seconds, micros = divmod(event.occurred_at, 1_000_000)
    if 0 <= seconds < _YEAR_10000:  # the attribute is optional; RFC 3339 cannot say what lies outside
        time = datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros, tzinfo=None)
        headers.append(("ce_time", f"{time.isoformat()}Z".encode()))
    return headers


def schema_id_of(data: bytes) -> int | None:
    """The registry's id of the schema that `data` was written with; None where it names none."""
    return int.from_bytes(data[1:5], "big") if data[:1] == _CONFLUENT and len(data) >= 5 else None


def _writer_of(data: bytes, resolver: SchemaResolver | None) -> tuple[WriterSchema, int]:
    """The schema `data` was written with, and where the value starts."""
    if not data:
        raise UndecodableError("empty", "a record without a value")
    if data[:2] == _SINGLE_OBJECT and len(data) >= 10:
        return _by_fingerprint(data[2:10], resolver), 10
    if (schema_id := schema_id_of(data)) is not None:
        return _by_id(schema_id, resolver), 5
    raise UndecodableError(
        "framing", f"neither single-object encoding nor Confluent framing: starts with {data[:2].hex()}, {len(data)} bytes"
    )


def _by_fingerprint(wanted: bytes, resolver: SchemaResolver | None) -> WriterSchema:
    known = _BY_FINGERPRINT.get(wanted) or codec_schemas.released().get(wanted)
    if known is None:
        schema = resolver.by_fingerprint(wanted) if resolver is not None else None
        if schema is None:
            raise UndecodableError("unknown_fingerprint", f"no schema with the fingerprint {wanted.hex()} is known")
        known = _parsed(schema)
        if known.fingerprint != wanted:
            raise UndecodableError(
                "unknown_fingerprint", f"the schema offered for {wanted.hex()} has the fingerprint {known.fingerprint.hex()}"
            )
    _BY_FINGERPRINT[wanted] = known
    return known


def _by_id(schema_id: int, resolver: SchemaResolver | None) -> WriterSchema:
    if resolver is None:
        raise UndecodableError("unknown_schema_id", f"schema id {schema_id}, and no registry is configured")
    cached = _BY_ID.setdefault(resolver, {})
    known = cached.get(schema_id)
    if known is None:
        schema = resolver.by_id(schema_id)
        if schema is None:
            raise UndecodableError("unknown_schema_id", f"the registry has no schema with id {schema_id}")
        known = cached[schema_id] = _parsed(schema)
    return known


def _parsed(schema: Schema) -> WriterSchema:
    try:
        return codec_schemas.parse(schema)
    except PermanentError as error:
        raise UndecodableError("invalid", error.what) from error


def _value(data: bytes, start: int, writer: WriterSchema, kind: type[T]) -> T:
    record = _record(data, start, writer)
    convert: Callable[[Record], Any] = event_from_record if kind is AgentEvent else _from_builtins(kind)
    try:
        value: T = convert(record)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UndecodableError("invalid", f"not a valid {writer.name}: {error}") from error
    return value


def _from_builtins(kind: type[T]) -> Callable[[Record], T]:
    return lambda record: msgspec.convert(record, kind)


def _record(data: bytes, start: int, writer: WriterSchema) -> Record:
    ours = codec_schemas.newest(writer.name) if writer.name in codec_schemas.NAMES else None
    if ours is None:
        raise UndecodableError("invalid", f"{writer.name} is no record of ours")
    stream = BytesIO(data + _GUARD)
    stream.seek(start)
    # The same fingerprint: nothing to resolve.
    reader = None if ours.fingerprint == writer.fingerprint else ours.parsed
    record: Any
    try:
        record = fastavro.schemaless_reader(stream, writer.parsed, reader, return_record_name=True, return_record_name_override=True)
    except SchemaResolutionError as error:
        raise UndecodableError("invalid", f"written with a schema that does not resolve to {ours.name} {ours.version}: {error}") from error
    except (EOFError, IndexError, ValueError, OverflowError, KeyError, TypeError, MemoryError) as error:
        raise UndecodableError("corrupt", f"not a whole {writer.name}: {error!r}") from error
    if (left := len(data) - stream.tell()) != 0:
        raise UndecodableError("corrupt", f"{left} bytes after the {writer.name}" if left > 0 else f"the {writer.name} is cut off")
    ours_record: Record = record
    return ours_record
