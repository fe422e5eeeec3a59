"""The gateway's only memory: which run a conversation is, which arm a unit is in, what was spent. SQLite, written before the reply.

A commit lets the process die (kill -9) without losing it; the machine may lose the last moments. What requests that run at once write is
one commit, and one statement for each table.
"""

import asyncio
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import msgspec

from stillhouse.schemas.errors import PermanentError

FILE = "memory.sqlite"
_SCHEMA = """
create table if not exists chains (hash blob primary key, trajectory text not null) ;
create table if not exists runs (key text primary key, route text not null, unit text, experiment text not null, arm text not null,
    epoch integer not null, student text, spent integer not null default 0) ;
create table if not exists units (route text, unit text, experiment text, arm text not null, epoch integer not null, student text,
    primary key (route, unit, experiment)) ;
create table if not exists outcomes (key text, source text, step integer, event text not null, primary key (key, source, step)) ;
create table if not exists outbox (id integer primary key, at integer not null, event blob not null) ;
create table if not exists ledger (tenant text, route text, variant text, requests integer not null, estimated integer not null,
    input integer not null, cached integer not null, output integer not null, cost integer not null, primary key (tenant, route, variant)) ;
"""
_CHAIN = "insert or replace into chains values (?, ?)"
_RUN = "insert or ignore into runs values (?, ?, ?, ?, ?, ?, ?, ?)"
_UNIT = "insert or ignore into units values (?, ?, ?, ?, ?, ?)"
_SPENT = "update runs set spent = spent + ? where key = ?"
_LEDGER = """insert into ledger values (?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict do update set requests = requests + excluded.requests,
    estimated = estimated + excluded.estimated, input = input + excluded.input, cached = cached + excluded.cached,
    output = output + excluded.output, cost = cost + excluded.cost"""
_OUTCOME = "insert or replace into outcomes values (?, ?, ?, ?)"
_EVENT = "insert into outbox (at, event) values (?, ?)"
_FORGET = "delete from outbox where at < ? and id > ?"
_FORGET_SENT = "delete from outbox where id <= ?"
_STATEMENTS = (_CHAIN, _RUN, _UNIT, _SPENT, _LEDGER, _OUTCOME, _EVENT, _FORGET, _FORGET_SENT)
"""In the order in which they are executed: a run is there before it spends."""
_BOUNDED = ("chains", "runs", "units", "outcomes")
_SWEEP_EVERY = 4096


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A trajectory as the gateway remembers it: where it was assigned, once and for all. `spent` is in micro-dollars."""

    key: str
    route: str
    unit: str | None
    experiment: str
    arm: str
    epoch: int
    student: str | None
    spent: int = 0


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What one request took, by who answered it."""

    tenant: str
    route: str
    variant: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_micro_usd: int
    estimated: bool = False
    requests: int = 1


