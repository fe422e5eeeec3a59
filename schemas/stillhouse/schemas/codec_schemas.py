"""Avro schemas ready for use: the released ones of `avro/<Name>/<version>.avsc`, and writers' schemas from elsewhere."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fastavro
from fastavro.schema import SchemaParseException, UnknownType

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.fingerprint import Schema, fingerprint

FOLDER = Path(__file__).parent / "avro"
NAMES = ("AgentEvent", "TrajectoryFacts", "Watermark", "TeacherTask", "StudentState", "CanaryVerdict", "Erasure")


@dataclass(frozen=True, eq=False)
class WriterSchema:
    """A schema that values are written with. `parsed` is fastavro's form, `version` is empty when it is none of our releases."""

    name: str
    version: str
    schema: Schema
    parsed: Schema
    fingerprint: bytes


def _plain(schema: Any) -> Any:
    """The schema without logical types: times stay integers instead of becoming datetime objects."""
    if isinstance(schema, dict):
        return {key: _plain(value) for key, value in schema.items() if key != "logicalType"}
    return [_plain(item) for item in schema] if isinstance(schema, list) else schema


def parse(schema: Schema, version: str = "") -> WriterSchema:
    """Make a schema ready for reading and writing.

    Raises:
        PermanentError: not an Avro record schema.
    """
    try:
        parsed = fastavro.parse_schema(_plain(schema))
        if not isinstance(parsed, dict) or parsed["type"] != "record":
            raise SchemaParseException("not a record")
        return WriterSchema(parsed["name"].rpartition(".")[2], version, schema, parsed, fingerprint(schema))
    except (SchemaParseException, UnknownType, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise PermanentError(f"not an Avro record schema: {error!r}", where=str(schema)[:80]) from error


def version_key(version: str) -> tuple[int, ...]:
    """Versions sort by number: 1.10.0 after 1.9.0."""
    return tuple(int(part) for part in version.split("."))


def load_versions(name: str, folder: Path = FOLDER) -> tuple[WriterSchema, ...]:
    """All released versions of one record, oldest first."""
    files = sorted((folder / name).glob("*.avsc"), key=lambda path: version_key(path.stem))
    if not files:
        raise PermanentError(f"no released schema of {name}", where=str(folder / name), fix="Reinstall the stillhouse distribution.")
    return tuple(parse(json.loads(path.read_text()), path.stem) for path in files)


@cache
def versions(name: str) -> tuple[WriterSchema, ...]:
    """All released versions of one of our records, oldest first."""
    return load_versions(name)


@cache
def newest(name: str) -> WriterSchema:
    """The version that this distribution writes, and into which it resolves what others wrote."""
    return versions(name)[-1]


@cache
def released() -> dict[bytes, WriterSchema]:
    """Every released schema of every record by fingerprint."""
    return {schema.fingerprint: schema for name in NAMES for schema in versions(name)}
