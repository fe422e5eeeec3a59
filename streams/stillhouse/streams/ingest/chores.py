"""What ingest does beside the events: erase rows of subjects to be forgotten, and retry dead letters whose schema became known."""

import asyncio
from collections.abc import Callable

from stillhouse.schemas import codec
from stillhouse.schemas.errors import RetryableError, StillhouseError
from stillhouse.schemas.events import AgentEvent
from stillhouse.schemas.registry import TopicResolver
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.store import Store
from stillhouse.streams import dlq
from stillhouse.streams.ingest.decode import UNKNOWN_SCHEMA
from stillhouse.streams.ingest.erasing import clear_graves, erase
from stillhouse.streams.ingest.follow import Erasures
from stillhouse.streams.lease import Lease
from stillhouse.streams.logs import logger

log = logger(__name__)

CHECK_S = 2.0
REGISTRY_S = 60.0
DAY = 24 * 3600 * 1_000_000


class Chores:
    """Runs both every few seconds.

    Args:
        kafka: the section `[kafka]`.
        store: the store.
        erasures: whose `fresh` ones are to be applied.
        schemas: known writers' schemas.
        resolver: over these and a registry.
        holder: this process's name, for the lease on retries.
        now: microseconds since the epoch.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        store: Store,
        erasures: Erasures,
        schemas: TopicResolver,
        resolver: codec.SchemaResolver,
        holder: str,
        now: Callable[[], int],
    ) -> None:
        self._kafka, self._store, self._erasures, self._schemas, self._resolver, self._now = kafka, store, erasures, schemas, resolver, now
        self._lease = Lease(store, "dlq-retry", holder, REGISTRY_S, now)
        self._known = 0
        self._looked: int | None = None
        self._erased_at = now()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                await asyncio.to_thread(self.once)
            except StillhouseError as error:
                log.warning("a chore was interrupted; it runs again", error=str(error))

    def once(self) -> None:
        """Do what is due.

        Raises:
            RetryableError: something is away.
        """
        self._erase()
        if self._due() and self._lease.take():
            known, now = len(self._schemas), self._now()
            retried = dlq.retry(self._kafka, self._decodable)
            self._known, self._looked = known, now
            if retried:
                log.info("dead letters retried: their schema is known now", count=retried)

    def _erase(self) -> None:
        """New erasures at once; daily all again, for as long as the log still has the events (docs/ingest.md, Erasure)."""
        while self._erasures.fresh:
            erasure = self._erasures.fresh[0]
            count = erase(self._store, erasure.tenant, [erasure.subject], self._now())
            self._erasures.fresh.pop(0)  # only now: what was interrupted is done again
            log.info("erased", tenant=erasure.tenant, rows=count)
        if self._now() - self._erased_at >= DAY:
            rows = sum(erase(self._store, tenant, subjects, self._now()) for tenant, subjects in self._erasures.by_tenant().items())
            chunks = clear_graves(self._store)
            self._erased_at = self._now()
            log.info("erased again", rows=rows, chunks=chunks)

    def _due(self) -> bool:
        """At the start, when a schema was learned, and now and then where a registry may have."""
        if self._looked is None or len(self._schemas) > self._known:
            return True
        return bool(self._kafka.schema_registry) and self._now() - self._looked > REGISTRY_S * 1e6

    def _decodable(self, entry: dlq.Entry) -> bool:
        if entry.reason not in UNKNOWN_SCHEMA:
            return False
        try:
            codec.decode(entry.value, AgentEvent, self._resolver)
        except (codec.UndecodableError, RetryableError, ValueError, TypeError, OverflowError, RecursionError):
            return False  # ingest would not take it either
        return True
