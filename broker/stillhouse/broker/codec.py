"""Kafka's binary encoding, driven by one-line schemas that name every version at once.

A schema is text: `name:type` for a field, `name[...]` for an array of structs, `name:[type]` for an array of plain values;
`?` after a type or a closing bracket means "may be null"; `@3+`, `@2-4` limit a field to versions.
Types: bool, i8, i16, i32, i64, str, bytes. From a schema, a version and "is this version flexible" comes a `Codec`
that reads and writes dicts. Flexible versions (KIP-482) use varint lengths and end each struct with tagged fields: unknown tags
are skipped, none are written.
"""

import re
import struct
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]
Chunks = list[bytes | memoryview]
Decode = Callable[["Reader"], Any]
Encode = Callable[[Any, Chunks], None]
LAST = 32767

_FIELD = re.compile(r"\s*(?:(\w+)(?::(?:(\w+)|\[(\w+)\])(\?)?|(\[))|(\])(\?)?)(?:@(\d+)(?:-(\d+)|(\+)))?")
_FORMATS = {"bool": ">?", "i8": ">b", "i16": ">h", "i32": ">i", "i64": ">q"}


class DecodeError(ValueError):
    """The bytes of a request are not what its version prescribes."""


class Reader:
    """A cursor over the bytes of one frame."""

    def __init__(self, data: bytes | memoryview) -> None:
        """Start at the first byte of `data`."""
        self.data = memoryview(data)
        self.position = 0

    def take(self, size: int) -> memoryview:
        """The next `size` bytes, not copied. Raises DecodeError when there are fewer."""
        end = self.position + size
        if size < 0 or end > len(self.data):
            raise DecodeError(f"{size} bytes wanted at {self.position} of {len(self.data)}")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def varint(self) -> int:
        """An unsigned variable-length integer of at most 5 bytes."""
        value = shift = 0
        while shift <= 28:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise DecodeError("a length of more than 5 bytes")

    def skip_tags(self) -> None:
        """Pass over the tagged fields that end a flexible struct."""
        for _ in range(self.varint()):
            self.varint()
            self.take(self.varint())


def varint(value: int) -> bytes:
    """`value` as an unsigned variable-length integer."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Field:
    """One field of a schema: its type, its versions, and for an array of structs the fields within."""

    def __init__(self, name: str, kind: str, array: bool, null: bool, first: int, last: int, fields: "list[Field] | None" = None) -> None:
        """As parsed from the schema text."""
        self.name, self.kind, self.array, self.null, self.first, self.last = name, kind, array, null, first, last
        self.fields = fields

    def default(self) -> Any:
        """What a reader gets for a field that its version does not have."""
        if self.null:
            return None
        return [] if self.array else {"str": "", "bytes": b"", "bool": False}.get(self.kind, 0)


def parse(schema: str) -> list[Field]:
    """The fields of a schema text. Raises ValueError for a malformed one."""
    stack: list[tuple[str, list[Field]]] = [("", [])]
    position, schema = 0, schema.strip()
    while position < len(schema):
        match = _FIELD.match(schema, position)
        if match is None:
            raise ValueError(f"schema not understood at: {schema[position : position + 30]}")
        position = match.end()
        name, plain, element, null, opens, closes, close_null, first, last, onwards = match.groups()
        versions = (int(first or 0), LAST if first is None or onwards else int(last))
        if opens:
            stack.append((name, []))
        elif closes:
            name, inner = stack.pop()
            stack[-1][1].append(Field(name, "struct", True, bool(close_null), *versions, fields=inner))
        else:
            stack[-1][1].append(Field(name, plain or element, element is not None, bool(null), *versions))
    if len(stack) != 1:
        raise ValueError(f"schema with an open bracket: {schema[:40]}")
    return stack[0][1]


class Codec:
    """Reads and writes one version of one message (or of one struct within it)."""

    def __init__(self, fields: list[Field], version: int, flexible: bool) -> None:
        """Compile `fields` for `version`."""
        self.flexible = flexible
        self.known = frozenset(f.name for f in fields)
        self.absent = {f.name: f.default() for f in fields if not f.first <= version <= f.last}
        present = [f for f in fields if f.first <= version <= f.last]
        self.fields = [(f.name, f.default(), *_field_codec(f, version, flexible)) for f in present]

    def decode(self, reader: Reader) -> Message:
        """The next message of `reader`; fields that this version lacks have their defaults. Raises DecodeError."""
        message = {name: list(value) if isinstance(value, list) else value for name, value in self.absent.items()}
        for name, _, read, _ in self.fields:
            message[name] = read(reader)
        if self.flexible:
            reader.skip_tags()
        return message

    def encode(self, message: Message, out: Chunks) -> None:
        """Append `message` to `out`; a field left out is its default. Raises KeyError for a name that no version has."""
        if not message.keys() <= self.known:
            raise KeyError(f"not in the schema: {sorted(message.keys() - self.known)}")
        for name, default, _, write in self.fields:
            write(message.get(name, default), out)
        if self.flexible:
            out.append(b"\0")


def _field_codec(field: Field, version: int, flexible: bool) -> tuple[Decode, Encode]:
    if field.fields is not None:
        inner = Codec(field.fields, version, flexible)
        element: tuple[Decode, Encode] = (inner.decode, inner.encode)
    elif field.kind in _FORMATS:
        element = _number(_FORMATS[field.kind])
    else:
        element = _sized(field.kind, flexible, field.null or field.array)
    return _array(*element, flexible, field.null) if field.array else element


def _number(layout: str) -> tuple[Decode, Encode]:
    packer = struct.Struct(layout)
    unpack, pack, size = packer.unpack, packer.pack, packer.size
    return lambda reader: unpack(reader.take(size))[0], lambda value, out: out.append(pack(value))


def _length_codec(flexible: bool, layout: str) -> tuple[Callable[[Reader], int], Callable[[int], bytes]]:
    """Lengths where -1 is null: varint of length + 1 in flexible versions, else a plain integer."""
    if flexible:
        return lambda reader: reader.varint() - 1, lambda length: varint(length + 1)
    packer = struct.Struct(layout)
    return lambda reader: int(packer.unpack(reader.take(packer.size))[0]), packer.pack


def _sized(kind: str, flexible: bool, null: bool) -> tuple[Decode, Encode]:
    read_length, pack_length = _length_codec(flexible, ">h" if kind == "str" else ">i")
    text = kind == "str"

    def read(reader: Reader) -> str | memoryview | None:
        length = read_length(reader)
        if length < 0:
            if null:
                return None
            raise DecodeError("null where a value is required")
        piece = reader.take(length)
        if not text:
            return piece
        try:
            return str(piece, "utf-8")
        except UnicodeDecodeError as error:
            raise DecodeError(str(error)) from error

    def write(value: str | bytes | memoryview | None, out: Chunks) -> None:
        if value is None:
            out.append(pack_length(-1))
            return
        data = value.encode() if isinstance(value, str) else value
        out.append(pack_length(len(data)))
        out.append(data)

    return read, write


def _array(read_one: Decode, write_one: Encode, flexible: bool, null: bool) -> tuple[Decode, Encode]:
    read_length, pack_length = _length_codec(flexible, ">i")

    def read(reader: Reader) -> list[Any] | None:
        length = read_length(reader)
        if length < 0:
            if null:
                return None
            raise DecodeError("null where an array is required")
        return [read_one(reader) for _ in range(length)]

    def write(items: list[Any] | None, out: Chunks) -> None:
        out.append(pack_length(-1 if items is None else len(items)))
        for item in items or ():
            write_one(item, out)

    return read, write
