"""Where writers' schemas come from that are none of our releases: the topic `schemas`, and a schema registry if there is one."""

import base64
import urllib.error
import urllib.request
from typing import Any

import msgspec

from stillhouse.schemas.codec import SchemaPendingError
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.streams.ingest.follow import KnownSchemas

TIMEOUT_S = 2.0


class Resolver:
    """A `SchemaResolver` over both. Ids come from the registry alone."""

    def __init__(self, schemas: KnownSchemas, settings: KafkaSettings) -> None:
        self._schemas = schemas
        self._url = settings.schema_registry.rstrip("/")
        self._headers = {"Accept": "application/vnd.schemaregistry.v1+json"}
        if settings.schema_registry_username:
            pair = f"{settings.schema_registry_username}:{settings.schema_registry_password.reveal()}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()

    def by_fingerprint(self, fingerprint: bytes, /) -> dict[str, Any] | None:
        """The schema with this fingerprint, if a producer has put it into the topic."""
        return self._schemas.by_fingerprint(fingerprint)

    def by_id(self, schema_id: int, /) -> dict[str, Any] | None:
        """The registry's schema with this id; None without a registry, or when it has none.

        Raises:
            SchemaPendingError: the registry does not answer.
        """
        if not self._url:
            return None
        request = urllib.request.Request(f"{self._url}/schemas/ids/{schema_id}", headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                found = msgspec.json.decode(response.read(), type=dict[str, Any])
                return msgspec.json.decode(found["schema"], type=dict[str, Any])
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                return None
            raise SchemaPendingError(f"the schema registry answers {error.code}", where=self._url) from error
        except (OSError, ValueError, KeyError) as error:
            raise SchemaPendingError(f"the schema registry does not answer: {error}", where=self._url) from error
