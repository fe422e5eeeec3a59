"""What planning and curation take from settings and topics: the same for `windows plan`, which writes nothing, and for a run."""

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import cast

import msgspec

from stillhouse.schemas.errors import UsageError
from stillhouse.schemas.render import Renderer
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.store import Store
from stillhouse.trainer import windows
from stillhouse.trainer.curate.compress import ActionLoss
from stillhouse.trainer.curate.pipeline import Tools
from stillhouse.trainer.curate.prune import Replay
from stillhouse.trainer.decisions import NOBODY, read_barred, read_erasures
from stillhouse.trainer.jobs_parts import MakeActionLoss
from stillhouse.trainer.named import load_named
from stillhouse.trainer.schedule import scheduled
from stillhouse.trainer.settings import TrainerSettings, WindowSettings
from stillhouse.trainer.terms import terms_of
from stillhouse.trainer.training_job import RECIPE_NAMES
from stillhouse.trainer.windows_types import Mode, WindowPlan


def next_plan(
    store: Store,
    window: WindowSettings,
    trainer: TrainerSettings,
    kafka: KafkaSettings | None,
    *,
    families: Iterable[str] | None = None,
    weights: Mapping[str, float] | None = None,
    mode: Mode | None = None,
    said: Container[str] = (),
) -> WindowPlan:
    """The lineage's next window, without erased subjects and students that were taken out.

    Args:
        store: rows and windows.
        window: `[window]`.
        trainer: `[trainer]`.
        kafka: where erasures and students' states are read; None: what ingest has erased counts, and no student is barred.
        families: only these.
        weights: what they are drawn by.
        mode: instead of the rule's.
        said: names (`window.size`) of the settings that somebody asked for by hand: a schedule leaves them.

    Raises:
        UsageError: no such recipe; or as `windows.plan`.
    """
    check_recipe(trainer)
    window, trainer = scheduled(window, trainer, windows.students(store, window.lineage), said)
    planned = windows.plan(
        store,
        window,
        families=families,
        weights=weights,
        mode=mode,
        epochs=trainer.epochs,
        barred=read_barred(kafka, below_teacher=window.continue_below_teacher) if kafka else (),
        erasures=read_erasures(kafka) if kafka else NOBODY,
    )
    return msgspec.structs.replace(planned, terms=terms_of(trainer, window, families=families, weights=weights))


def check_recipe(trainer: TrainerSettings) -> None:
    """A typo is found before a window is claimed, not after it was curated.

    Raises:
        UsageError: no such recipe.
    """
    if trainer.recipe not in RECIPE_NAMES:
        raise UsageError(f"no recipe {trainer.recipe!r}", where="[trainer] recipe", fix=f"Use one of: {', '.join(RECIPE_NAMES)}.")


def plan_tools(planned: WindowPlan, window: WindowSettings, trainer: TrainerSettings, base_model: Path, students: Path) -> Tools:
    """What a run of this plan would curate with. `students` is the folder of students."""
    make = action_loss_of(window, trainer, base_model)
    return Tools(
        replay=replay_of(window),
        action_loss=make(students / planned.parent) if make is not None and planned.parent is not None else None,
    )


def replay_of(window: WindowSettings) -> Replay | None:
    """The environment that `[window] environment` names; None where it names none.

    Raises:
        UsageError: it cannot be loaded.
    """
    if not window.environment:
        return None
    make = load_named(window.environment, setting="[window] environment", what="environment", takes="environment_data (a text)")
    return cast(Replay, make(window.environment_data))


def action_loss_of(window: WindowSettings, trainer: TrainerSettings, base_model: Path) -> MakeActionLoss | None:
    """What measures compression under a parent; None where the student sees no reasoning, or nothing is to be measured."""
    if trainer.reasoning != "content" or not window.reasoning_rows:
        return None

    def make(parent: Path) -> ActionLoss:
        from stillhouse.trainer.action_loss import ParentLoss  # torch: only where reasoning is measured

        return ParentLoss(base_model, parent, Renderer(trainer.render().for_model(base_model), base_model), window, trainer.threads)

    return make
