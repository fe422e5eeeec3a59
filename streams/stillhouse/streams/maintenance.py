"""Keeping the tables fast: compaction, index, old versions, orphaned chunks. By one process under a lease.

LanceDB's `optimize()` would rewrite whole tables, so the three parts are called one by one on the dataset (pylance).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from stillhouse.schemas.errors import StillhouseError
from stillhouse.schemas.tables import TABLES
from stillhouse.sdk.store import Store
from stillhouse.sdk.store_arrow import store_errors
from stillhouse.streams.instruments import Instruments
from stillhouse.streams.lease import Lease
from stillhouse.streams.logs import logger
from stillhouse.streams.settings import IngestSettings

log = logger(__name__)

ROWS_A_FRAGMENT = 200_000
CHECK_S = 5.0
MANY_FRAGMENTS = 64
DAY = 24 * 3600 * 1_000_000
SWEPT_AT_ONCE = 10_000


def _now() -> int:
    return time.time_ns() // 1000


def p95(seconds: Sequence[float]) -> float:
    """The 95th percentile; 0 of nothing."""
    return sorted(seconds)[int(0.95 * (len(seconds) - 1))] if seconds else 0.0


class Maintainer:
    """Runs maintenance when it is due, or when flushes become slow.

    Args:
        store: the store.
        settings: the section `[ingest]`.
        instruments: metrics.
        holder: this process's name.
        recent: seconds of the last flushes.
        now: microseconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        settings: IngestSettings,
        instruments: Instruments,
        holder: str,
        recent: Callable[[], Sequence[float]],
        now: Callable[[], int] = _now,
    ) -> None:
        self._store, self._settings, self._instruments, self._recent, self._now = store, settings, instruments, recent, now
        self._lease = Lease(store, "maintenance", holder, 10 * 60, now)
        self._last = now()
        self._swept_to, self._swept_at = 0, -DAY  # chunks stored before are named by rows, and stay so; a new process looks at all once

    async def run(self) -> None:
        """Look every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            if self.due():
                self._last = self._now()
                try:
                    await asyncio.to_thread(self.once)
                except StillhouseError as error:
                    log.warning("maintenance was interrupted; it runs again", error=str(error))

    def due(self) -> bool:
        """Whether its time has come; sooner, at a tenth of it, when flushes are slow."""
        age = (self._now() - self._last) / 1e6
        slow = p95(self._recent()) > self._settings.maintenance_flush_p95
        return age >= self._settings.maintenance_every / (10 if slow else 1)

    def once(self) -> bool:
        """Maintain every table, if this process gets the lease.

        Returns:
            Whether it did.

        Raises:
            UnreachableError: the store does not answer, or a writer was faster: run it again.
        """
        if not self._lease.take():
            return False
        if self._now() - self._swept_at >= DAY:
            self.sweep_orphans()
            self._swept_at = self._now()
        for name in TABLES:
            started = time.monotonic()
            with store_errors(name):
                self._maintain(self._store.table(name))
            self._instruments.observe("stillhouse_store_maintenance_seconds", time.monotonic() - started, table=name)
            if not self._lease.take():
                return True
        return True

    def _maintain(self, table: Any) -> None:
        dataset = table.to_lance()
        if len(dataset.get_fragments()) >= MANY_FRAGMENTS:
            dataset.optimize.compact_files(target_rows_per_fragment=ROWS_A_FRAGMENT)
            dataset = table.to_lance()
        if dataset.count_rows():
            dataset.optimize.optimize_indices()
        table.to_lance().cleanup_old_versions(older_than=timedelta(seconds=self._settings.keep_versions))

    def sweep_orphans(self) -> int:
        """Delete old chunks that no row names: what a crash between chunk and row left, or a lost compare-and-set.

        Some at a time, by when they were stored, and each only once: a chunk that a row names is never dropped by that row, but
        for an erasure, which deletes it itself. What was interrupted goes on where it was.

        Returns:
            How many.

        Raises:
            UnreachableError: the store does not answer.
        """
        cutoff, count = self._now() - int(self._settings.orphan_age * 1e6), 0
        while self._swept_to < cutoff:
            where = f"stored_at >= {self._swept_to} AND stored_at < {cutoff}"
            times = self._store.rows("transcripts", where, ("stored_at",), SWEPT_AT_ONCE, "stored_at")
            end = times[-1]["stored_at"] + 1 if len(times) == SWEPT_AT_ONCE else cutoff
            count += self._sweep(self._swept_to, end)
            self._swept_to = end
        return count

    def _sweep(self, start: int, end: int) -> int:
        """Delete the orphans that were stored from `start` until before `end`."""
        stored = f"stored_at >= {start} AND stored_at < {end}"
        old = self._store.rows("transcripts", stored, ("key", "trajectory"))
        rows = self._store.by_key("trajectories", [chunk["trajectory"] for chunk in old], ("key", "chunks"))
        orphans = [chunk["key"] for chunk in old if chunk["key"] not in rows.get(chunk["trajectory"], {}).get("chunks", ())]
        for first in range(0, len(orphans), 1000):
            listed = ", ".join(f"'{key}'" for key in orphans[first : first + 1000])  # hex digests
            # The age again: a flush that needs an orphan after all makes it young first.
            self._store.delete("transcripts", f"{stored} AND key IN ({listed})")
        return len(orphans)
