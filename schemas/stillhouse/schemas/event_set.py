"""The set of a trajectory's events: what makes two of them one, their hash, and how a stored chunk holds them.

An event's identity is the digest of its canonical bytes. Sent twice it is one member; two *different* events under one
event_id are two members, of which `fold` lets the same one win in any order. Chunks keep the canonical bytes.

The bytes are msgpack, whose integers end at 64 bits while JSON's (in a tool's arguments) do not: a wider one is an extension.
"""

from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import AgentEvent, ClientReport

DIGEST_BYTES = 16

WIDE_INTEGER = 1
"""The code of the extension: two's complement, big-endian, as few bytes as hold it."""


def _widened(code: int, data: memoryview) -> int:
    if code != WIDE_INTEGER:
        raise msgspec.ValidationError(f"an unknown extension {code}")
    return int.from_bytes(data, "big", signed=True)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(AgentEvent, ext_hook=_widened).decode
_decode_chunk = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class Member(NamedTuple):
    """One event of a set: its digest, its canonical bytes, and the event."""

    digest: bytes
    data: bytes
    event: AgentEvent


EventSet = Mapping[bytes, Member]


def member(event: AgentEvent) -> Member:
    """The event with its identity.

    Raises:
        ValueError: it holds what has no canonical bytes (text that is no Unicode).
        TypeError: the same (an object that is none of JSON's).
        RecursionError: it is nested too deeply.
    """
    try:
        data = _encode(event)
    except OverflowError:
        data = _encode(_narrowed(msgspec.to_builtins(event)))
    return Member(sha256(data).digest()[:DIGEST_BYTES], data, event)


def _narrowed(value: Any) -> Any:
    """The same with wide integers as extensions."""
    if isinstance(value, dict):
        return {key: _narrowed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_narrowed(item) for item in value]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return msgspec.msgpack.Ext(WIDE_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    return value


_digest = itemgetter(0)


def event_set(events: Iterable[AgentEvent]) -> dict[bytes, Member]:
    """The set of events that can be part of a row: client reports are of a client, not of a trajectory."""
    members = (member(event) for event in events if type(event.body) is not ClientReport)
    return {found.digest: found for found in members}


def content_hash(digests: Iterable[bytes]) -> str:
    """Hash (hex) of a set of events: over the sorted digests, so that no order of arrival shows."""
    return sha256(b"".join(sorted(digests))).hexdigest()[: 2 * DIGEST_BYTES]


def pack(key: str, members: Collection[Member]) -> tuple[str, bytes]:
    """One immutable chunk.

    Args:
        key: the trajectory's.
        members: its new events.

    Returns:
        The chunk's own key (a hash of the trajectory's key and the events, so that a retry makes the same chunk) and its bytes.
    """
    ordered = sorted(members, key=_digest)
    identity = sha256(key.encode() + b"".join([one.digest for one in ordered]))
    # The canonical bytes are msgpack already: only the head of the list that they are items of is to be written.
    return identity.hexdigest()[: 2 * DIGEST_BYTES], b"".join([_list_head(len(ordered)), *[one.data for one in ordered]])


def _list_head(count: int) -> bytes:
    """How a msgpack list of so many items begins."""
    if count < 16:
        return bytes([0x90 | count])
    return b"\xdc" + count.to_bytes(2, "big") if count < 1 << 16 else b"\xdd" + count.to_bytes(4, "big")


def unpack(data: bytes) -> dict[bytes, Member]:
    """The set of events that a chunk holds.

    Raises:
        PermanentError: these are no bytes of `pack`.
    """
    try:
        raws = _decode_chunk(data)
        found = (Member(sha256(raw).digest()[:DIGEST_BYTES], bytes(raw), _decode(raw)) for raw in raws)
        return {one.digest: one for one in found}
    except (msgspec.MsgspecError, RecursionError) as error:
        raise PermanentError(f"a stored chunk of events is damaged: {error}", where="transcripts") from error
