"""Which rows a lineage may still learn from, its best student, and whether to start afresh: pure functions of rows and windows.

A lineage is a chain: each window goes on from the pool of an earlier one. What a window outside the chain used is in the pool again.
"""

from collections.abc import Container, Iterable, Mapping, Sequence

import msgspec

from stillhouse.schemas.events import Outcome, PolicyRole
from stillhouse.schemas.fold import ERASED
from stillhouse.schemas.ledger import chance
from stillhouse.trainer.curate.draw import shares
from stillhouse.trainer.decisions import NOBODY, Erasures
from stillhouse.trainer.gates import Candidate, Rejection, choose_parent
from stillhouse.trainer.ledger_histograms import StepHistograms
from stillhouse.trainer.settings import WindowSettings
from stillhouse.trainer.windows_types import Mode, State, Window, WindowRow

HOUR_US = 3_600_000_000
_STEP_TOKENS = 64  # of a step whose source did not count its tokens; only the choice of a mode rests on it


class PoolRow(msgspec.Struct, frozen=True, kw_only=True):
    """A stored row as planning sees it. `tokens` is what its policies wrote, estimated where the source did not say."""

    row: WindowRow
    teaches: bool
    tokens: int
    first_occurred_at: int


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """What a lineage has: rows new to it, rows it learned from, and why its last student must not be trained further, if so."""

    new: tuple[PoolRow, ...]
    trained: tuple[WindowRow, ...]
    validation: tuple[WindowRow, ...]
    tokens: int
    stale: bool


def pool_row(row: Mapping[str, object], erasures: Erasures = NOBODY) -> PoolRow | None:
    """A row of the table `trajectories`; None for an erased one, or one that ingest is about to erase."""
    if row["content"] == ERASED or erasures.covers(str(row["tenant"]), row["subject"]):  # type: ignore[arg-type]
        return None
    fields: dict[str, object] = {name: row.get(name) for name in WindowRow.__struct_fields__}
    fields |= {"family": row.get("family") or "", "chunks": tuple(row["chunks"])}  # type: ignore[arg-type]
    roles = {str(p.get("role")) for p in row.get("policies") or ()}  # type: ignore[attr-defined]
    steps, written = int(row.get("steps") or 0), int(row.get("output_tokens") or 0)  # type: ignore[call-overload]
    return PoolRow(
        row=msgspec.convert(fields, WindowRow),
        teaches=row.get("outcome") == Outcome.SUCCESS.value and bool(roles & {PolicyRole.TEACHER.value, PolicyRole.HUMAN.value}),
        tokens=written or steps * _STEP_TOKENS,
        first_occurred_at=int(row.get("first_occurred_at") or 0),  # type: ignore[call-overload]
    )


def chain(windows: Mapping[str, Window], tip: Window | None) -> list[Window]:
    """The windows that a window goes on from, itself first."""
    found = []
    while tip is not None:
        found.append(tip)
        tip = windows.get(tip.plan.previous) if tip.plan.previous is not None else None
    return found


def learned_by(links: Iterable[Window]) -> list[WindowRow]:
    """The rows that the newest student of a chain has learned from: back to where it started afresh."""
    rows: dict[str, WindowRow] = {}
    for window in links:
        trained = window.curated.trained if window.curated else {}
        for row in (*window.plan.rows, *window.plan.again):
            if row.key in trained:
                rows.setdefault(row.key, row)
        if window.plan.mode == "fresh":
            break
    return list(rows.values())


def is_stale(windows: Mapping[str, Window], window: Window, contents: Mapping[str, str]) -> bool:
    """Whether a row that the student learned from was erased, or revised, since."""
    return any(contents.get(row.key) != row.content for row in learned_by(chain(windows, window)))


def best(windows: Mapping[str, Window], contents: Mapping[str, str], barred: Container[str] = ()) -> Window | None:
    """The window whose student the next one follows: `choose_parent` of the registered ones.

    One whose rows were erased or revised since counts only when there is no other, and then for its pool, not for its weights.

    Args:
        windows: the lineage's, by key.
        contents: the current content of each row, by key.
        barred: names of students that were rolled back or revoked.
    """
    done = sorted((w for w in windows.values() if w.state is State.REGISTERED), key=lambda w: w.plan.number)
    candidates = [
        Candidate(
            name=w.key,
            success=w.evaluated.success if w.evaluated else None,
            loss=w.trained.validation_loss if w.trained else None,
            format_passed=True,  # and the loss gate, or it would not have been registered
            data_passed=not is_stale(windows, w, contents),
            rejected=Rejection.REGRESSION if w.student in barred else None,
        )
        for w in done
    ]
    chosen = choose_parent(candidates)
    return windows[chosen.name] if chosen else next((w for w in reversed(done) if w.student not in barred), None)


