"""At most so many workers flush at once: slots in the store's table of leases. Whoever gets none goes on reading and decoding.

A limit on the store's load and nothing else: rows are safe by their compare-and-set, however many flush. So a slot that a
crash left is simply free again after `HELD_S`, and a flush that takes longer than that loses nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from stillhouse.schemas.errors import RetryableError
from stillhouse.sdk.store import Store
from stillhouse.streams.lease import Lease
from stillhouse.streams.logs import logger

log = logger(__name__)

HELD_S = 60.0

Patiently = Callable[[Callable[[], Awaitable[Lease | None]]], Awaitable[Lease | None]]


class Slots:
    """The slots, as one worker sees them.

    Args:
        store: whose load is limited.
        holder: this worker's name.
        ordinal: where it begins to look, so that workers do not meet at one slot.
        count: how many slots there are.
        wait: seconds between looks while all are taken.
        now: microseconds since the epoch.
        workers: how many workers there may be; no slot is asked for while there are enough for all.
    """

    def __init__(
        self, store: Store, holder: str, ordinal: int, count: int, wait: float, now: Callable[[], int], workers: Callable[[], int]
    ) -> None:
        self._store, self._holder, self._wait, self._count, self._workers = store, holder, wait, count, workers
        places = [(ordinal + n) % count for n in range(count)]
        self._leases = {f"flush-{place}": Lease(store, f"flush-{place}", holder, HELD_S, now) for place in places}

    @asynccontextmanager
    async def one(self, patiently: Patiently) -> AsyncIterator[None]:
        """Hold a slot, waiting for it.

        Args:
            patiently: repeats an attempt while the store is away.
        """
        if self._workers() <= self._count:
            yield
            return
        while (lease := await patiently(lambda: asyncio.to_thread(self.take))) is None:
            await asyncio.sleep(self._wait)
        try:
            yield
        finally:
            try:
                await asyncio.to_thread(lease.release)
            except RetryableError as error:
                log.warning("a slot was not given back; it is free by itself after a while", error=str(error))

    def take(self) -> Lease | None:
        """The first slot that is free, or None.

        Raises:
            UnreachableError: the store does not answer.
        """
        found = self._store.by_key("leases", self._leases, ("key", "state", "updated_at"))
        for name, lease in self._leases.items():
            row = found.get(name)
            # Its own from before a crash is as good as a free one: a worker flushes one at a time.
            if (row is None or row["state"] == self._holder or lease.free(row["updated_at"])) and lease.take():
                return lease
        return None
