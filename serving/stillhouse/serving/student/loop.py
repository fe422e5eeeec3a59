"""The model's own thread: everything that touches the engine runs here, one thing after the other."""

import threading
from collections import deque
from collections.abc import Callable

import structlog

from stillhouse.serving.student.catalog import NoSuchModelError
from stillhouse.serving.student.engine import Engine
from stillhouse.serving.student.generation import Generation, Result
from stillhouse.serving.student.scheduler import QueueFullError

log = structlog.get_logger()


class Ticket:
    """A submitted generation; `cancel` ends it from any thread."""

    def __init__(self, loop: "ModelLoop") -> None:
        self._loop = loop
        self.key: int | None = None

    def cancel(self) -> None:
        """End it early. Nothing happens when it has ended."""
        self._loop.call(lambda: self._loop.engine.cancel(self.key) if self.key is not None else None)


class ModelLoop(threading.Thread):
    """Runs an engine until `stop`.

    Args:
        engine: touched by this thread only, once it runs.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(name="model", daemon=True)
        self.engine = engine
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._stopping = False

    def call(self, command: Callable[[], None]) -> None:
        """Run a command in the model's thread, between two steps."""
        self._commands.append(command)
        self._wake.set()

    def submit(self, generation: Generation) -> Ticket:
        """Queue a generation.

        Raises:
            QueueFullError: too many wait already.
        """
        waiting = len(self.engine.scheduler.waiting) + len(self._commands)
        if waiting >= self.engine.scheduler.limits.queue:
            raise QueueFullError(f"{waiting} requests are waiting", fix="Send fewer at once, or add a replica.")
        ticket = Ticket(self)

        def command() -> None:
            try:
                ticket.key = self.engine.submit(generation)
            except (QueueFullError, NoSuchModelError) as error:  # the queue filled up since, or the adapter was unloaded
                generation.on_end(Result(finish="abort", error=error))

        self.call(command)
        return ticket

    def stop(self) -> None:
        """End the thread after the current step. What still runs is ended with an error."""
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        """Until stopped: commands, then a step, or sleep until there is something to do."""
        while not self._stopping:
            self._wake.clear()
            while self._commands:
                self._commands.popleft()()
            delay = self.engine.delay()
            if delay == 0.0:
                self._step()
            else:
                self._wake.wait(delay)
        self.engine.fail(RuntimeError("the server is stopping"))

    def _step(self) -> None:
        try:
            self.engine.step()
        except Exception as error:
            log.exception("step_failed")
            self.engine.fail(error)
