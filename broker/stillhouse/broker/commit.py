"""Group commit: everything written within 5 ms is made durable by one round of fsync, and then acknowledged together."""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from typing import Protocol

from stillhouse.broker.errors import Code, KafkaError

log = logging.getLogger("stillhouse.broker")
DELAY_S = 0.005


class Syncable(Protocol):
    """A file that is appended to."""

    broken: bool

    def begin_sync(self) -> tuple[int, Callable[[], None]]:
        """A descriptor to fsync and close, and what to call once that is done."""


class GroupCommit:
    """Waits for durability on behalf of requests. Belongs to one event loop."""

    def __init__(self, *, fsync: bool) -> None:
        """With `fsync` off everything counts as durable once written (tests: a power cut may lose it, kill -9 does not)."""
        self.fsync = fsync
        self._dirty: set[Syncable] = set()
        self._round: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def wait(self, logs: Iterable[Syncable]) -> None:
        """Return once what `logs` hold now is durable, or they are marked broken."""
        logs = {log for log in logs if not log.broken}
        if not logs:
            return
        if not self.fsync:
            self._mark(logs)
            return
        self._dirty |= logs
        if self._round is None:
            self._round = asyncio.create_task(self._flush())
        await asyncio.shield(self._round)

    async def drain(self) -> None:
        """Return once no round is under way. For the broker's stop, when nobody writes any more."""
        while self._round is not None:
            await asyncio.shield(self._round)
        async with self._one_at_a_time:
            pass

    def _mark(self, logs: set[Syncable]) -> None:
        for item in logs:
            descriptor, durable = item.begin_sync()
            os.close(descriptor)
            durable()

    async def _flush(self) -> None:
        await asyncio.sleep(DELAY_S)
        async with self._one_at_a_time:
            dirty, self._dirty, self._round = self._dirty, set(), None
            begun = [(item, *item.begin_sync()) for item in dirty if not item.broken]  # a topic may have been deleted meanwhile
            errors = await asyncio.to_thread(_sync_all, [descriptor for _, descriptor, _ in begun])
            for (item, _, durable), error in zip(begun, errors, strict=True):
                if error is None:
                    durable()
                else:  # after a failed fsync the page cache may claim what the disk does not have: only a restart tells
                    item.broken = True
                    log.error("fsync failed (%s): nothing more is accepted there; free or replace the disk, then restart the broker", error)


def _sync_all(descriptors: list[int]) -> list[OSError | None]:
    errors: list[OSError | None] = []
    for descriptor in descriptors:
        try:
            os.fsync(descriptor)
            errors.append(None)
        except OSError as error:
            errors.append(error)
        finally:
            os.close(descriptor)
    return errors


def refuse_broken(item: Syncable) -> None:
    """Raises KafkaError KAFKA_STORAGE_ERROR if `item` could not be made durable."""
    if item.broken:
        raise KafkaError(Code.KAFKA_STORAGE_ERROR, "the disk failed; restart the broker")
