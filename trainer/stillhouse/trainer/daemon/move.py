"""What the daemon does next, and why it waits. Pure: what is known in, one move out."""

import msgspec

from stillhouse.trainer.settings import TrainerSettings, WindowSettings
from stillhouse.trainer.windows_pool import HOUR_US, due_of

SECOND_US = 1_000_000
HINTS = ("successes", "age")
"""Reasons for a request that the daemon's own rule answers better: it counts what the lineage has not seen, as of now."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """How the last job failed. Kept until one goes through.

    Attributes:
        times: failures in a row.
        at: of the last one, microseconds since the epoch.
        passing: whether the same may work later, without anybody's doing.
        what: the sentence for people, with where and fix.
        mark: of the circumstances: one that is not passing is tried again when they have changed,
        ready: or when so many new successes have become `min_kept` more.
    """

    times: int
    at: int
    passing: bool
    what: str
    mark: str
    ready: int


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A student of the lineage whose verdict is not known. `until`: it counts no longer from then, microseconds; None: until it is."""

    why: str
    until: int | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What one look has found. Times are microseconds since the epoch.

    Attributes:
        now: of this look.
        open: what the open window is called and where it is; empty: there is none.
        ready: new teacher successes that no window of these settings has looked at.
        oldest: time of the oldest of them.
        seen: those that are back in the pool and no news: a window of them was rejected, or its student rolled back.
        requests: (reason, sentence) of each that no window has answered.
        trial: the student that is on trial.
        mark: of all that a failure which is not passing may have hung on: settings, open window, requests.
        failure: of the last job.
    """

    now: int
    open: str = ""
    ready: int = 0
    oldest: int | None = None
    seen: int = 0
    requests: tuple[tuple[str, str], ...] = ()
    trial: Trial | None = None
    mark: str = ""
    failure: Failure | None = None


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """Run a job now, or wait; in both cases why, as a sentence."""

    run: bool
    why: str


def next_move(facts: Facts, window: WindowSettings, trainer: TrainerSettings) -> Move:
    """The next move.

    Args:
        facts: of this look.
        window: `[window]` as it counts for the next window.
        trainer: `[trainer]`.
    """
    if facts.failure is not None and (why := _held_back(facts, facts.failure, window, trainer)):
        return Move(run=False, why=why)
    if facts.open:
        return Move(run=True, why=f"{facts.open}: it goes on")
    if facts.trial is not None and (facts.trial.until is None or facts.now < facts.trial.until):
        return Move(run=False, why=facts.trial.why)
    if due := due_of(facts.ready, facts.oldest, facts.now, window):
        return Move(run=True, why=due)
    asked = [sentence for reason, sentence in facts.requests if reason not in HINTS]
    if asked and facts.ready >= window.min_requested:
        return Move(run=True, why=asked[0])
    return Move(run=False, why=_counted(facts, window, asked))


def backoff_s(times: int, trainer: TrainerSettings) -> float:
    """Seconds after so many failures in a row."""
    return min(trainer.retry_s * 2.0 ** min(times - 1, 30), trainer.retry_most_s)


def _held_back(facts: Facts, failure: Failure, window: WindowSettings, trainer: TrainerSettings) -> str:
    """Why a failure keeps the daemon from trying again; empty when it does not."""
    if not failure.passing:
        same = facts.mark == failure.mark and facts.ready - failure.ready < window.min_kept
        return f"the last job failed and waits for changed settings or data: {failure.what}" if same else ""
    left = failure.at + round(backoff_s(failure.times, trainer) * SECOND_US) - facts.now
    times = f" {failure.times} times" if failure.times > 1 else ""
    return f"the last job failed{times} and is tried again in {_span(left)}: {failure.what}" if left > 0 else ""


def _counted(facts: Facts, window: WindowSettings, asked: list[str]) -> str:
    parts = [f"{facts.ready} of {window.min_kept} new successes"]
    if facts.oldest is not None:
        parts.append(f"oldest {_hours(facts.now - facts.oldest)} of {window.max_age_hours:g} h old")
    if asked:
        parts.append(f"a window was asked for ({asked[0]}), at {window.min_requested} it begins")
    if facts.seen:
        parts.append(f"{facts.seen} more are back from a window that led nowhere")
    return ", ".join(parts)


def _hours(span_us: int) -> str:
    return f"{max(span_us, 0) / HOUR_US:.1f}"


def _span(span_us: int) -> str:
    seconds = -(-span_us // SECOND_US)
    return f"{seconds} s" if seconds < 120 else f"{seconds / 60:.0f} min"
