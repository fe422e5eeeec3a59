"""A window's data: curated and written to its folder, read again, and checked before it is used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from stillhouse.schemas.errors import GateError, RetryableError
from stillhouse.schemas.fold import ERASED
from stillhouse.schemas.render import Renderer, RenderSpec
from stillhouse.sdk.ledger import store_ledger
from stillhouse.sdk.store import Store
from stillhouse.trainer import windows
from stillhouse.trainer.curate.counting import RenderCounter
from stillhouse.trainer.curate.pipeline import Curated, Tools
from stillhouse.trainer.decisions import Erasures
from stillhouse.trainer.examples import Example, read_examples, write_examples
from stillhouse.trainer.gates import data_gate
from stillhouse.trainer.settings import WindowSettings
from stillhouse.trainer.windows_types import Window, WindowPlan

_PLACING_TRIES = 5


class WindowData:
    """Curates windows of one state folder and keeps their examples in `run/windows/<window>`.

    Args:
        store: rows and windows.
        state: the state folder.
        settings: `[window]`.
        view: the student's view.
        base_model: folder of the base model, for its tokenizer.
    """

    def __init__(self, store: Store, state: Path, settings: WindowSettings, view: RenderSpec, base_model: Path) -> None:
        self._store, self._settings = store, settings
        self._view, self._base_model = view, base_model
        self.root = state / "run" / "windows"

    def folder(self, window: Window) -> Path:
        """Where a window's files are."""
        return self.root / window.key

    def curate(self, window: Window, tools: Tools, clock: windows.Clock) -> Curated:
        """Curate, place the window's tasks for ever, and write the examples.

        Raises:
            GateError: a listed row was erased.
            RetryableError: other planners were faster again and again.
        """
        for attempt in range(_PLACING_TRIES):
            curated = curate_with(self._store, window.plan, self._settings, self._view, self._base_model, tools)
            try:
                store_ledger(self._store, curated.added, clock=clock)
                break
            except RetryableError:  # another planner placed tasks in between: theirs count, and curation reads them
                if attempt == _PLACING_TRIES - 1:
                    raise
        folder = self.folder(window)
        folder.mkdir(parents=True, exist_ok=True)
        write_examples(folder / "train.jsonl", curated.train)
        write_examples(folder / "validation.jsonl", curated.validation)
        (folder / "reasons.json").write_bytes(msgspec.json.format(msgspec.json.encode(curated.reasons)))
        (folder / "waterfall.json").write_bytes(msgspec.json.format(msgspec.json.encode(curated.waterfall)))
        return curated

    def examples(self, window: Window, tools: Tools, clock: windows.Clock) -> tuple[list[Example], list[Example]]:
        """The window's training and validation examples; curated again when its files are gone, which gives the same or fails.

        Raises:
            GateError: the window no longer curates to what it was.
        """
        assert window.curated is not None
        paths = [self.folder(window) / f"{name}.jsonl" for name in ("train", "validation")]
        if not all(p.is_file() for p in paths) and self.curate(window, tools, clock).manifest_hash != window.curated.manifest_hash:
            raise GateError(
                "the window no longer curates to what it was",
                where=window.key,
                fix="The code has changed since (or settings that an old window did not keep): let it be rejected, and run a new one.",
            )
        train, validation = (list(read_examples(p)) for p in paths)
        return train, validation

    def check(self, train: Sequence[Example], validation: Sequence[Example], erasures: Erasures) -> None:
        """The data gate.

        Raises:
            GateError: there is nothing to learn, a held-out task, or a row that was erased or is to be.
        """
        verdict = data_gate(train, validation, erased=self._erased((*train, *validation), erasures))
        if not verdict.passed:
            raise GateError(verdict.reason)

    def _erased(self, examples: Sequence[Example], erasures: Erasures) -> set[str]:
        """Keys of examples whose row was erased since it was listed, is about to be, or is gone."""
        keys = {e.key for e in examples}
        rows = self._store.by_key("trajectories", sorted(keys), ("key", "content", "tenant", "subject"))
        return {k for k in keys if k not in rows or rows[k]["content"] == ERASED or erasures.covers(rows[k]["tenant"], rows[k]["subject"])}


def curate_with(
    store: Store, planned: WindowPlan, settings: WindowSettings, view: RenderSpec, base_model: Path, tools: Tools | None = None
) -> Curated:
    """Curate a plan for a student's view. Writes nothing; raises as `windows.curate_plan`."""
    return windows.curate_plan(store, planned, settings, RenderCounter(Renderer(view, base_model)), tools)


def plan_report(
    store: Store, planned: WindowPlan, settings: WindowSettings, view: RenderSpec, base_model: Path, tools: Tools | None = None
) -> dict[str, Any]:
    """What `windows plan --json` prints: the waterfall the plan would have, its rows and its mode. Nothing is written."""
    curated = curate_with(store, planned, settings, view, base_model, tools)
    head = {"window": planned.key, "mode": planned.mode, "why": planned.why, "parent": planned.parent}
    return {**head, "rows": len(planned.rows), "again": len(planned.again), **curated.waterfall.to_json()}
