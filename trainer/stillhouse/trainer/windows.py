"""Windows in the store: planned from what is new, claimed once, moved from state to state by compare-and-set.

claimed → curated → trained → evaluated → registered | rejected(reason). A state's artefact exists before the state does.
"""

import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from stillhouse.schemas.errors import GateError, PermanentError, RetryableError, UsageError
from stillhouse.schemas.tables import ledger_row
from stillhouse.schemas.trajectory import Trajectory
from stillhouse.sdk.ledger import load_ledger
from stillhouse.sdk.store import Store
from stillhouse.sdk.store_arrow import quoted
from stillhouse.trainer import windows_pool
from stillhouse.trainer.curate.counting import Counter
from stillhouse.trainer.curate.draw import Quota
from stillhouse.trainer.curate.pipeline import Curated, Tools, curate
from stillhouse.trainer.decisions import NOBODY, Erasures
from stillhouse.trainer.settings import CurationSettings, WindowSettings
from stillhouse.trainer.windows_pool import Pool
from stillhouse.trainer.windows_requests import open_requests
from stillhouse.trainer.windows_types import NEXT, TERMINAL, Mode, State, Window, WindowPlan, WindowRow

WINDOWS = "windows"
_POOL_COLUMNS = (
    "key", "revision", "content", "chunks", "tenant", "subject", "family", "partition", "first_offset", "last_offset",
    "policies", "outcome", "steps", "output_tokens", "first_occurred_at",
)  # fmt: skip

Clock = Callable[[], int]


def wall_clock() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def plan(
    store: Store,
    settings: WindowSettings,
    *,
    lineage: str | None = None,
    families: Iterable[str] | None = None,
    weights: Mapping[str, float] | None = None,
    size: int | None = None,
    replay: float | None = None,
    mode: Mode | None = None,
    epochs: int = 1,
    barred: Container[str] = (),
    erasures: Erasures = NOBODY,
) -> WindowPlan:
    """What the lineage's next window would be. Nothing is written.

    Args:
        store: where rows and windows are.
        settings: the section `[window]`; the arguments below override it.
        lineage: name of the chain of students.
        families: only these; all by default.
        weights: parts of the families. By default from the failure rates that the parent's evaluation left, where there are any; without
            a parent (it was rolled back) from those of the newest student: they still say what is hard.
        size: new examples to draw; 0 takes all.
        replay: replayed examples for each new one, when the window continues.
        mode: instead of the rule's.
        epochs: passes that training makes: a fresh start must be able to afford the whole pool.
        barred: students that were rolled back, revoked or rejected: never a parent.
        erasures: whose rows may not be used; a parent that learned from one is not continued.

    Raises:
        UsageError: a window of the lineage is still open, or there is no student to continue.
    """
    lineage = lineage or settings.lineage
    windows = {w.key: w for w in list_windows(store, lineage)}
    _none_open(windows.values())
    tip, pool = _pool(store, windows, barred, erasures)
    chosen, why = _mode(mode, windows_pool.mode_of(pool, windows_pool.chain(windows, tip), settings, epochs))
    if chosen == "continue" and (tip is None or pool.stale):
        raise UsageError("there is no student to continue", where=lineage, fix="Run a fresh window.")
    number = max((w.plan.number for w in windows.values()), default=0) + 1
    key = f"{quote(lineage, safe='')}-{number:06d}"
    wanted = set(families) if families is not None else None
    new = [r.row for r in pool.new if wanted is None or r.row.family in wanted][: settings.max_rows]
    size = settings.size if size is None else size
    replay = settings.replay if replay is None else replay
    again = pool.trained
    if chosen == "continue":
        again = windows_pool.to_replay(again, round(replay * min(size or len(new), len(new))), settings.seed, key)
    return WindowPlan(
        key=key,
        lineage=lineage,
        number=number,
        mode=chosen,
        why=why,
        previous=tip.key if tip else None,
        parent=tip.student if tip and not pool.stale else None,
        rows=tuple(new),
        again=(*again, *pool.validation),
        quota=_quota(chosen, size, replay, _weights(weights, tip or _newest(windows.values()), new, settings), key),
        requests=tuple(r.key for r in open_requests(store, lineage, windows.values())),
    )


def claim(store: Store, planned: WindowPlan, *, clock: Clock = wall_clock) -> Window:
    """Take a planned window; only one process can.

    Raises:
        UsageError: it has no rows.
        RetryableError: another process has claimed it: plan again.
    """
    if not planned.rows:
        raise UsageError("nothing new to learn from", where=f"lineage {planned.lineage}", fix="Wait for more trajectories, or import some.")
    now = clock()
    window = Window(plan=planned, history=((State.CLAIMED, now),))
    if store.insert_if_absent(WINDOWS, [_row(window, None, now)]) != 1:
        raise RetryableError("the window was claimed by another process", where=planned.key)
    return window


def advance(store: Store, window: Window, to: State, *, clock: Clock = wall_clock, **facts: Any) -> Window:
    """Move a window on, with the facts of its new state.

    Raises:
        PermanentError: that is not the next state.
        RetryableError: another process moved it: look again.
    """
    if window.state in TERMINAL or (to is not State.REJECTED and NEXT[window.state] is not to):
        raise PermanentError(f"a window cannot go from {window.state.value} to {to.value}", where=window.key)
    now = clock()
    moved = msgspec.structs.replace(window, state=to, history=(*window.history, (to, now)), **facts)
    if store.compare_and_set(WINDOWS, [_row(moved, window, now)], "base_state") != 1:
        raise RetryableError("another process moved the window", where=window.key, fix="Only one trainer should run a lineage.")
    return moved


