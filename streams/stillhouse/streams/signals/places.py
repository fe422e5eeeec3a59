"""What a task asks and where it stands. Keeps what it has read: places and texts never change."""

from collections.abc import Sequence

import msgspec

from stillhouse.schemas.errors import PermanentError, RetryableError, UnreachableError
from stillhouse.schemas.ledger import Batch, LeaderLedger, TaskText, tasks_of
from stillhouse.schemas.literals import fold
from stillhouse.sdk.ledger import LEADERS, store_ledger
from stillhouse.sdk.store import Store
from stillhouse.sdk.window_settings import WindowSettings
from stillhouse.streams.logs import logger
from stillhouse.streams.signals.runs import Run

log = logger(__name__)

MOST_TEXTS = 20_000


class Places:
    """The leader ledger, and the tasks of runs.

    Args:
        store: where both are.
        settings: `[window]`: how new tasks are placed.
    """

    def __init__(self, store: Store, settings: WindowSettings) -> None:
        self._store, self._settings = store, settings
        self._batches: dict[str, Batch] = {}
        self._ledger = self._made()
        self._texts: dict[str, TaskText] = {}

    def ledger(self) -> LeaderLedger:
        """The ledger as it is now.

        Raises:
            UnreachableError: the store does not answer.
        """
        keys = [row["key"] for row in self._store.rows(LEADERS, columns=("key",))]
        new = [key for key in keys if key not in self._batches]
        if new:
            found = self._store.by_key(LEADERS, new, ("key", "data"))
            self._batches |= {key: msgspec.convert(row["data"], Batch, strict=False) for key, row in found.items()}
            self._ledger = self._made()
        return self._ledger

    def texts(self, runs: Sequence[Run]) -> dict[str, TaskText]:
        """The tasks of some runs, by trajectory. One whose events cannot be read has none.

        Raises:
            UnreachableError: the store does not answer.
        """
        missing = {run.key: run for run in runs if run.key not in self._texts}
        if len(self._texts) + len(missing) > MOST_TEXTS:
            self._texts = {key: text for key, text in self._texts.items() if key in {run.key for run in runs}}
        asked = {key: row["instruction"] for key, row in self._store.by_key("trajectories", missing, ("key", "instruction")).items()}
        for key, run in missing.items():
            text = self._text(run, asked.get(key))
            if text is not None:
                self._texts[key] = text
        return {run.key: self._texts[run.key] for run in runs if run.key in self._texts}

    def place(self, tasks: Sequence[TaskText]) -> LeaderLedger:
        """Place tasks for ever, before anything is spent on them: the trainer finds them placed.

        Raises:
            UnreachableError: the store does not answer.
            MissingExtraError: scikit-learn is not installed.
        """
        ledger = self.ledger()
        placed = ledger.assign(tasks)
        try:
            store_ledger(self._store, placed.added(ledger))
        except UnreachableError:
            raise
        except RetryableError as error:  # a planner was faster somewhere: what it took is placed, the rest is with the next look
            log.info("not all tasks were placed", error=str(error))
        return self.ledger()

    def _text(self, run: Run, instruction: str | None) -> TaskText | None:
        """As curation takes it from the whole trajectory, which is loaded only where the row does not say all."""
        if run.task_id is not None and instruction is not None:
            return TaskText(tenant=run.tenant, family=run.family, task_key=run.task_id, text=fold(instruction))
        try:
            return next(iter(tasks_of(self._store.load([run.key]).values())), None)
        except PermanentError as error:
            log.warning("a failed run cannot be read", key=run.key, error=str(error))
            return None

    def _made(self) -> LeaderLedger:
        settings = self._settings
        return LeaderLedger(
            self._batches.values(),
            seed=settings.seed,
            test_share=settings.test_share,
            validation_share=settings.validation_share,
            similarity=settings.similarity,
        )
