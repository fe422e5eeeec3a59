"""The demo's part in the loop: it makes traffic and waits. What is trained, released, crowned or rolled back others decide."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stillhouse.console.context import Context
from stillhouse.console.demo.commands import cli
from stillhouse.console.demo.settings import ROUTE, DemoSettings
from stillhouse.console.demo.traffic import Traffic
from stillhouse.console.demo.trials import Trial, trial_of
from stillhouse.console.demo.watch import Watch, within
from stillhouse.console.stack.stack import Stack
from stillhouse.console.status_routes import read_routes
from stillhouse.examples.order_desk.tasks import FAMILIES
from stillhouse.schemas.errors import PermanentError, RetryableError
from stillhouse.trainer import windows
from stillhouse.trainer.daemon.status import Status, read_status
from stillhouse.trainer.windows_types import TERMINAL, Window

News = Callable[[str], None]
WINDOW_S, START_S, SETTLE_S = 1800.0, 180.0, 60.0


@dataclass(frozen=True)
class Loop:
    """What the demo does while the loop runs.

    Args:
        settings: of the demo.
        loaded: settings of the stack.
        stack: the running one.
        watch: of the route.
        traffic: its agents.
    """

    settings: DemoSettings
    loaded: Context
    stack: Stack
    watch: Watch
    traffic: Traffic

    async def collect(self, number: int, families: Sequence[str], news: News) -> None:
        """Agents work until the trainer begins a window.

        Raises:
            RetryableError: it did not, for all their runs.
        """

        async def begun() -> bool:
            return bool(self._trainer().runs) or await self._window(number) is not None

        report = await self.traffic.until(begun, f"window-{number}", self.settings.most_runs, families, news)
        status = self._trainer()
        if not await within(begun, SETTLE_S):
            fix = "See logs/trainer.log and logs/ingest.log."
            raise RetryableError(f"the trainer began no window after {report.done} runs: {status.waits}", where="demo", fix=fix)

    async def window(self, number: int, news: News) -> Window:
        """Wait for the end of a window.

        Raises:
            RetryableError: it did not end in time.
            PermanentError: its job fails in a way that does not pass.
        """
        found: Window | None = None

        async def ended() -> bool:
            nonlocal found
            status = self._trainer()
            if status.failure is not None and not status.failure.passing:
                raise PermanentError(f"the trainer's job failed: {status.failure.what}", where="logs/trainer-jobs.log")
            news(status.runs or status.waits)
            found = await self._window(number)
            return found is not None and found.state in TERMINAL

        if not await within(ended, WINDOW_S) or found is None:
            raise RetryableError(f"window {number} did not end in {WINDOW_S:g} s", where="logs/trainer-jobs.log", fix="See the log.")
        return found

    async def trial(self, student: str, what: str, news: News, *, decree: bool, units: int | None) -> Trial:
        """Agents work until there is a verdict about a student.

        Args:
            student: that is registered, or released.
            what: of the trial.
            news: told how it goes.
            decree: crown it by hand as soon as it is on trial.
            units: leave it open after so many of its units.

        Raises:
            RetryableError: its canary did not begin.
        """
        news(f"{student}: waiting for the controller and for its attestation")

        async def begun() -> bool:
            state = await self.watch.look()
            return state.canary == student or self.watch.ended(student) is not None

        if not await within(begun, START_S):
            raise RetryableError(f"no canary of {student} began", where="logs/canary.log", fix="See the log.")
        if decree:
            reason = "demo: a random model would never be crowned by evidence"
            await cli(self.loaded.state, "canary", "promote", "--route", ROUTE, "--reason", reason)
            await self.watch.look()
            return trial_of(self.watch, student, what)
        await within(lambda: self._attested(student), START_S)

        async def over() -> bool:
            await self.watch.look()
            enough = units is not None and trial_of(self.watch, student, what).units["canary"] >= units
            return enough or self.watch.ended(student) is not None

        await self.traffic.until(over, f"{what}-canary", self.settings.canary_runs, FAMILIES, news)
        await within(over, SETTLE_S)
        return trial_of(self.watch, student, what)

    def _trainer(self) -> Status:
        return read_status(self.loaded.config.state_dir("run")) or Status(pid=0, at=0)

    async def _window(self, number: int) -> Window | None:
        found = await asyncio.to_thread(windows.list_windows, self.loaded.store(), ROUTE)
        return next((window for window in found if window.plan.number == number), None)

    async def _attested(self, student: str) -> bool:
        """Whether the gateway would ask it; one that was refused is over in the log."""
        await self.watch.look()
        routes = await asyncio.to_thread(read_routes, str(self.stack.record.admin))
        return bool(routes[ROUTE]["ready"].get(student)) or self.watch.ended(student) is not None