def pool_of(rows: Sequence[PoolRow], windows: Mapping[str, Window], tip: Window | None) -> Pool:
    """Sort the stored rows by what the lineage has done with them.

    Args:
        rows: all stored rows, without erased ones.
        windows: the lineage's, by key.
        tip: the window to go on from.
    """
    contents = {r.row.key: r.row.content for r in rows}
    used, trained, validation, tokens = set(), {}, {}, 0
    for window in chain(windows, tip):
        facts = window.curated
        for row in (*window.plan.rows, *window.plan.again):
            current = contents.get(row.key) == row.content
            if facts and row.key not in facts.returned:
                used.add((row.key, row.content))
            if facts and current and row.key in facts.trained and row.key not in trained:
                trained[row.key] = row
                tokens += facts.trained[row.key]
            elif facts and current and row.key in facts.validation:
                validation[row.key] = row
    new = sorted((r for r in rows if (r.row.key, r.row.content) not in used), key=lambda r: (r.first_occurred_at, r.row.key))
    return Pool(
        new=tuple(new),
        trained=tuple(trained[k] for k in sorted(trained)),
        validation=tuple(validation[k] for k in sorted(validation)),
        tokens=tokens + sum(r.tokens for r in new if r.teaches),
        stale=tip is not None and is_stale(windows, tip, contents),
    )


def mode_of(pool: Pool, links: Sequence[Window], settings: WindowSettings, epochs: int) -> tuple[Mode, str]:
    """Whether to start from the base model, and why: a chain of adapters cannot forget, and drifts."""
    if not links:
        return "fresh", "the lineage's first window"
    if pool.stale:
        return "fresh", "a row that the parent learned from was erased or revised"
    since = next((i for i, w in enumerate(links) if w.plan.mode == "fresh"), len(links)) + 1
    if since >= settings.fresh_every:
        return "fresh", f"{since} windows since the last fresh one"
    if pool.tokens * epochs <= settings.max_tokens:
        return "fresh", f"the whole pool fits: {pool.tokens} tokens, {epochs} epochs, at most {settings.max_tokens}"
    return "continue", f"the pool is too large to start afresh: {pool.tokens} tokens, {epochs} epochs, at most {settings.max_tokens}"


def to_replay(rows: Sequence[WindowRow], count: int, seed: int, salt: str) -> tuple[WindowRow, ...]:
    """Earlier rows to replay, uniform over their families, drawn by a hash."""
    order = sorted(rows, key=lambda r: (chance(seed, "replay", salt, r.key), r.key))
    sizes: dict[str, int] = {}
    for row in order:
        sizes[row.family] = sizes.get(row.family, 0) + 1
    left = shares(count, dict.fromkeys(sizes, 1.0), sizes)
    drawn = []
    for row in order:
        if left[row.family]:
            left[row.family] -= 1
            drawn.append(row)
    return tuple(sorted(drawn, key=lambda r: r.key))


def steps_of(links: Iterable[Window]) -> StepHistograms:
    """The histograms of a chain: the sum of what each window added."""
    total = StepHistograms()
    for window in links:
        total = total.plus(window.curated.histograms if window.curated else StepHistograms())
    return total


def family_weights(failure_rates: Mapping[str, float], families: Iterable[str], floor: float) -> dict[str, float]:
    """A family's part of a window: the floor and its failure rate on *validation* tasks; one never measured counts as failing.

    A mastered family keeps the floor: at a lower weight it is half forgotten.
    """
    return {family: floor + failure_rates.get(family, 1.0) for family in sorted(set(families))}


def due(pool: Pool, now: int, settings: WindowSettings) -> str | None:
    """Why a window should be run now; None when there is no need. `now` is in microseconds since the epoch."""
    ready = [r.first_occurred_at for r in pool.new if r.teaches]
    return due_of(len(ready), min(ready, default=None), now, settings)


def due_of(ready: int, oldest: int | None, now: int, settings: WindowSettings) -> str | None:
    """As `due`, of the number of new successes and the time of the oldest one."""
    if ready >= settings.min_kept:
        return f"{ready} new successes"
    age = (now - oldest) / HOUR_US if oldest is not None else 0.0
    return f"new successes are {age:.1f} hours old" if ready and age >= settings.max_age_hours else None
