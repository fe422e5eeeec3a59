"""One signals worker: Faust reads facts, and at most once in `refresh` seconds somebody in the group looks at the store."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from stillhouse.schemas.errors import PermanentError, RetryableError, UnreachableError
from stillhouse.schemas.registry import Resolvers, TopicResolver
from stillhouse.schemas.teacher_runs import TABLE
from stillhouse.schemas.topics import TEACHER_TASKS, TRAJECTORIES
from stillhouse.schemas.window_request import WINDOWS
from stillhouse.sdk.kafka import KafkaSettings, schema_registry, topic_name
from stillhouse.sdk.ledger import LEADERS
from stillhouse.sdk.routes import RouteSettings
from stillhouse.sdk.store import Store
from stillhouse.sdk.window_settings import WindowSettings
from stillhouse.streams.ingest.follow import Erasures, Follower
from stillhouse.streams.ingest.outbox import Outbox
from stillhouse.streams.ingest.status import Answer, Labels
from stillhouse.streams.instruments import Instruments
from stillhouse.streams.lease import Lease
from stillhouse.streams.logs import logger
from stillhouse.streams.signals.look import Look, Reached, Seen, wall_clock
from stillhouse.streams.signals.reader import Facts, FaustRecord, Guard, make_app
from stillhouse.streams.signals.settings import SignalsSettings

log = logger(__name__)

RETRY_S = 1.0
TICK_S = 0.2
JOIN_S = 0.1


class Sections(NamedTuple):
    """The settings that signals reads."""

    kafka: KafkaSettings
    signals: SignalsSettings
    window: WindowSettings
    routes: Mapping[str, RouteSettings]


class Worker:
    """Start it, run it, close it.

    Args:
        sections: the settings.
        store: the store.
        name: of this worker, among all.
        datadir: a folder that Faust wants.
        instruments: metrics.
        now: microseconds since the epoch.
        monotonic: seconds.
        reached: the hook at each step of a look.
    """

    def __init__(
        self,
        sections: Sections,
        store: Store,
        name: str,
        datadir: str,
        instruments: Instruments,
        now: Callable[[], int] = wall_clock,
        monotonic: Callable[[], float] = time.monotonic,
        reached: Reached = lambda step: None,
    ) -> None:
        kafka, settings = sections.kafka, sections.signals
        self._sections, self._store, self._instruments, self._now, self._monotonic = sections, store, instruments, now, monotonic
        self._erasures, schemas = Erasures(), TopicResolver()
        registry = schema_registry(kafka)
        resolver = Resolvers([schemas] if registry is None else [schemas, registry])
        self._follower, self._outbox = Follower(kafka, self._erasures, schemas, resolver), Outbox(kafka)
        self.facts = Facts()
        self._guard = Guard(self.facts, resolver, self._follower.catch_up, self._outbox.dead_letters, self._pause, self._dead)
        self._app: Any = make_app(kafka, settings, datadir, self._handle)
        self._look = Look(store, settings, sections.window, sections.routes, self._erasures, reached)
        self._lease = Lease(store, topic_name(kafka, settings.group), name, settings.lease, now)
        self._stopping = asyncio.Event()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._following = asyncio.Lock()
        self._families = Labels()
        self._looked = monotonic()

    async def start(self) -> None:
        """Read erasures and schemas whole, look for topics and tables, then join the group.

        Raises:
            UnreachableError: no broker answers.
            PermanentError: a topic is missing, or a table is not ours.
        """
        await self._follower.start()
        kafka = self._sections.kafka
        wanted = {topic_name(kafka, name) for name in (TRAJECTORIES, TEACHER_TASKS)}
        if missing := sorted(wanted - await self._follower.topics()):
            raise PermanentError(f"no topic {', '.join(missing)}", where=kafka.bootstrap_servers, fix="Run `stillhouse topics apply`.")
        await asyncio.to_thread(self._open_tables)
        await self._outbox.start()
        await self._app.start()

    def _open_tables(self) -> None:
        for name in ("trajectories", WINDOWS, LEADERS, TABLE, "leases"):
            self._store.table(name)

    def stop(self) -> None:
        """Ask it to end."""
        self._stopping.set()

    async def run(self, joined: Callable[[], None]) -> None:
        """Work until `stop` is called. `joined` is called once, when the group has given partitions.

        Raises:
            PermanentError: what a person must decide or mend.
            UnreachableError: the broker is gone for good, as Faust sees it.
        """
        ends: list[asyncio.Future[Any]] = [self._failed]
        ends += [asyncio.ensure_future(work) for work in (self._looks(joined), self._crash(), self._stopping.wait())]
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in done:
                end.result()
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def close(self) -> None:
        """Leave the group and disconnect."""
        with suppress(RetryableError):  # it runs out by itself
            await asyncio.to_thread(self._lease.release)
        for part in (self._app, self._outbox, self._follower):
            await part.stop()

    async def _handle(self, record: FaustRecord) -> None:
        """One record, for Faust. What a person must mend ends the process, and the record is not acknowledged."""
        try:
            await self._guard(record)
        except Exception as error:  # noqa: BLE001 - raised into Faust it would be logged, and the record lost
            if not self._failed.done():
                self._failed.set_exception(error)
            await asyncio.Event().wait()

    async def _crash(self) -> None:
        await self._app.wait_until_stopped()
        raise UnreachableError(f"Faust has stopped: {self._app.crash_reason!r}", where=self._sections.kafka.bootstrap_servers)

    async def _looks(self, joined: Callable[[], None]) -> None:
        while not self.joined:
            await asyncio.sleep(JOIN_S)
        joined()
        due = float("-inf")
        while not self._stopping.is_set():
            if self._monotonic() >= due:
                due = self._monotonic() + self._sections.signals.refresh
                await self._try()
            await asyncio.sleep(TICK_S)

    async def _try(self) -> None:
        started = self._monotonic()
        self._counts()
        try:
            if await asyncio.to_thread(self._lease.take):
                self._show(await self.look())
        except RetryableError as error:
            self._instruments.count("stillhouse_signals_errors_total")
            log.warning("a look was incomplete", error=str(error))
            return
        self._looked = self._monotonic()
        self._instruments.observe("stillhouse_signals_look_seconds", self._looked - started)

    async def look(self) -> Seen:
        """Look once, whoever holds the lease.

        Raises:
            UnreachableError: the store or the broker does not answer.
        """
        async with self._following:
            await self._follower.poll()
        now, look, settings = self._now(), self._look, self._sections.signals
        self.facts.fresh = False
        seen, runs = await asyncio.to_thread(look.requests, now, self.facts.watermark)
        if settings.tasks == "on":
            await asyncio.to_thread(look.issue, now, runs, seen)
            pending = await asyncio.to_thread(look.pending, now)
            if pending:
                await look.publish(pending, self._outbox.tasks)
                await asyncio.to_thread(look.done, pending, self._now(), seen)
        return seen

    async def _pause(self) -> None:
        await asyncio.sleep(RETRY_S)

    def _dead(self, reason: str) -> None:
        self._instruments.count("stillhouse_signals_dlq_total", reason=reason)

    def _counts(self) -> None:
        for kind, number in self.facts.counts.items():
            self._instruments.count("stillhouse_signals_records_total", number, kind=kind)
            self.facts.counts[kind] = 0
        self._instruments.set("stillhouse_signals_watermark_seconds", (self.facts.watermark or 0) / 1e6)

    def _show(self, seen: Seen) -> None:
        count, gauge, label = self._instruments.count, self._instruments.set, self._families
        count("stillhouse_signals_looks_total")
        for reason in seen.requested:
            count("stillhouse_signals_window_requests_total", reason=reason)
        for (kind, family), number in seen.issued.items():
            count("stillhouse_signals_tasks_total", number, kind=kind, family=label(family))
        for reason in ("unplaced", "held_out", "issued_before", "over_budget"):
            gauge("stillhouse_signals_passed", seen.passed[reason], reason=reason)
        for one in seen.families:
            gauge("stillhouse_signals_failure_rate", one.failures / one.runs, route=one.route, family=label(one.family))
        for (route, family), left in seen.left.items():
            gauge("stillhouse_signals_budget_left", left, route=route, family=label(family))
        if seen.requested or seen.issued:
            log.info("asked", windows=seen.requested, tasks={f"{kind}/{family}": n for (kind, family), n in seen.issued.items()})

    @property
    def joined(self) -> bool:
        """Whether the group has given this worker partitions."""
        consumer = self._app.consumer
        return bool(consumer is not None and consumer.assignment())

    def healthy(self) -> Answer:
        """Whether looks are made, or tried."""
        idle = self._monotonic() - self._looked
        limit = max(self._sections.signals.patience, 3 * self._sections.signals.refresh)
        return idle < limit, {"seconds_since_look": round(idle, 1)}

    def ready(self) -> Answer:
        """Whether facts are read."""
        return self.joined, {"joined": self.joined, "watermark": self.facts.watermark}
