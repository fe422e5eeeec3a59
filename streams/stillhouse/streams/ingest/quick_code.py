"""Readers of flat Avro records, written out from the schema: one Python function a record, with the code of every field in line.

A call for each field costs more than the field itself, so the function's text is put together once, at import, and given to
`exec`, as `dataclasses` does; from a schema that this distribution ships, never from a producer's. Kinds of field: `long`,
`double`, `boolean`, `string`, `enum` (the place of the symbol), `json`, `list` (JSON too, often empty), and each of them or null.
"""

from collections.abc import Callable
from struct import Struct
from typing import Any

Reader = Callable[[bytes, int], tuple[Any, int]]
"""Reads at an offset; returns what was made of the fields, and where they end.

It may read past the end of what is cut off, so the caller looks at where they end. ValueError, IndexError, KeyError or
`struct.error`: this is not the record, or is written in a way that only the codec should judge.
"""


def long_at(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag integer of any length, and where it ends.

    Raises:
        ValueError: it has more than 64 bits.
        IndexError: the data end in it.
    """
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")


def size_at(data: bytes, at: int) -> tuple[int, int]:
    """A length, and where what it measures begins.

    Raises:
        ValueError: it is negative, or no integer.
        IndexError: the data end in it.
    """
    size, at = long_at(data, at)
    if size < 0:
        raise ValueError("a negative length")
    return size, at


_SIZE = """\
n = d[p]
if n < 128 and not n & 1:
    p += 1
    q = p + (n >> 1)
else:
    n, p = size_at(d, p)
    q = p + n
"""
_LONG = """\
n = d[p]
if n < 128:
    {name} = (n >> 1) ^ -(n & 1)
    p += 1
else:
    {name}, p = long_at(d, p)
"""
_CODE = {
    "long": _LONG,
    "double": "{name} = double(d, p)[0]\np += 8\n",
    "boolean": "{name} = BOOLEANS[d[p]]\np += 1\n",
    "enum": "{name} = PLACES[d[p]]\np += 1\n",
    "string": _SIZE + "{name} = d[p:q].decode()\np = q\n",
    # From the bytes; what is not ASCII becomes a string first, which also sees whether it is UTF-8 all through.
    "json": _SIZE + "n = d[p:q]\np = q\n{name} = parse_{name}(n if n.isascii() else n.decode())\n",
    "list": _SIZE + 'n = d[p:q]\np = q\n{name} = () if n == b"[]" else parse_{name}(n if n.isascii() else n.decode())\n',
}
_MAYBE = """\
n = d[p]
p += 1
if n == 0:
    {name} = None
elif n == 2:
{code}
else:
    raise ValueError("no such branch")
"""
_NAMES: dict[str, Any] = {
    "size_at": size_at,
    "long_at": long_at,
    "double": Struct("<d").unpack_from,
    "BOOLEANS": {0: False, 1: True},
    "PLACES": {2 * place: place for place in range(64)},
}


def kind_of(type_: Any) -> str:
    """The kind of a field of this Avro type; `maybe` in front where it may be null.

    Raises:
        ValueError: a type that is not read here.
    """
    if isinstance(type_, list):
        if len(type_) != 2 or type_[0] != "null":
            raise ValueError("a union of more than null and one type")
        return f"maybe {kind_of(type_[1])}"
    name = type_["type"] if isinstance(type_, dict) else type_
    if name in _CODE:
        return str(name)
    if name in ("record", "map", "array", "fixed", "bytes", "int", "float", "null"):
        raise ValueError(f"no reader of {name}")
    return "enum"  # a name that the schema has defined before; records are not named twice in ours


def reader(fields: list[tuple[str, str]], make: Callable[..., Any], parsers: dict[str, Callable[[Any], Any]]) -> Reader:
    """A function that reads fields in their order and gives them to `make`.

    Args:
        fields: name and kind of each.
        make: called with the values, in order.
        parsers: for each field of kind `json` or `list`, what parses it.

    Raises:
        ValueError: a kind that there is no code for.
    """
    lines = ["def read(d, p):"]
    for name, kind in fields:
        base = kind.removeprefix("maybe ")
        if base not in _CODE or not name.isidentifier():
            raise ValueError(f"no reader of {name}: {kind}")
        code = _CODE[base].format(name=name)
        if kind != base:
            code = _MAYBE.format(name=name, code="\n".join("    " + line for line in code.splitlines()))
        lines += ["    " + line for line in code.splitlines()]
    lines.append(f"    return make({', '.join(name for name, _ in fields)}), p")
    names = _NAMES | {"make": make} | {f"parse_{name}": parse for name, parse in parsers.items()}
    exec("\n".join(lines), names)
    made: Reader = names["read"]
    return made
