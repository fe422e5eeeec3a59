"""Small examples, a tiny base model and jobs on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.schemas.render import RenderSpec
from stillhouse.trainer.examples import Example, Side, TrainMessage
from stillhouse.trainer.manifest import Manifest
from stillhouse.trainer.models import tiny
from stillhouse.trainer.training_job import TrainEvent, TrainJob, TrainSettings

BASE_SEED = 1


def talk(number: int) -> list[Message]:
    order = str(1000 + number)
    return [
        Message(role="system", content="Desk."),
        Message(role="user", content=f"Cancel {order}{', please' * (number % 4)}."),
        Message(role="assistant", tool_calls=(ToolCall(id="c", name="cancel", arguments={"id": order}),)),
        Message(role="tool", content='{"ok": true}', tool_call_id="c"),
        Message(role="assistant", content=f"Order {order} is cancelled."),
    ]


def example(number: int, side: Side = Side.TRAIN, **changes: Any) -> Example:
    messages = tuple(TrainMessage(m, m.role == "assistant") for m in talk(number))
    made = {
        "key": f"t/{number}",
        "task_key": f"task-{number}",
        "tenant": "t",
        "family": "cancel",
        "plan": ("cancel",),
        "messages": messages,
    }
    return Example(side=side, **(made | changes))


def examples(count: int, first: int = 0, side: Side = Side.TRAIN) -> list[Example]:
    return [example(first + i, side) for i in range(count)]


def held(count: int = 4) -> list[Example]:
    return examples(count, first=500, side=Side.VALIDATION)


def base_in(folder: Path) -> Path:
    return tiny(folder / "tiny", BASE_SEED)


def job(base: Path, out: Path, **changes: Any) -> TrainJob:
    settings = TrainSettings(
        **(
            {"threads": 1, "epochs": 2, "learning_rate": 5e-3, "rank": 4, "alpha": 8, "probe_candidates": 3, "evaluations": 4}
            | changes.pop("settings", {})
        )
    )
    spec = changes.pop("render", RenderSpec(grammar="bare-json", context_limit=200)).for_model(base)
    return TrainJob(**({"base_model": base, "parent": None, "render": spec, "settings": settings, "out": out} | changes))


def manifest(**changes: Any) -> Manifest:
    made: dict[str, Any] = {
        "base_model": "tiny", "base_sha256": "0" * 64, "recipe": "bc-trajectory", "mode": "fresh", "settings": {}, "seed": 1,
        "rows": 1, "tokens": 1, "supervised_tokens": 1, "train_loss": 1.0,
    }  # fmt: skip
    return Manifest(**(made | changes))


class Heard:
    """A progress callback that remembers."""

    def __init__(self) -> None:
        self.events: list[TrainEvent] = []

    def __call__(self, event: TrainEvent) -> None:
        self.events.append(event)

    def of(self, kind: str) -> Sequence[TrainEvent]:
        return [e for e in self.events if e.kind == kind]
