"""What ingest does beside the events: erase rows of subjects to be forgotten, and retry dead letters whose schema became known."""

import asyncio
from collections.abc import Callable

from stillhouse.schemas import codec
from stillhouse.schemas.errors import RetryableError, StillhouseError
from stillhouse.schemas.events import AgentEvent
from stillhouse.schemas.facts import Erasure
from stillhouse.schemas.fold import ERASED, tombstone
from stillhouse.schemas.registry import TopicResolver
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.store import Store
from stillhouse.sdk.store_arrow import quoted
from stillhouse.streams import dlq
from stillhouse.streams.ingest.decode import UNKNOWN_SCHEMA
from stillhouse.streams.ingest.follow import Erasures
from stillhouse.streams.ingest.rows import Read, row_of
from stillhouse.streams.lease import Lease
from stillhouse.streams.logs import logger

log = logger(__name__)

CHECK_S = 2.0
REGISTRY_S = 60.0


def erase(store: Store, erasure: Erasure, now: int) -> int:
    """Leave a tombstone of every row of a subject, and delete its chunks. Old versions go with the next maintenance.

    Returns:
        How many rows were erased.

    Raises:
        UnreachableError: the store does not answer.
    """
    erased = 0
    where = f"tenant = {quoted(erasure.tenant)} AND subject = {quoted(erasure.subject)} AND content <> {quoted(ERASED)}"
    while rows := store.trajectories(where):
        bare = [
            row_of(
                tombstone(row["key"], row["tenant"], row["trajectory_id"], row["subject"]),
                [],
                row,
                Read(row["partition"], row["first_offset"], row["last_offset"], row["appended_at"]),
                slow_ms=0,
                stored_at=now,
                reason=ERASED,
            )
            for row in rows
        ]
        erased += store.compare_and_set("trajectories", bare)  # one that changed meanwhile is found again
        for row in rows:
            store.delete("transcripts", f"trajectory = {quoted(row['key'])}")
    return erased


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
        while self._erasures.fresh:
            erasure = self._erasures.fresh[0]
            count = erase(self._store, erasure, self._now())
            self._erasures.fresh.pop(0)  # only now: what was interrupted is done again
            log.info("erased", tenant=erasure.tenant, rows=count)

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
        except (codec.UndecodableError, RetryableError):
            return False
        return True
