"""CRC-64-AVRO fingerprints of Avro schemas in parsing canonical form: how a record names its writer's schema."""

from typing import Any

from fastavro.schema import fingerprint as _hex_fingerprint
from fastavro.schema import to_parsing_canonical_form

Schema = dict[str, Any]


def fingerprint(schema: Schema) -> bytes:
    """The 8 bytes, little-endian, that single-object encoding puts before a value.

    Source: Avro specification, "Schema Fingerprints" and "Single-object encoding". Defaults, docs and logical types
    are no part of the canonical form, so schemas that differ only in those share a fingerprint.

    Raises:
        fastavro.schema.SchemaParseException: not an Avro schema.
    """
    return bytes.fromhex(_hex_fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))
