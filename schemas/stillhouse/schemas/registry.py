"""Writers' schemas that are none of our releases: from the topic `schemas`, or from a Confluent-style registry."""

import base64
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import Any

from stillhouse.schemas.codec import SchemaPendingError, SchemaResolver
from stillhouse.schemas.codec_schemas import parse
from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.fingerprint import Schema

_TIMEOUT_S = 2.0
_ASK_AGAIN_S = 30.0
_MOST_ABSENT = 10_000
_MAY_PASS = frozenset({401, 403, 408, 429})
"""Refusals that say nothing of the schema: of who asks, or of how fast."""


class TopicResolver:
    """Schemas that producers put into the topic `schemas`: key = fingerprint in hex, value = the schema as JSON.

    Whoever reads the topic feeds it; a flood of unknown fingerprints costs a lookup each.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Schema] = {}

    def __len__(self) -> int:
        """How many schemas it knows."""
        return len(self._known)

    def feed(self, key: bytes | None, value: bytes | None) -> bytes:
        """Learn one record of the topic.

        Returns:
            The schema's fingerprint: what waits for it can be tried again.

        Raises:
            PermanentError: not a schema, or not the one its key says.
        """
        try:
            schema = json.loads(value or b"")
            name = (key or b"").decode()
        except (ValueError, RecursionError) as error:
            raise PermanentError(f"a record of the topic schemas is no JSON: {error}", where=repr(key)) from error
        found = parse(schema).fingerprint
        if found.hex() != name:
            raise PermanentError(f"the schema under {name} has the fingerprint {found.hex()}", where="topic schemas")
        self._known[found] = schema
        return found

    def by_fingerprint(self, fingerprint: bytes, /) -> Schema | None:
        """The schema with this fingerprint, if a producer has put it there."""
        return self._known.get(fingerprint)

    def by_id(self, schema_id: int, /) -> Schema | None:
        """None: the topic knows no ids."""
        return None


class ConfluentRegistry:
    """A small client of Confluent's Schema Registry API (schemas by id, registration of ours).

    Args:
        url: its base address.
        username: for basic authentication; empty: none.
        password: the same.
        clock: seconds, monotonic; an unknown id is asked for again only after half a minute.
    """

    def __init__(self, url: str, username: str = "", password: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url.rstrip("/")
        self._clock = clock
        self._headers = {"Accept": "application/vnd.schemaregistry.v1+json", "Content-Type": "application/vnd.schemaregistry.v1+json"}
        if username:
            token = base64.b64encode(f"{username}:{password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {token}"
        self._known: dict[int, Schema] = {}
        self._absent: dict[int, float] = {}

    def by_fingerprint(self, fingerprint: bytes, /) -> Schema | None:
        """None: the registry knows ids only."""
        return None

    def by_id(self, schema_id: int, /) -> Schema | None:
        """The schema with this id, or None when the registry has none.

        Raises:
            SchemaPendingError: the registry is away, or does not let us in.
        """
        if schema_id in self._known:
            return self._known[schema_id]
        if self._clock() < self._absent.get(schema_id, float("-inf")):
            return None
        answer = self._ask(f"/schemas/ids/{schema_id}")
        schema = None if answer is None else _avro(answer)
        if schema is None:
            self._absent.pop(schema_id, None)  # put at the end: the oldest are forgotten first
            self._absent[schema_id] = self._clock() + _ASK_AGAIN_S
            while len(self._absent) > _MOST_ABSENT:
                self._absent.pop(next(iter(self._absent)), None)
        else:
            self._known[schema_id] = schema
        return schema

    def register(self, subject: str, schema: Schema) -> int:
        """Register a schema (once: the same one has the same id) and return its id.

        Raises:
            SchemaPendingError: the registry is away, or does not let us in.
            PermanentError: it refuses the schema.
        """
        answer = self._ask(f"/subjects/{urllib.parse.quote(subject, safe='')}/versions", {"schema": json.dumps(schema)})
        if answer is None or not isinstance(answer.get("id"), int):
            raise PermanentError(f"the registry gave no id for {subject}", where=self._url)
        return int(answer["id"])

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, self._headers)  # its method follows from the body
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error, path, posted=body is not None)
            return None
        except (OSError, HTTPException, ValueError) as error:
            raise SchemaPendingError(f"the schema registry does not answer: {error}", where=self._url) from error
        if not isinstance(answer, dict):
            raise SchemaPendingError("the schema registry's answer is no object", where=self._url + path)
        return answer

    def _refused(self, error: urllib.error.HTTPError, path: str, *, posted: bool) -> None:
        """Raise what the status means; nothing for "there is none", as any other 4xx about an id says in the end."""
        if 400 <= error.code < 500 and error.code not in _MAY_PASS:
            if not posted:
                return
            reason = error.read(300).decode(errors="replace")
            raise PermanentError(f"the schema registry refuses: {reason}", where=self._url + path) from error
        fix = "Check [kafka] schema_registry_username and schema_registry_password." if error.code in (401, 403) else ""
        raise SchemaPendingError(f"the schema registry answers {error.code}", where=self._url + path, fix=fix) from error


class Resolvers:
    """Several resolvers in order; the first that knows answers."""

    def __init__(self, resolvers: Sequence[SchemaResolver]) -> None:
        self._resolvers = tuple(resolvers)

    def by_fingerprint(self, fingerprint: bytes, /) -> Schema | None:
        """The first one's answer."""
        return next((found for r in self._resolvers if (found := r.by_fingerprint(fingerprint)) is not None), None)

    def by_id(self, schema_id: int, /) -> Schema | None:
        """The first one's answer."""
        return next((found for r in self._resolvers if (found := r.by_id(schema_id)) is not None), None)


def _avro(answer: dict[str, Any]) -> Schema | None:
    """The Avro record schema in a registry's answer; None for another type (JSON Schema, Protobuf)."""
    if answer.get("schemaType", "AVRO") != "AVRO":
        return None
    try:
        schema = json.loads(answer["schema"])
    except (KeyError, TypeError, ValueError):
        return None
    return schema if isinstance(schema, dict) else None
