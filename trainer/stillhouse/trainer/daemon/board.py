"""What the daemon says of itself: `run/trainer.json` for `stillhouse status`, and the metrics."""

import os
from pathlib import Path
from typing import Any

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from stillhouse.schemas.metrics import METRICS
from stillhouse.trainer.daemon.move import Facts, Failure, Move
from stillhouse.trainer.daemon.status import FILE, Status, read_status
from stillhouse.trainer.disk import is_full
from stillhouse.trainer.windows import Clock

log: Any = structlog.get_logger()

TELL_US = 1_000_000
_PREFIX = "stillhouse_trainer_"


class Board:
    """Shows what the daemon does.

    Args:
        run: the folder `run` of the state folder.
        clock: microseconds since the epoch.
    """

    def __init__(self, run: Path, clock: Clock) -> None:
        self._path, self._clock = run / FILE, clock
        before = read_status(run)
        self.status = Status(pid=os.getpid(), at=clock(), tried=before.tried if before else "", failure=_kept(before))
        self.looked, self._unwritten = False, False
        self.registry = CollectorRegistry()
        kinds: dict[str, Any] = {"counter": Counter, "gauge": Gauge}
        self._metrics: dict[str, Any] = {
            m.name.removeprefix(_PREFIX): kinds[m.kind](m.name, m.help, m.labels, registry=self.registry)
            for m in METRICS
            if m.name.startswith(_PREFIX)
        }

    def moved(self, facts: Facts, move: Move) -> None:
        """A look was made, and this came of it."""
        self.looked = True
        self._metrics["looks_total"].inc()
        self._metrics["new_successes"].set(facts.ready)
        self._metrics["oldest_success_age_seconds"].set((facts.now - facts.oldest) / 1e6 if facts.oldest is not None else 0)
        self._metrics["requests"].set(len(facts.requests))
        self._metrics["running"].set(move.run)
        self._show(waits="" if move.run else move.why, runs="starting" if move.run else "", why=move.why if move.run else "")

    def away(self, why: str) -> None:
        """A look could not be made."""
        self._metrics["errors_total"].inc()
        self._show(waits=why, runs="", why="")

    def progress(self, event: dict[str, Any]) -> None:
        """The job has said something."""
        if event["event"] == "train" and event.get("loss") is not None:
            self._metrics["step"].set(event["step"])
            self._metrics["steps"].set(event["steps"])
            self._metrics["loss"].set(event["loss"])
        if self._clock() - self.status.at >= TELL_US or event["event"] == "state":
            self._show(runs=describe(event))

    def ended(self, outcome: str, *, failure: Failure | None = None, tried: str | None = None) -> None:
        """A job has ended. `outcome`: registered, rejected, or how it failed."""
        self._metrics["jobs_total"].labels(reason=outcome).inc()
        self._metrics["running"].set(0)
        self._metrics["failures_in_a_row"].set(failure.times if failure else 0)
        self._show(runs="", why="", failure=failure, tried=self.status.tried if tried is None else tried)

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _show(self, **changes: Any) -> None:
        self.status = msgspec.structs.replace(self.status, at=self._clock(), **changes)
        try:
            self._write()
        except OSError as error:
            if not is_full(error):
                raise
            if not self._unwritten:  # a job needs no status file: it goes on, and the file is right again when there is room
                log.warning("there is no room for the status file", path=str(self._path), fix="Free some space on its disk.")
            self._unwritten = True
        else:
            self._unwritten = False

    def _write(self) -> None:
        fresh = self._path.with_suffix(".tmp")
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(self.status)) + b"\n")
        fresh.replace(self._path)


def _kept(before: Status | None) -> Failure | None:
    """Whoever starts the daemon again may have put right what was wrong; what passes by itself keeps its time."""
    return before.failure if before and before.failure and before.failure.passing else None


def describe(event: dict[str, Any]) -> str:
    """What a job is at, in a few words."""
    if event["event"] == "train":
        loss = f", loss {event['loss']:.3f}" if event.get("loss") is not None else ""
        return f"training, {event['kind']} {event['step']} of {event['steps']}{loss}"
    if event["event"] == "stage":
        return f"curating, {event['stage']} keeps {event['kept']}"
    if event["event"] == "evaluate":
        return f"validating {event['policy']}, {event['done']} of {event['total']}"
    if event["event"] == "shadow":
        return f"shadow, {event['done']} of {event['total']}"
    if event["event"] == "state":
        return f"{event['window']} is {event['state']}"
    return str(event["event"])
