"""One look at the store: what is due is asked for. Everything it knows is in the store, so a look that a crash cut short is made again.

The order, and what a crash after each step leaves:

1. window requests, insert-if-absent by lineage, reason and bucket · 2. tasks are placed for ever in the leader ledger ·
3. issues are inserted if absent, `issuing` · 4. what is `issuing` and within its day's budget is published, each delivery awaited
(a crash here: published again by the next look, under the same task id, which a runner claims once) · 5. they become `issued`.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from stillhouse.schemas.facts import TeacherTask
from stillhouse.schemas.fold import ERASED
from stillhouse.schemas.tables import ledger_row
from stillhouse.schemas.teacher_runs import ISSUED, ISSUING, RUNNER, TABLE, Issue, teacher_fingerprint
from stillhouse.schemas.window_request import WINDOWS, row_of
from stillhouse.sdk.routes import RouteSettings
from stillhouse.sdk.store import Store
from stillhouse.sdk.store_arrow import quoted
from stillhouse.sdk.window_settings import WindowSettings
from stillhouse.streams.signals import triggers
from stillhouse.streams.signals.places import Places
from stillhouse.streams.signals.runs import COLUMNS, FamilyRate, Run, rates, run_of
from stillhouse.streams.signals.settings import SignalsSettings
from stillhouse.streams.signals.tasks import DAY, Budget, Candidate, candidates, choose, day_of, within

AT_ONCE = 200
"""Candidates whose tasks are read and placed in one go, and how many times a look goes."""
GOES = 10

Reached = Callable[[str], None]


class Seen(msgspec.Struct, kw_only=True):
    """What a look found and did."""

    families: list[FamilyRate]
    requested: list[str] = []
    issued: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)
    passed: Counter[str] = msgspec.field(default_factory=Counter)
    left: dict[tuple[str, str], int] = {}


class Look:
    """Looks at the store. Blocking: for a thread, except `publish`, which is awaited.

    Args:
        store: where everything is.
        settings: `[signals]`.
        window: `[window]`.
        routes: `[routes.<name>]`.
        forgotten: says of a tenant and subject whether it is to be erased.
        reached: the hook at each step.
    """

    def __init__(
        self,
        store: Store,
        settings: SignalsSettings,
        window: WindowSettings,
        routes: Mapping[str, RouteSettings],
        forgotten: Callable[[str, str], bool],
        reached: Reached = lambda step: None,
    ) -> None:
        self._store, self._settings, self._window, self._routes = store, settings, window, routes
        self._forgotten, self._reached = forgotten, reached
        self._places = Places(store, window)

    def requests(self, now: int, watermark: int | None) -> tuple[Seen, list[Run]]:
        """Ask for windows. Without a watermark nobody can say how old anything is: then none are asked for.

        Returns:
            What was found, and the runs for `issue`.

        Raises:
            UnreachableError: the store does not answer.
        """
        runs = self._runs(now)
        families = rates(runs)
        seen = Seen(families=families)
        if watermark is not None:
            rows = self._store.rows(WINDOWS, f"scope = {quoted(self._window.lineage)}", ("state", "data"))
            due = triggers.requests(runs, families, triggers.lineage_of(rows), watermark, self._window, self._settings)
            for request in due:
                if self._store.insert_if_absent(WINDOWS, [row_of(request, now)]):
                    seen.requested.append(request.reason)
        self._reached("requests")
        return seen, runs

    def issue(self, now: int, runs: Sequence[Run], seen: Seen) -> None:
        """Place the tasks of failures and insert issues within the budget.

        Raises:
            UnreachableError: the store does not answer.
        """
        today = self._issues(f"state IN ({quoted(ISSUING)}, {quoted(ISSUED)}) AND created_at >= {now - now % DAY}")
        budget = Budget(self._settings, (issue for issue in today.values() if issue.day == day_of(now)))
        wanted = candidates(
            runs,
            seen.families,
            now,
            self._settings,
            runners=self._runners(now),
            teacher_of=self._teacher_of,
            can_relabel=self._can_relabel,
            forgotten=self._forgotten,
        )
        for _ in range(GOES):
            # A family without budget must not keep the next one's candidates from being looked at.
            wanted = [one for one in wanted if budget.left(one.run.route, one.run.family)]
            some, wanted = wanted[:AT_ONCE], wanted[AT_ONCE:]
            if not some:
                break
            self._go(some, budget, now, seen)
        seen.left = {(f.route, f.family): budget.left(f.route, f.family) for f in seen.families}

    def _go(self, some: Sequence[Candidate], budget: Budget, now: int, seen: Seen) -> None:
        texts = self._places.texts([one.run for one in some])
        ledger = self._places.ledger()
        new = [text for text in texts.values() if ledger.place(text.tenant, text.family, text.task_key) is None]
        if new:
            ledger = self._places.place(new)
        self._reached("placed")
        # Chosen once without looking at what was issued, to learn the keys; then those that are there already cost no budget.
        keys = choose(some, texts, ledger, (), _Endless(self._settings), now).issues
        chosen = choose(some, texts, ledger, self._store.by_key(TABLE, keys, ("key",)), budget, now)
        seen.passed += chosen.passed
        rows = [
            ledger_row(key, issue.task.family or "", ISSUING, "", msgspec.to_builtins(issue), now, now)
            for key, issue in chosen.issues.items()
        ]
        self._store.insert_if_absent(TABLE, rows)
        self._reached("issuing")

    def pending(self, now: int) -> dict[str, Issue]:
        """What waits to be published. What is over its day's budget, because several workers looked at once, is taken back.

        Raises:
            UnreachableError: the store does not answer.
        """
        pending = self._issues(f"state = {quoted(ISSUING)}")
        if not pending:
            return {}
        first = min(issue.day for issue in pending.values())
        counted = self._issues(f"state = {quoted(ISSUED)} AND created_at >= {now - now % DAY - 2 * DAY}")
        good, over = within(self._settings, (issue for issue in counted.values() if issue.day >= first), pending)
        if over:
            self._store.delete(TABLE, f"state = {quoted(ISSUING)} AND key IN ({', '.join(map(quoted, over))})")
        return {key: pending[key] for key in good}

    async def publish(self, pending: Mapping[str, Issue], send: Callable[[list[TeacherTask]], Awaitable[None]]) -> None:
        """Publish what waits, the most wanted first.

        Raises:
            UnreachableError: the broker does not answer.
        """
        tasks = sorted((issue.task for issue in pending.values()), key=lambda task: (-task.priority, task.task_id))
        await send(tasks)
        self._reached("published")

    def done(self, pending: Mapping[str, Issue], now: int, seen: Seen) -> None:
        """Note that they are published.

        Raises:
            UnreachableError: the store does not answer.
        """
        rows = [
            ledger_row(key, issue.task.family or "", ISSUED, ISSUING, msgspec.to_builtins(issue), issue.task.issued_at, now)
            for key, issue in pending.items()
        ]
        self._store.compare_and_set(TABLE, rows, "base_state")
        seen.issued.update((issue.task.kind.value, issue.task.family or "") for issue in pending.values())
        self._reached("issued")

    def _runs(self, now: int) -> list[Run]:
        since = now - round(self._settings.lookback_days * DAY)
        where = f"appended_at >= {since} AND content <> {quoted(ERASED)} AND outcome IN ('success', 'failure')"
        return [run_of(row) for row in self._store.trajectories(where, COLUMNS)]

    def _issues(self, where: str) -> dict[str, Issue]:
        rows = self._store.rows(TABLE, where, ("key", "data"))
        return {row["key"]: msgspec.convert(row["data"], Issue, strict=False) for row in rows}

    def _runners(self, now: int) -> set[str]:
        since = now - round(self._settings.runner_days * DAY)
        return {row["scope"] for row in self._store.rows(TABLE, f"state = {quoted(RUNNER)} AND updated_at >= {since}", ("scope",))}

    def _teacher_of(self, route: str) -> str:
        found = self._routes.get(route)
        return teacher_fingerprint(found.teacher_model if found else self._settings.teacher_model, self._settings.teacher_version)

    def _can_relabel(self, route: str) -> bool:
        return route in self._routes or bool(self._settings.teacher_url and self._settings.teacher_model)


class _Endless(Budget):
    """Nothing is ever used up."""

    def take(self, route: str, family: str) -> bool:
        """Always."""
        return True


def wall_clock() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000
