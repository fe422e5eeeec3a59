"""Where the loop is and why it waits: gathered once, shown by `stillhouse status` and by the status page."""

import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillhouse.console.context import Context
from stillhouse.console.stack import record as records
from stillhouse.console.status_routes import routes_of
from stillhouse.sdk.store import Store
from stillhouse.trainer import windows as trainer_windows
from stillhouse.trainer.daemon.status import read_status
from stillhouse.trainer.settings import WindowSettings
from stillhouse.trainer.students import list_students
from stillhouse.trainer.windows_pool import Pool, due

Fields = dict[str, Any]
SECONDS = 2.0


def gather(context: Context) -> Fields:
    """Processes, rows, windows and students of a state folder; a part that is away is said, not raised."""
    record = records.read(context.state)
    alive = bool(record and record.supervisor.alive)
    store = context.store()
    rows = store.trajectories(columns=["family", "status", "outcome", "steps"])
    windows = store.rows("windows", columns=["key", "state", "created_at"], order="created_at")
    result: Fields = {
        "state": str(context.state.resolve()),
        "stack": _processes(record) if record and alive else {},
        "bootstrap_servers": record.bootstrap_servers if record and alive else None,
        "ingest": _ingest(record.metrics if record and alive else {}),
        "routes": routes_of(record) if record and alive else {},
        "trajectories": _rows(rows),
        "windows": dict(Counter(str(w["state"]) for w in windows)),
        "students": [student.name for student in list_students(context.state / "students")],
    }
    return {**result, "waits": _why(result, context.config.section("window", WindowSettings), alive, store)}


def _processes(record: records.StackRecord) -> Fields:
    return {name: {"pid": p.pid, "alive": p.alive, "restarts": record.restarts.get(name, 0)} for name, p in record.pids.items()}


def _ingest(metrics: Mapping[str, str]) -> Fields:
    """Lag by read position and what is open, from ingest's own metrics."""
    address = metrics.get("ingest")
    if address is None:
        return {}
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as reply:
            text = reply.read().decode()
    except (urllib.error.URLError, OSError) as error:
        return {"error": f"{address} does not answer: {error}"}
    wanted = {"stillhouse_ingest_lag": "lag", "stillhouse_ingest_replay_debt": "replay_debt", "stillhouse_ingest_open_trajectories": "open"}
    sums: Counter[str] = Counter()
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if field := wanted.get(name.partition("{")[0]):
            sums[field] += int(float(value))
    return dict(sums)


def _rows(rows: list[Fields]) -> Fields:
    families = Counter(str(r["family"] or "-") for r in rows)
    return {
        "total": len(rows),
        "outcome": dict(Counter(str(r["outcome"]) for r in rows)),
        "status": dict(Counter(str(r["status"]) for r in rows)),
        "families": dict(families.most_common(12)),
    }


def _why(found: Fields, window: WindowSettings, alive: bool, store: Store) -> str:
    """One sentence: what has to happen next."""
    if not alive:
        return "no stack runs here: start it with `stillhouse up --detach`"
    if dead := [name for name, p in found["stack"].items() if not p["alive"]]:
        return f"{', '.join(dead)} is being restarted: see {Path(found['state']) / 'logs'}"
    if "error" in found["ingest"]:
        return str(found["ingest"]["error"])
    if not found["trajectories"]["total"]:
        return "no trajectories yet: connect an agent (docs/sdk.md) or import recorded runs (`stillhouse import`)"
    said = read_status(Path(found["state"]) / "run") if "trainer" in found["stack"] else None
    if said is not None:
        return f"the trainer: {said.runs}" if said.runs else f"the trainer waits: {said.waits}"
    running = {s: n for s, n in found["windows"].items() if s in ("claimed", "curated", "trained", "evaluated")}
    if running:
        return f"a window is {next(iter(running))}: `stillhouse windows run` continues it if its trainer was stopped"
    return next_window(trainer_windows.waiting(store, window.lineage), trainer_windows.wall_clock(), window)


def next_window(pool: Pool, now: int, window: WindowSettings) -> str:
    """Whether the next window should be run, and why or why not yet.

    Args:
        pool: what it would be planned from.
        now: microseconds since the epoch.
        window: `[window]`, with the triggers.
    """
    if why := due(pool, now, window):
        return f"the next window is due, {why}: see `stillhouse windows plan`, then `stillhouse windows run`"
    ready = sum(row.teaches for row in pool.new)
    return f"{ready} new successes: the next window is due at {window.min_kept}, or when the oldest is {window.max_age_hours:g} hours old"
