"""`[[window.schedule]]`: settings that change as a lineage grows. Pure."""

from collections.abc import Container
from typing import Any

import msgspec

from stillhouse.sdk.window_settings import WindowStep
from stillhouse.trainer.settings import TrainerSettings, WindowSettings


def scheduled(
    window: WindowSettings, trainer: TrainerSettings, students: int, said: Container[str] = ()
) -> tuple[WindowSettings, TrainerSettings]:
    """Both sections as they count for the next window.

    Args:
        window: `[window]`.
        trainer: `[trainer]`.
        students: how many the lineage has registered. A rejected window repeats its step.
        said: names (`window.size`) of what somebody asked for by hand: it stays.
    """
    if not window.schedule:
        return window, trainer
    step = window.schedule[min(students, len(window.schedule) - 1)]
    return (
        msgspec.structs.replace(window, **_of(step, "window", window, said)),
        msgspec.structs.replace(trainer, **_of(step, "trainer", trainer, said)),
    )


def _of(step: WindowStep, section: str, settings: msgspec.Struct, said: Container[str]) -> dict[str, Any]:
    named = {name: value for name, value in msgspec.structs.asdict(step).items() if value is not None}
    return {name: value for name, value in named.items() if name in settings.__struct_fields__ and f"{section}.{name}" not in said}
