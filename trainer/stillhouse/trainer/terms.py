"""What a window was claimed with stays: the settings that it goes on with, and the options that would contradict them."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from stillhouse.schemas.errors import UsageError
from stillhouse.trainer.models import SOURCES
from stillhouse.trainer.settings import CurationSettings, TrainerSettings, WindowSettings
from stillhouse.trainer.windows_types import Mode, Terms, WindowPlan

_VIEW = ("system", "system_prompt", "tools", "reasoning", "grammar", "context_limit")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody said of a window, beside what the settings hold.

    Attributes:
        settings: names (`trainer.recipe`) of the settings that were said; what comes from a file or the environment is not among them.
        families: only these.
        weights: what they are drawn by.
        mode: instead of the rule's.
    """

    settings: frozenset[str] = frozenset()
    families: tuple[str, ...] | None = None
    weights: dict[str, float] | None = None
    mode: Mode | None = None


def terms_of(
    trainer: TrainerSettings,
    curation: CurationSettings,
    *,
    families: Iterable[str] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Terms:
    """The terms of a window that is claimed under these settings."""
    return Terms(
        recipe=trainer.recipe,
        model=trainer.model if trainer.model in SOURCES else str(Path(trainer.model).resolve()),
        seed=trainer.seed,
        settings=trainer.training(),
        view=trainer.render(),
        families=tuple(sorted(set(families))) if families is not None else None,
        weights=dict(weights) if weights is not None else None,
        curation=CurationSettings(**{name: getattr(curation, name) for name in CurationSettings.__struct_fields__}),
    )


def in_force(planned: WindowPlan, trainer: TrainerSettings) -> TrainerSettings:
    """`[trainer]` as it counts for a claimed window: its own terms, and of today's settings only what those do not cover."""
    return msgspec.structs.replace(trainer, **_settings_of(planned.terms)) if planned.terms else trainer


def curation_in_force(planned: WindowPlan, window: WindowSettings) -> WindowSettings:
    """`[window]` as it counts for a claimed window: curated as it was claimed, whatever the settings say now."""
    kept = planned.terms.curation if planned.terms else None
    return msgspec.structs.replace(window, **msgspec.structs.asdict(kept)) if kept else window


def refuse_contradictions(planned: WindowPlan, asked: Asked, window: WindowSettings, trainer: TrainerSettings) -> None:
    """An open window goes on as it was claimed: who asks for something else is told so.

    Args:
        planned: of the open window.
        asked: what was said now.
        window: `[window]` with it.
        trainer: `[trainer]` with it.

    Raises:
        UsageError: something was asked for that is not as the window has it.
    """
    for name, had, wanted in (*_drawn(planned, asked, window), *_trained(planned, asked, trainer)):
        if had != wanted:
            raise UsageError(
                f"the open window has {name} {_shown(had)}, not {_shown(wanted)}",
                where=planned.key,
                fix="Run it to its end first, without this option.",
            )


def _drawn(planned: WindowPlan, asked: Asked, window: WindowSettings) -> Iterable[tuple[str, Any, Any]]:
    """(name, as the window has it, as it is asked for) of what decides which examples it takes."""
    quota = planned.quota
    if asked.mode is not None:
        yield "mode", planned.mode, asked.mode
    if "window.size" in asked.settings:
        yield "size", (quota.size if quota else None) or 0, window.size
    if "window.replay" in asked.settings and quota is not None and quota.replay is not None:
        yield "replay", quota.replay, window.replay
    if planned.terms is not None and (kept := planned.terms.curation) is not None:
        names = sorted(name.removeprefix("window.") for name in asked.settings if name.startswith("window."))
        yield from ((name, getattr(kept, name), getattr(window, name)) for name in names if name in CurationSettings.__struct_fields__)
    if planned.terms is not None and asked.families is not None:
        yield "families", planned.terms.families, tuple(sorted(set(asked.families)))
    if planned.terms is not None and asked.weights is not None:
        yield "weights", planned.terms.weights, asked.weights


def _trained(planned: WindowPlan, asked: Asked, trainer: TrainerSettings) -> Iterable[tuple[str, Any, Any]]:
    """The same of what decides how it is trained."""
    if planned.terms is not None:
        had, wanted = _settings_of(planned.terms), _settings_of(terms_of(trainer, CurationSettings()))
        yield from ((name, had[name], wanted[name]) for name in _of_trainer(asked.settings) if name in had)


def _of_trainer(names: Collection[str]) -> list[str]:
    return sorted(name.removeprefix("trainer.") for name in names if name.startswith("trainer."))


def _settings_of(terms: Terms) -> dict[str, Any]:
    """The terms under the names that `[trainer]` has for them."""
    own = {"recipe": terms.recipe, "model": terms.model, "seed": terms.seed}
    return {**own, **msgspec.structs.asdict(terms.settings), **{name: getattr(terms.view, name) for name in _VIEW}}


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
