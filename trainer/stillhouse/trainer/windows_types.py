"""What a window is: the rows it lists, the state it is in, and the facts that each state has added."""

from enum import StrEnum
from typing import Any, Literal

import msgspec

from stillhouse.schemas.render import RenderSpec
from stillhouse.schemas.window_request import REQUESTED as REQUESTED
from stillhouse.schemas.window_request import TAKEN as TAKEN
from stillhouse.schemas.window_request import WindowRequest as WindowRequest
from stillhouse.sdk.store import RowRef
from stillhouse.sdk.window_settings import CurationSettings
from stillhouse.trainer.curate.draw import Quota
from stillhouse.trainer.ledger_histograms import StepHistograms
from stillhouse.trainer.training_job import TrainSettings
from stillhouse.trainer.waterfall import Waterfall

Mode = Literal["fresh", "continue"]


class State(StrEnum):
    """Where a window is. `registered` and `rejected` are terminal."""

    CLAIMED = "claimed"
    CURATED = "curated"
    TRAINED = "trained"
    EVALUATED = "evaluated"
    REGISTERED = "registered"
    REJECTED = "rejected"


TERMINAL = (State.REGISTERED, State.REJECTED)
NEXT: dict[State, State] = {
    State.CLAIMED: State.CURATED,
    State.CURATED: State.TRAINED,
    State.TRAINED: State.EVALUATED,
    State.EVALUATED: State.REGISTERED,
}


class WindowRow(msgspec.Struct, frozen=True, kw_only=True):
    """One listed row: enough to load it as it was, and where its events lie in the log."""

    key: str
    revision: int
    content: str
    chunks: tuple[str, ...]
    family: str = ""
    partition: int | None = None
    first_offset: int | None = None
    last_offset: int | None = None

    @property
    def ref(self) -> RowRef:
        """As the store loads it."""
        return RowRef(key=self.key, revision=self.revision, content=self.content, chunks=self.chunks)


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a window is curated and trained with, and what it was asked for: settled at its claim, whatever settings say when it goes on.

    Attributes:
        recipe: name of the recipe.
        model: the base model as settings name it; a folder by its whole path.
        seed: of the run.
        settings: the hyperparameters.
        view: the student's view, before a model gives it its stop ids.
        families: those that it was asked to be narrowed to; None: all.
        weights: what it was asked to draw families by; None: it was not said.
        curation: how its trajectories become examples; None in a window that was claimed before this was kept: today's settings count.
    """

    recipe: str
    model: str
    seed: int
    settings: TrainSettings
    view: RenderSpec
    families: tuple[str, ...] | None = None
    weights: dict[str, float] | None = None
    curation: CurationSettings | None = None


class WindowPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A window before it is claimed.

    Attributes:
        key: its name, the lineage and its number; claimed once.
        lineage: name of the chain of students.
        number: counts the lineage's windows from 1, rejected ones too.
        mode: `fresh` from the base model, or `continue` from the parent's adapter.
        why: why that mode.
        previous: the window whose pool this one goes on from; None for a lineage's first.
        parent: the student it is compared with, and that `continue` trains further; None for a lineage's first.
        rows: rows that are new to the lineage.
        again: rows that it has learned from or validated with before: the whole pool (fresh), or what may be replayed.
        quota: what is drawn from them; None takes all.
        requests: keys of the rows that asked for it.
        terms: what it is trained with; None in a window that was claimed before they were kept: today's settings count.
    """

    key: str
    lineage: str
    number: int
    mode: Mode
    why: str
    previous: str | None = None
    parent: str | None = None
    rows: tuple[WindowRow, ...] = ()
    again: tuple[WindowRow, ...] = ()
    quota: Quota | None = None
    requests: tuple[str, ...] = ()
    terms: Terms | None = None

    @property
    def offsets(self) -> dict[int, tuple[int, int]]:
        """First and last offset of the listed rows by partition of `agent.events`."""
        spans: dict[int, tuple[int, int]] = {}
        for row in (*self.rows, *self.again):
            if row.partition is not None and row.first_offset is not None and row.last_offset is not None:
                first, last = spans.get(row.partition, (row.first_offset, row.last_offset))
                spans[row.partition] = (min(first, row.first_offset), max(last, row.last_offset))
        return dict(sorted(spans.items()))


class CuratedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What curation left in the window's row; the examples themselves are files of its folder.

    `trained` are supervised tokens by trajectory, `validation` the keys it validates with, `returned` keys that went back to the pool.
    """

    manifest_hash: str
    waterfall: Waterfall
    histograms: StepHistograms
    trained: dict[str, int]
    validation: tuple[str, ...]
    returned: tuple[str, ...]


class TrainedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What training left; `result` is the whole of it, as JSON values."""

    candidate: str
    validation_loss: float | None
    parent_loss: float | None
    train_loss: float | None
    base_loss: float | None = None
    result: dict[str, Any] = {}


class EvaluatedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What evaluation found on *validation* tasks; None where there is no environment. `report` is the whole of it.

    `failure_rates` by family steer the next window.
    """

    success: float | None = None
    parent_success: float | None = None
    format_errors: float | None = None
    parent_format_errors: float | None = None
    failure_rates: dict[str, float] = {}
    report: dict[str, Any] = {}


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A claimed window. `history` are the states it was in, each with the time (microseconds) it came into it."""

    plan: WindowPlan
    state: State = State.CLAIMED
    reason: str = ""
    student: str = ""
    curated: CuratedFacts | None = None
    trained: TrainedFacts | None = None
    evaluated: EvaluatedFacts | None = None
    history: tuple[tuple[State, int], ...] = ()

    @property
    def key(self) -> str:
        """The window's name."""
        return self.plan.key
