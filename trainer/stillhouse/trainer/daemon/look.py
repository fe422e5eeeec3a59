"""Gathers what a move is decided on: settings, the store's rows and windows, and the topic `students`."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from stillhouse.sdk.config import Config
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.store import Store, StoreSettings
from stillhouse.trainer import windows
from stillhouse.trainer.daemon.move import Facts, Failure
from stillhouse.trainer.daemon.trial import on_trial
from stillhouse.trainer.decisions import Record, barred, read_students
from stillhouse.trainer.schedule import scheduled
from stillhouse.trainer.settings import TrainerSettings, WindowSettings
from stillhouse.trainer.windows_pool import Pool
from stillhouse.trainer.windows_requests import open_requests, settle
from stillhouse.trainer.windows_types import TERMINAL, State, Window

_TABLES = ("trajectories", "windows")

LoadConfig = Callable[[], Config]
ReadRecords = Callable[[], list[Record]]


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """One look: the facts, both sections as they count for the next window, and the digest of them as they were written down."""

    facts: Facts
    window: WindowSettings
    trainer: TrainerSettings
    settings: str


class Looker:
    """Looks, as often as it is asked. It reads tables again only when they have changed.

    Args:
        load: reads settings: whoever changes the file need not restart the daemon.
        kafka: where the topic `students` is; None where there is no broker.
        clock: microseconds since the epoch.
        records: instead of reading the topic.
    """

    def __init__(
        self, load: LoadConfig, kafka: str | None, clock: windows.Clock = windows.wall_clock, records: ReadRecords | None = None
    ) -> None:
        self._load, self._servers, self._clock, self._records = load, kafka, clock, records
        self._store: Store | None = None
        self._kept: tuple[object, tuple[list[Window], Pool]] | None = None

    def look(self, failure: Failure | None, tried: str) -> Look:
        """What is so now.

        Args:
            failure: of the last job.
            tried: `digest` of the settings that the newest rejected window ran under.

        Raises:
            StillhouseError: settings cannot be read, or store or broker are away.
        """
        config = self._load()
        window, trainer = config.section("window", WindowSettings), config.section("trainer", TrainerSettings)
        records = self._read(config)
        store = self._opened(config)
        out = barred(records, below_teacher=window.continue_below_teacher)
        found, pool = self._tables(store, window.lineage, out)
        now = self._clock()
        settle(store, window.lineage, found, now)
        asked = open_requests(store, window.lineage, found)
        opened = next((w for w in found if w.state not in TERMINAL), None)
        seen = _seen(found, rejected=tried == digest(window, trainer))
        teaching = [r for r in pool.new if r.teaches]
        ready = [r.first_occurred_at for r in teaching if (r.row.key, r.row.content) not in seen]
        facts = Facts(
            now=now,
            open=f"{opened.key} is {opened.state.value}" if opened else "",
            ready=len(ready),
            oldest=min(ready, default=None),
            seen=len(teaching) - len(ready),
            requests=tuple((a.request.reason, a.request.detail or a.request.reason) for a in asked),
            trial=on_trial(records, found, trainer.trial_grace_s),
            mark=_hash(digest(window, trainer), opened and (opened.key, opened.state), [a.key for a in asked]),
            failure=failure,
        )
        students = sum(w.state is State.REGISTERED for w in found)
        counts, counts_too = scheduled(window, trainer, students)
        return Look(facts=facts, window=counts, trainer=counts_too, settings=digest(window, trainer))

    def _read(self, config: Config) -> list[Record]:
        if self._records is not None:
            return self._records()
        if self._servers is None:
            return []
        return read_students(msgspec.structs.replace(config.section("kafka", KafkaSettings), bootstrap_servers=self._servers))

    def _opened(self, config: Config) -> Store:
        if self._store is None:
            self._store = Store.open(config.section("store", StoreSettings).location(config.state))
        return self._store

    def _tables(self, store: Store, lineage: str, out: frozenset[str]) -> tuple[list[Window], Pool]:
        """Windows and pool. A window may list thousands of rows: they are not read every few seconds for nothing."""
        versions = (tuple(store.table(name).version for name in _TABLES), lineage, out)
        if self._kept is None or self._kept[0] != versions:
            self._kept = (versions, (windows.list_windows(store, lineage), windows.waiting(store, lineage, barred=out)))
        return self._kept[1]


def _seen(found: Sequence[Window], *, rejected: bool) -> frozenset[tuple[str, str]]:
    """(key, content) of the rows that are no news: students have learned from them, also one that was rolled back since.

    Args:
        found: the lineage's windows.
        rejected: also those of the windows that were rejected since the last student: the same again would be rejected again.
    """
    last = max((w.plan.number for w in found if w.state is State.REGISTERED), default=0)
    seen = set()
    for window in found:
        if window.curated is not None and window.state is State.REGISTERED:
            back = set(window.curated.returned)
            seen |= {(row.key, row.content) for row in window.plan.rows if row.key not in back}
        elif rejected and window.state is State.REJECTED and window.plan.number > last:
            seen |= {(row.key, row.content) for row in window.plan.rows}
    return frozenset(seen)


def digest(window: WindowSettings, trainer: TrainerSettings) -> str:
    """Of both sections: whoever changes one wants to see what comes of it."""
    return _hash(window, trainer)


def _hash(*parts: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]


def config_loader(path: Path | None, state: Path | None) -> LoadConfig:
    """Reads settings anew each time."""
    return lambda: Config.load(path, state=state)
