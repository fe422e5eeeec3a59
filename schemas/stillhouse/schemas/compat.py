"""The compatibility gate: every released version of a record reads what every other one wrote, newer and older (FULL_TRANSITIVE).

Checked twice: by rule on the schemas, and by writing samples with one version and reading them with the other. The one
exception is a new body of an event: older readers cannot know it, so it is a minor release and ingest is upgraded first.
Run as `python -m stillhouse.schemas.compat [folder]`; exit code 4 when the gate says no.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any

import fastavro

from stillhouse.schemas.codec_schemas import FOLDER, NAMES, WriterSchema, load_versions, version_key
from stillhouse.schemas.errors import GateError, PermanentError

_NUMBERS = ("int", "long", "float", "double")
_BODY = "AgentEvent.body"

Named = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A writer and a reader of one record; `forward`: the reader is the older one."""

    writer: WriterSchema
    reader: WriterSchema
    forward: bool

    @property
    def minor(self) -> bool:
        """Whether the newer one is at least a minor release after the older one."""
        older, newer = (self.reader, self.writer) if self.forward else (self.writer, self.reader)
        return version_key(newer.version)[:2] > version_key(older.version)[:2]

    def __str__(self) -> str:
        """`Record 1.1.0 read by 1.0.0`."""
        return f"{self.writer.name} {self.writer.version} read by {self.reader.version}"


def violations(versions: tuple[WriterSchema, ...]) -> list[str]:
    """What breaks between any two versions of one record, as sentences that name the field; empty when they fit."""
    found: list[str] = []
    for older, newer in combinations(versions, 2):
        for pair in (Pair(older, newer, forward=False), Pair(newer, older, forward=True)):
            by_rule = list(_type(pair, pair.writer.parsed, pair.reader.parsed, pair.writer.name, _named(pair)))
            # Samples of a pair that a rule refuses would say the same less clearly.
            found += [f"{pair}: {what}" for what in by_rule or _samples_fail(pair)]
    return list(dict.fromkeys(found))


def check(folder: Path = FOLDER) -> dict[str, tuple[str, ...]]:
    """Check all released versions in a folder of `<Name>/<version>.avsc`.

    Returns:
        The versions of each record.

    Raises:
        GateError: a change breaks readers or writers; all breaks are in the message.
    """
    versions = {name: load_versions(name, folder) for name in NAMES}
    broken = [sentence for each in versions.values() for sentence in violations(each)]
    if broken:
        fix = "Add with a default instead of removing, renaming or narrowing; see docs/events.md."
        raise GateError("released schemas do not fit together:\n  " + "\n  ".join(broken), where=str(folder), fix=fix)
    return {name: tuple(schema.version for schema in each) for name, each in versions.items()}


def _named(pair: Pair) -> tuple[Named, Named]:
    return _definitions(pair.writer.parsed), _definitions(pair.reader.parsed)


def _definitions(schema: Any) -> Named:
    """All named types of a schema by full name."""
    found: Named = {}
    stack = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack += node
        elif isinstance(node, dict):
            if node["type"] in ("record", "enum", "fixed"):
                found[node["name"]] = node
            stack += [field["type"] for field in node.get("fields", ())]
            stack += [node[key] for key in ("items", "values") if key in node]
    return found


def _kind(schema: Any) -> str:
    if isinstance(schema, list):
        return "union"
    return str(schema["type"]) if isinstance(schema, dict) else str(schema)


def _type(pair: Pair, writer: Any, reader: Any, at: str, named: tuple[Named, Named]) -> Iterator[str]:
    """What the reader cannot read of what the writer may write."""
    if isinstance(writer, str):
        writer = named[0].get(writer, writer)
    if isinstance(reader, str):
        reader = named[1].get(reader, reader)
    kinds = _kind(writer), _kind(reader)
    if "union" in kinds:
        yield from _union(pair, writer, reader, at, named)
    elif kinds == ("record", "record"):
        yield from _record(pair, writer, reader, at, named)
    elif kinds == ("enum", "enum"):
        yield from _enum(pair, writer, reader, at)
    elif kinds in (("array", "array"), ("map", "map")):
        inner = "items" if kinds[0] == "array" else "values"
        yield from _type(pair, writer[inner], reader[inner], f"{at}[]", named)
    elif kinds[0] != kinds[1] and not _promotes(*kinds):
        yield f"{at}: {kinds[0]} cannot be read as {kinds[1]}"


def _promotes(writer: str, reader: str) -> bool:
    """Avro's promotions of numbers. Its string for bytes and back is a change of meaning, and no promotion here."""
    return writer in _NUMBERS and reader in _NUMBERS and _NUMBERS.index(writer) < _NUMBERS.index(reader)


