"""The offline gates, and the choice of a parent. Pure: numbers in, a verdict with its reason out."""

from collections.abc import Container, Sequence
from enum import StrEnum
from typing import NamedTuple

from stillhouse.trainer.examples import Example, Side

FORMAT_SLACK = 0.01  # one percentage point
LOSS_SLACK = 0.02  # nats a token
LOSS_GAP = 0.5  # nats a token


class Verdict(NamedTuple):
    """Whether a gate lets through, and the sentence that says why not (empty when it does)."""

    passed: bool
    reason: str = ""


PASSED = Verdict(True)


def data_gate(train: Sequence[Example], validation: Sequence[Example] = (), *, erased: Container[str] = ()) -> Verdict:
    """No held-out task is trained on, no task is on both sides, no erased trajectory is read.

    Args:
        train: the window's training examples.
        validation: its validation examples.
        erased: keys of trajectories that may not be used any more.
    """
    if not train:
        return Verdict(False, "no training examples")
    for example in train:
        if example.side is not Side.TRAIN:
            return Verdict(False, f"held-out row in the training set: {example.key} is on the side {example.side}")
    for example in validation:
        if example.side is not Side.VALIDATION:
            return Verdict(False, f"{example.key} measures validation but is on the side {example.side}")
    both = {_task(e) for e in train} & {_task(e) for e in validation}
    if both:
        return Verdict(False, f"held-out task in the training set: {min(both)[2]} is on both sides")
    for example in (*train, *validation):
        if example.key in erased:
            return Verdict(False, f"erased row in the window: {example.key}")
    return PASSED


def _task(example: Example) -> tuple[str, str, str]:
    """A task's id is its source's: another tenant or family may have the same one."""
    return (example.tenant, example.family, example.task_key)


def format_gate(rate: float, parent_rate: float | None, *, slack: float = FORMAT_SLACK) -> Verdict:
    """The share of replies that are no action: at most one point (`slack`) above the parent's. Without a parent any passes."""
    if parent_rate is not None and rate > parent_rate + slack:
        return Verdict(False, f"format errors {rate:.1%}, the parent's {parent_rate:.1%}")
    return PASSED


def loss_gate(
    best: float | None,
    parent: float | None,
    train: float,
    *,
    success: float | None = None,
    parent_success: float | None = None,
    slack: float = LOSS_SLACK,
    gap: float = LOSS_GAP,
) -> Verdict:
    """Validation loss against the parent's, and against the training loss.

    Args:
        best: the best validation loss, nats a token; None when nothing was measured.
        parent: the parent's on the same rows.
        train: the training loss at the end.
        success: success rate on validation tasks, where there is an environment.
        parent_success: the parent's on the same tasks.
        slack: nats that `best` may lie above the parent's.
        gap: nats that `best` may lie above the training loss, unless success rose.
    """
    if best is None:
        return PASSED
    if parent is not None and best > parent + slack:
        return Verdict(False, f"validation loss {best:.4f}, the parent's {parent:.4f}")
    above = success is not None and success > (parent_success or 0.0)
    if best - train > gap and not above:
        return Verdict(False, f"validation loss {best:.4f} is {best - train:.2f} nat above the training loss, and success did not rise")
    return PASSED


class Rejection(StrEnum):
    """Why a student was taken out of its lineage for good."""

    REGRESSION = "regression"
    POISON = "poison"
    ERASURE = "erasure"


class Candidate(NamedTuple):
    """What the choice of a parent looks at. `success` and `loss` are on the validation side."""

    name: str
    success: float | None
    loss: float | None
    format_passed: bool
    data_passed: bool
    rejected: Rejection | None = None


def choose_parent(lineage: Sequence[Candidate]) -> Candidate | None:
    """The best student of a lineage (oldest first), served or not: highest validation success, then lowest loss, then the latest.

    Where one has no success rate it is the latest: losses of two windows are on different rows and say nothing of each other,
    while the loss gate has held each student to its own parent on the same rows.
    Never one that did not pass the format and data gates, or was rejected for regression, poison or erasure.
    """
    fit = [c for c in lineage if c.format_passed and c.data_passed and c.rejected is None]
    if not fit or any(c.success is None for c in fit):
        return fit[-1] if fit else None

    def order(entry: tuple[int, Candidate]) -> tuple[float, float, int]:
        place, c = entry
        return (c.success or 0.0, float("-inf") if c.loss is None else -c.loss, place)

    return max(enumerate(fit), key=order)[1]
