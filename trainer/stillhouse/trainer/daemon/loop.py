"""The daemon's shell: look, move, and again. One job at a time; no failure of one ends it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import structlog

from stillhouse.schemas.errors import RetryableError, StillhouseError
from stillhouse.trainer.child import Event, OnEvent
from stillhouse.trainer.daemon.board import Board
from stillhouse.trainer.daemon.look import Look
from stillhouse.trainer.daemon.move import Failure, Move, next_move
from stillhouse.trainer.windows import Clock
from stillhouse.trainer.windows_types import State

log: Any = structlog.get_logger()

RunJob = Callable[[OnEvent, int], Awaitable[Event]]
"""Runs a job to its end, given who is told its progress, and how nice it is."""

LOOK_S = 10.0
"""Until the first look has said how often."""


class Looks(Protocol):
    """What the loop asks."""

    def look(self, failure: Failure | None, tried: str) -> Look:
        """What is so now."""
        ...


class Daemon:
    """Runs windows when they are due.

    Args:
        looker: what is so now.
        job: runs one.
        board: is told everything.
        clock: microseconds since the epoch.
    """

    def __init__(self, looker: Looks, job: RunJob, board: Board, clock: Clock) -> None:
        self._looker, self._job, self._board, self._clock = looker, job, board, clock
        self._pause = LOOK_S

    async def run(self, stop: asyncio.Event) -> None:
        """Go on until `stop`; a job that runs then is stopped, and goes on when the daemon does."""
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                turn = asyncio.create_task(self.turn())
                await asyncio.wait({turn, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not turn.done():
                    turn.cancel()
                    await asyncio.wait({turn})
                    return
                if not turn.result():
                    await asyncio.wait({stopped}, timeout=self._pause)
        finally:
            stopped.cancel()

    async def turn(self) -> bool:
        """Look once, and run a job if one is due; whether one was run."""
        status = self._board.status
        try:
            look = await asyncio.to_thread(self._looker.look, status.failure, status.tried)
        except StillhouseError as error:  # a part is away, or somebody edits the settings: the next look may find it well
            log.warning("cannot look", error=str(error))
            self._board.away(str(error))
            return False
        self._pause = look.trainer.look_s
        move = next_move(look.facts, look.window, look.trainer)
        self._board.moved(look.facts, move)
        if move.run:
            await self._run(look, move)
        return move.run

    async def _run(self, look: Look, move: Move) -> None:
        log.info("a job starts", why=move.why)
        try:
            result = await self._job(self._board.progress, look.trainer.nice)
        except StillhouseError as error:
            self._failed(look, error)
            return
        rejected = result["state"] == State.REJECTED
        log.info("a job ended", **{name: result.get(name) for name in ("window", "state", "student", "reason")})
        self._board.ended(str(result["state"]), tried=look.settings if rejected else None)

    def _failed(self, look: Look, error: StillhouseError) -> None:
        before, passing = look.facts.failure, isinstance(error, RetryableError)
        log.warning("a job failed", error=str(error), passing=passing)
        failure = Failure(
            times=before.times + 1 if before else 1,
            at=self._clock(),
            passing=passing,
            what=str(error),
            mark=look.facts.mark,
            ready=look.facts.ready,
        )
        self._board.ended("failed_passing" if passing else "failed", failure=failure)