def list_windows(store: Store, lineage: str | None = None) -> list[Window]:
    """The windows of a lineage, or all, by key. Rows that only ask for a window (`requested`) are not among them."""
    states = ", ".join(quoted(s.value) for s in State)
    where = f"state IN ({states})" + (f" AND scope = {quoted(lineage)}" if lineage is not None else "")
    return [msgspec.convert(row["data"], Window, strict=False) for row in store.rows(WINDOWS, where)]


def show(store: Store, key: str) -> Window:
    """One window.

    Raises:
        UsageError: there is none of that name.
    """
    row = store.by_key(WINDOWS, [key]).get(key)
    if row is None or row["state"] not in [s.value for s in State]:
        raise UsageError("no such window", where=key, fix="`stillhouse windows list` names them.")
    return msgspec.convert(row["data"], Window, strict=False)


def open_window(store: Store, lineage: str) -> Window | None:
    """The lineage's window that is neither registered nor rejected: what a trainer that was killed goes on with."""
    return next((w for w in list_windows(store, lineage) if w.state not in TERMINAL), None)


def students(store: Store, lineage: str) -> int:
    """How many students the lineage has registered."""
    return sum(w.state is State.REGISTERED for w in list_windows(store, lineage))


def waiting(store: Store, lineage: str, *, barred: Container[str] = (), erasures: Erasures = NOBODY) -> Pool:
    """What the lineage's next window would be planned from. Nothing is written; `barred` and `erasures` as for `plan`."""
    return _pool(store, {w.key: w for w in list_windows(store, lineage)}, barred, erasures)[1]


def curate_plan(store: Store, planned: WindowPlan, settings: CurationSettings, counter: Counter, tools: Tools | None = None) -> Curated:
    """Curate what a plan lists. Reads the store and writes nothing: the same plan gives the same result.

    Raises:
        GateError: a listed row was erased since.
    """
    before = {w.key: w for w in list_windows(store, planned.lineage)}
    previous = before.get(planned.previous) if planned.previous is not None else None
    return curate(
        _load(store, (*planned.rows, *planned.again)),
        load_ledger(store, settings),
        settings,
        counter,
        histograms=windows_pool.steps_of(windows_pool.chain(before, previous)),
        again=[row.key for row in planned.again],
        quota=planned.quota,
        tools=tools,
    )


def _load(store: Store, rows: Sequence[WindowRow]) -> list[Trajectory]:
    try:
        return list(store.load_at([row.ref for row in rows]).values())
    except PermanentError as error:
        if error.where.partition(" revision ")[0] not in {row.key for row in rows}:
            raise  # the store's own trouble; an error about a row names it
        raise GateError(f"a listed row is lost: {error.what}", where=error.where, fix=error.fix) from error


def _pool(store: Store, windows: Mapping[str, Window], barred: Container[str], erasures: Erasures) -> tuple[Window | None, Pool]:
    """The window to go on from, and what the lineage has then."""
    stored = store.trajectories(columns=_POOL_COLUMNS)
    rows = [found for row in stored if (found := windows_pool.pool_row(row, erasures)) is not None]
    tip = windows_pool.best(windows, {r.row.key: r.row.content for r in rows}, barred)
    return tip, windows_pool.pool_of(rows, windows, tip)


def _mode(asked: Mode | None, ruled: tuple[Mode, str]) -> tuple[Mode, str]:
    """What was asked for instead of what the rule says, where they differ."""
    return ruled if asked is None or asked == ruled[0] else (asked, "asked for")


def _quota(mode: Mode, size: int, replay: float, weights: dict[str, float] | None, salt: str) -> Quota | None:
    """A fresh window keeps its whole pool; one that continues replays a part of it."""
    if mode == "fresh":
        return Quota(size=size, weights=weights) if size else None
    return Quota(size=size or None, weights=weights, replay=replay, salt=salt)


def _weights(
    given: Mapping[str, float] | None, measured: Window | None, rows: Iterable[WindowRow], settings: WindowSettings
) -> dict[str, float] | None:
    if given is not None:
        return dict(given)
    rates = measured.evaluated.failure_rates if measured and measured.evaluated else {}
    return windows_pool.family_weights(rates, [r.family for r in rows], settings.family_floor) if rates else None


def _newest(windows: Iterable[Window]) -> Window | None:
    done = [w for w in windows if w.state is State.REGISTERED]
    return max(done, key=lambda w: w.plan.number, default=None)


def _none_open(windows: Iterable[Window]) -> None:
    for window in windows:
        if window.state not in TERMINAL:
            raise UsageError(f"a window of this lineage is still {window.state.value}", where=window.key, fix="Run it to its end first.")


def _row(window: Window, before: Window | None, now: int) -> dict[str, Any]:
    started = window.history[0][1]
    base = before.state.value if before else ""
    return ledger_row(window.key, window.plan.lineage, window.state.value, base, msgspec.to_builtins(window, str_keys=True), started, now)