class Memory:
    """The tables. For one process and one event loop.

    Args:
        folder: where the file lies; made if need be.
        rows: how many rows each table keeps; the oldest go.

    Raises:
        PermanentError: the file cannot be opened, or another gateway has it.
    """

    def __init__(self, folder: Path, rows: int = 1_000_000) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._rows, self._writes = rows, 0
        self._queue: dict[str, list[tuple[object, ...]]] = {}
        self._failed: sqlite3.Error | None = None
        self._pending: asyncio.Future[None] | None = None
        try:
            self._db = sqlite3.connect(folder / FILE, isolation_level=None, timeout=1.0, cached_statements=64)
            for pragma in ("journal_mode=wal", "synchronous=normal", "locking_mode=exclusive", "cache_size=-16000"):
                self._db.execute(f"pragma {pragma}")
            self._db.executescript(_SCHEMA)
            self._sweep()  # or a gateway that is restarted before its next sweep, again and again, would keep everything
        except sqlite3.Error as error:
            fix = "One gateway has the state folder for itself: stop the other one, or give this one a folder with --state."
            raise PermanentError(f"the gateway's memory cannot be opened: {error}", where=str(folder / FILE), fix=fix) from error

    def trajectory_of(self, chain: bytes) -> str | None:
        """The run that a conversation so far belongs to."""
        found = self._read("select trajectory from chains where hash = ?", (chain,)).fetchone()
        return None if found is None else str(found[0])

    def remember_chain(self, chain: bytes, trajectory: str) -> None:
        """Find this conversation again."""
        self._write(_CHAIN, (chain, trajectory))

    def run(self, key: str) -> Run | None:
        """A trajectory, by its key."""
        row = self._read("select key, route, unit, experiment, arm, epoch, student, spent from runs where key = ?", (key,)).fetchone()
        return None if row is None else Run(**dict(zip(Run.__struct_fields__, row, strict=True)))

    def add_run(self, run: Run) -> None:
        """Remember a new trajectory."""
        self._write(_RUN, msgspec.structs.astuple(run))

    def unit(self, route: str, unit: str, experiment: str) -> tuple[str, int, str | None] | None:
        """Arm, epoch and student of a unit within an experiment."""
        query = "select arm, epoch, student from units where route = ? and unit = ? and experiment = ?"
        row = self._read(query, (route, unit, experiment)).fetchone()
        return None if row is None else (str(row[0]), int(row[1]), row[2])

    def add_unit(self, run: Run) -> None:
        """Remember the arm of a new run's unit."""
        values = (run.route, run.unit, run.experiment, run.arm, run.epoch, run.student)
        self._write(_UNIT, values)

    def spend(self, key: str, spent: Iterable[Spent]) -> None:
        """Book what a request took, on its trajectory and in the ledger."""
        total = 0
        for one in spent:
            total += one.cost_micro_usd
            values = (one.tenant, one.route, one.variant, one.requests, int(one.estimated), one.input_tokens, one.cached_tokens)
            self._write(_LEDGER, (*values, one.output_tokens, one.cost_micro_usd))
        if total:
            self._write(_SPENT, (total, key))

    def ledger(self) -> list[dict[str, int | str]]:
        """The ledger's lines: tokens and micro-dollars of each tenant, route and variant."""
        names = ("tenant", "route", "variant", "requests", "estimated", "input", "cached", "output", "cost_micro_usd")
        return [dict(zip(names, row, strict=True)) for row in self._read("select * from ledger order by 1, 2, 3")]

    def arms(self) -> list[tuple[str, str, str, int, int]]:
        """Route, experiment, arm, epoch and how many enrolled trajectories have them."""
        query = "select route, experiment, arm, epoch, count(*) from runs where unit is not null group by 1, 2, 3, 4"
        return list(self._read(query))

    def outcome(self, key: str, source: str, step: int | None) -> str | None:
        """The event of an outcome that was given already."""
        query = "select event from outcomes where key = ? and source = ? and step = ?"
        row = self._read(query, (key, source, _step(step))).fetchone()
        return None if row is None else str(row[0])

    def add_outcome(self, key: str, source: str, step: int | None, event: str) -> None:
        """Remember that an outcome was given."""
        self._write(_OUTCOME, (key, source, _step(step), event))

    def add_event(self, at: int, event: bytes) -> None:
        """Keep an event until it is sure to be on its way."""
        self._write(_EVENT, (at, event))

    def events(self, last: int, limit: int) -> list[tuple[int, bytes]]:
        """Number and text of the first events that are kept, up to a number."""
        query = "select id, event from outbox where id <= ? order by id limit ?"
        return [(int(number), bytes(event)) for number, event in self._read(query, (last, limit))]

    def last_event(self) -> int:
        """The number of the latest event that is kept; 0 without any."""
        return int(self._read("select coalesce(max(id), 0) from outbox").fetchone()[0])

    def forget_events(self, before: int, after: int) -> None:
        """Drop the events that were added before a time, of those beyond a number."""
        self._write(_FORGET, (before, after))

    def forget_events_to(self, number: int) -> None:
        """Drop the events up to a number."""
        self._write(_FORGET_SENT, (number,))

    async def committed(self) -> None:
        """Wait until everything written so far survives this process."""
        if self._queue or self._failed or self._db.in_transaction:
            if self._pending is None:
                loop = asyncio.get_running_loop()
                self._pending = loop.create_future()
                loop.call_soon(self._commit)
            await asyncio.shield(self._pending)

    def close(self) -> None:
        """Commit and close."""
        self._execute()
        if self._db.in_transaction:
            self._db.execute("commit")
        self._db.close()

    def _read(self, query: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        """A query's result, with all that was written before it."""
        self._execute()
        return self._db.execute(query, values)

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        self._queue.setdefault(statement, []).append(values)
        self._writes += 1

    def _execute(self) -> None:
        """What was queued, in the open transaction. What fails is told by the commit: it is no fault of a read's."""
        if not self._queue:
            return
        queue, self._queue = self._queue, {}
        try:
            if not self._db.in_transaction:
                self._db.execute("begin")
            for statement in _STATEMENTS:
                if rows := queue.get(statement):
                    self._db.executemany(statement, rows)
        except sqlite3.Error as error:
            self._failed = error

    def _commit(self) -> None:
        pending, self._pending = self._pending, None
        try:
            self._execute()
            if self._writes >= _SWEEP_EVERY:
                self._sweep()
            if self._db.in_transaction:
                self._db.execute("commit")
            failed, self._failed = self._failed, None
            if failed is not None:
                raise failed
        except sqlite3.Error as error:
            if pending is not None:
                pending.set_exception(error)
            return
        if pending is not None:
            pending.set_result(None)

    def _sweep(self) -> None:
        """Rows come with growing row ids, so those far below the newest are the oldest."""
        self._writes = 0
        for table in _BOUNDED:
            self._db.execute(f"delete from {table} where rowid <= (select max(rowid) from {table}) - ?", (self._rows,))


def _step(step: int | None) -> int:
    return -1 if step is None else step
