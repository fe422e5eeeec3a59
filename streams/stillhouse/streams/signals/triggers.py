"""Why a window should be asked for. Pure.

A request is a hint: the trainer plans what a window holds, and whether. So what counts as new is what no window of the lineage that
was not rejected has used: a little less than what the trainer finds where a student was taken out and its windows' rows are free again.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from stillhouse.schemas.window_request import REQUESTED, TAKEN, WindowRequest
from stillhouse.sdk.window_settings import WindowSettings
from stillhouse.streams.signals.runs import FamilyRate, Run
from stillhouse.streams.signals.settings import SignalsSettings

HOUR = 3_600_000_000


class _Row(msgspec.Struct, frozen=True):
    key: str
    content: str


class _Plan(msgspec.Struct, frozen=True):
    rows: tuple[_Row, ...] = ()
    again: tuple[_Row, ...] = ()


class _Curated(msgspec.Struct, frozen=True):
    returned: tuple[str, ...] = ()


class _Window(msgspec.Struct, frozen=True):
    """As much of a trainer's window as is needed here."""

    plan: _Plan
    state: str = ""
    curated: _Curated | None = None


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """What a lineage's rows in `windows` say: used (key, content) pairs, whether a window is open, reasons that wait to be looked at."""

    used: frozenset[tuple[str, str]] = frozenset()
    open: bool = False
    waiting: frozenset[str] = frozenset()


def lineage_of(rows: Iterable[Mapping[str, Any]]) -> Lineage:
    """Read a lineage's rows of the table `windows`.

    Raises:
        msgspec.ValidationError: a row is none of a trainer that this release knows.
    """
    used: set[tuple[str, str]] = set()
    waiting, opened = set(), False
    for row in rows:
        if row["state"] == REQUESTED:
            waiting.add(msgspec.convert(row["data"], WindowRequest, strict=False).reason)
        elif row["state"] not in (TAKEN, "rejected"):
            window = msgspec.convert(row["data"], _Window, strict=False)
            opened = opened or row["state"] != "registered"
            returned = set(window.curated.returned) if window.curated else set()
            used |= {(r.key, r.content) for r in (*window.plan.rows, *window.plan.again) if r.key not in returned}
    return Lineage(used=frozenset(used), open=opened, waiting=frozenset(waiting))


def requests(
    runs: Sequence[Run],
    families: Sequence[FamilyRate],
    lineage: Lineage,
    watermark: int,
    window: WindowSettings,
    settings: SignalsSettings,
) -> list[WindowRequest]:
    """The requests that are due; none while a window of the lineage is open, none for a reason that waits already.

    Args:
        runs: stored runs.
        families: how students do.
        lineage: what was done with the runs.
        watermark: microseconds since the epoch: what the log holds up to.
        window: `[window]`.
        settings: `[signals]`.
    """
    if lineage.open:
        return []
    ready = [run for run in runs if run.teaches and (run.key, run.content) not in lineage.used]
    bucket = watermark // round(settings.bucket * 1e6)
    reasons = [_successes(ready, window), _age(ready, watermark, window), _failures(ready, families, settings)]
    known = [run for run in runs if run.teaches and (run.key, run.content) in lineage.used]
    if known:  # before the first window everything is new, and only its number counts
        reasons += [_coverage(ready, known, settings), _teacher(ready, known, settings)]
    return [
        WindowRequest(lineage=window.lineage, reason=reason, bucket=bucket, detail=detail, families=among)
        for reason, detail, among in filter(None, reasons)
        if reason not in lineage.waiting
    ]


Reason = tuple[str, str, tuple[str, ...]] | None


def _successes(ready: Sequence[Run], window: WindowSettings) -> Reason:
    return ("successes", f"{len(ready)} new successes of the teacher", ()) if len(ready) >= window.min_kept else None


def _age(ready: Sequence[Run], watermark: int, window: WindowSettings) -> Reason:
    age = (watermark - min((run.first_occurred_at for run in ready), default=watermark)) / HOUR
    return ("age", f"new successes are {age:.1f} hours old", ()) if age >= window.max_age_hours else None


def _failures(ready: Sequence[Run], families: Sequence[FamilyRate], settings: SignalsSettings) -> Reason:
    fresh = Counter(run.family for run in ready)
    runs: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for one in families:  # over all routes: a student of the lineage may serve several
        runs[one.family] += one.runs
        failures[one.family] += one.failures
    weak = [
        family
        for family in sorted(runs)
        if runs[family] >= settings.failure_runs
        and failures[family] >= settings.failure_rate * runs[family]
        and fresh[family] >= settings.failure_successes
    ]
    said = ", ".join(f"{family or '(no family)'} {failures[family]} of {runs[family]}" for family in weak)
    return ("failures", f"the student fails: {said}", tuple(weak)) if weak else None


def _coverage(ready: Sequence[Run], known: Sequence[Run], settings: SignalsSettings) -> Reason:
    fresh, before = Counter(run.family for run in ready), {run.family for run in known}
    missing = tuple(sorted(family for family, number in fresh.items() if family not in before and number >= settings.coverage_successes))
    return ("coverage", f"no window had: {', '.join(f or '(no family)' for f in missing)}", missing) if missing else None


def _teacher(ready: Sequence[Run], known: Sequence[Run], settings: SignalsSettings) -> Reason:
    before = {model for run in known for model in run.teachers}
    fresh = Counter(model for run in ready for model in run.teachers)
    new = sorted(model for model, number in fresh.items() if model not in before and number >= settings.teacher_successes)
    families = tuple(sorted({run.family for run in ready if set(run.teachers) & set(new)}))
    return ("teacher", f"no window had the teacher {', '.join(new)}", families) if new else None
