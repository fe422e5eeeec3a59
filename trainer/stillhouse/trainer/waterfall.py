"""The yield of a window: events, trajectories, what each stage kept and why it dropped the rest, examples, trained tokens."""

from typing import Any

import msgspec

from stillhouse.schemas.errors import PermanentError


class StageYield(msgspec.Struct, frozen=True, kw_only=True, rename={"entered": "in"}):
    """One stage: trajectories in, kept and dropped by reason; `notes` are further counts of that stage."""

    name: str
    entered: int
    kept: int
    dropped: dict[str, int] = {}
    notes: dict[str, Any] = {}


class Waterfall(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a window's events.

    Attributes:
        events: distinct events of the trajectories that entered.
        trajectories: how many entered.
        stages: in their order.
        kept: trajectories that are trained on.
        examples: rows of the trainer; more than `kept` where trajectories were cut into steps.
        supervised_tokens: tokens of them that carry loss.
        validation: the same stages for the validation side.
        notes: what a reader must know beside the numbers, as sentences; not a part of the hash.
        manifest_hash: hash (hex) of inputs, settings and results.
    """

    events: int
    trajectories: int
    stages: tuple[StageYield, ...]
    kept: int
    examples: int
    supervised_tokens: int
    validation: tuple[StageYield, ...] = ()
    validation_examples: int = 0
    notes: tuple[str, ...] = ()
    manifest_hash: str = ""

    def check(self) -> None:
        """See that nothing is lost between two stages.

        Raises:
            PermanentError: a stage does not add up, or does not begin where the one before it ended.
        """
        if (self.stages[-1].kept if self.stages else self.trajectories) != self.kept:
            raise PermanentError("the waterfall does not end with what is kept")
        for stages, entering in ((self.stages, self.trajectories), (self.validation, None)):
            for stage in stages:
                if (entering is not None and stage.entered != entering) or stage.entered != stage.kept + sum(stage.dropped.values()):
                    raise PermanentError(
                        "the waterfall does not add up", where=f"stage {stage.name}", fix="This is a bug: please report it."
                    )
                entering = stage.kept

    def to_json(self) -> dict[str, Any]:
        """The object that `windows plan --json` prints."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    def lines(self) -> list[str]:
        """The same as a text table, one line a stage."""
        head = [f"{self.events} events, {self.trajectories} trajectories"]
        body = [f"{s.name:<12}{s.entered:>8} → {s.kept:<8}{_reasons(s.dropped)}".rstrip() for s in self.stages]
        foot = f"{self.kept} kept, {self.examples} examples, {self.supervised_tokens} supervised tokens"
        return [*head, *body, foot, *(f"note: {note}" for note in self.notes)]


def _reasons(dropped: dict[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in dropped.items())