def _union(pair: Pair, writer: Any, reader: Any, at: str, named: tuple[Named, Named]) -> Iterator[str]:
    options = reader if isinstance(reader, list) else [reader]
    for branch in writer if isinstance(writer, list) else [writer]:
        problems = [list(_type(pair, branch, option, at, named)) for option in options if _same_name(branch, option, named)]
        if not problems and not _new_body(pair, at):
            yield f"{at}: the branch {_label(branch)} has none that reads it"
        elif problems:
            yield from min(problems, key=len)


def _new_body(pair: Pair, at: str) -> bool:
    return at == _BODY and pair.forward and pair.minor


def _label(schema: Any) -> str:
    return str(schema["name"]) if isinstance(schema, dict) and "name" in schema else _kind(schema)


def _same_name(writer: Any, reader: Any, named: tuple[Named, Named]) -> bool:
    """Named types are the same branch by name, others when they can be read."""
    first, second = named[0].get(writer, writer) if isinstance(writer, str) else writer, reader
    second = named[1].get(reader, reader) if isinstance(reader, str) else reader
    return _label(first) == _label(second) or _promotes(_kind(first), _kind(second))


def _record(pair: Pair, writer: Any, reader: Any, at: str, named: tuple[Named, Named]) -> Iterator[str]:
    if writer["name"] != reader["name"]:
        yield f"{at}: the record {writer['name']} is called {reader['name']}"
    written = {field["name"]: field for field in writer["fields"]}
    for field in reader["fields"]:
        place = f"{at}.{field['name']}"
        if field["name"] in written:
            yield from _type(pair, written[field["name"]]["type"], field["type"], place, named)
        elif "default" not in field:
            change = "removed, and was" if pair.forward else "added"
            yield f"{place}: {change} without a default"


def _enum(pair: Pair, writer: Any, reader: Any, at: str) -> Iterator[str]:
    unknown = [symbol for symbol in writer["symbols"] if symbol not in reader["symbols"]]
    if "default" not in reader:
        yield f"{at}: the enum {reader['name']} has no default"
    if unknown and not pair.forward:
        yield f"{at}: the symbols {', '.join(unknown)} were released and are gone"


def _samples_fail(pair: Pair) -> list[str]:
    """Write values that use every branch and symbol, and read them with the other version."""
    names = _definitions(pair.writer.parsed)
    known = _definitions(pair.reader.parsed)
    for choice in range(_choices(pair.writer.parsed)):
        stream = BytesIO()
        fastavro.schemaless_writer(stream, pair.writer.parsed, _sample(pair.writer.parsed, names, choice, known))
        end = stream.tell()
        stream.seek(0)
        try:
            fastavro.schemaless_reader(stream, pair.writer.parsed, pair.reader.parsed)
        except (ValueError, EOFError, IndexError, KeyError, TypeError, fastavro.read.SchemaResolutionError) as error:
            return [f"a sample cannot be read: {error!r}"]
        if stream.tell() != end:
            return [f"a sample of {end} bytes is read as {stream.tell()}"]
    return []


def _choices(schema: Any) -> int:
    """How many samples cover every branch of every union and every symbol of every enum."""
    if isinstance(schema, list):
        return max(len(schema), *(_choices(branch) for branch in schema))
    if not isinstance(schema, dict):
        return 1
    inner = [field["type"] for field in schema.get("fields", ())] + [schema[key] for key in ("items", "values") if key in schema]
    return max(len(schema.get("symbols", ())), 1, *(_choices(each) for each in inner))


def _sample(schema: Any, names: Named, choice: int, known: Named) -> Any:
    """One value; `choice` picks branch and symbol, and only records that the reader knows are written in a union."""
    if isinstance(schema, str):
        schema = names.get(schema, schema)
    kind = _kind(schema)
    if kind == "union":
        branches = [b for b in schema if _kind(b) != "record" or b["name"] in known]
        branch = branches[choice % len(branches)]
        value = _sample(branch, names, choice, known)
        return (branch["name"], value) if _kind(branch) == "record" else value
    if kind == "record":
        return {field["name"]: _sample(field["type"], names, choice, known) for field in schema["fields"]}
    if kind == "enum":
        return schema["symbols"][choice % len(schema["symbols"])]
    if kind == "array":
        return [_sample(schema["items"], names, choice, known)] * (choice % 3)
    if kind == "map":
        return {str(i): _sample(schema["values"], names, choice, known) for i in range(choice % 3)}
    simple = {
        "null": None,
        "boolean": bool(choice % 2),
        "string": "x" * choice,
        "bytes": b"x" * choice,
        "float": choice / 2,
        "double": choice / 3,
    }
    return simple.get(kind, 1000 * choice)


def main(arguments: list[str]) -> int:
    """Check the folder given (default: ours) and say what was checked."""
    try:
        for name, found in check(Path(arguments[0]) if arguments else FOLDER).items():
            sys.stdout.write(f"{name}: {', '.join(found)} fit together\n")
    except PermanentError as error:
        sys.stderr.write(f"{error}\n")
        return 4 if isinstance(error, GateError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
