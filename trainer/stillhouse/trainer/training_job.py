"""What a training job is, what it says on the way, and what it gives. No torch: planners and consoles import this."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from stillhouse.schemas.precision import Precision
from stillhouse.schemas.render import RenderSpec

Mode = Literal["fresh", "continue"]
RECIPE_NAMES = ("bc-trajectory", "bc-step", "weighted")  # of `recipes.RECIPES`, which needs torch
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a student is trained (`[trainer]` of the configuration).

    Attributes:
        rank: of the LoRA matrices. Rank, alpha and targets never change within a lineage.
        alpha: LoRA's scale is alpha / rank.
        targets: the linear layers that get an adapter.
        learning_rate: peak rate; None: by the size of the base model.
        continue_rate: the peak rate of a continued student as a share of a fresh one's.
        warmup: share of the steps over which the rate rises.
        weight_decay: of the adapter's weights.
        max_grad_norm: gradients are clipped to this norm.
        beta2: AdamW's second decay.
        batch_size: rows a forward pass.
        accumulation: forward passes an optimizer step.
        epochs: passes over the rows.
        max_steps: optimizer steps at most; None: as the epochs need.
        evaluations: how often the validation loss is measured, the last time after the last step.
        patience: stop when that many evaluations in a row did not fall.
        validation_rows: rows of the validation side that are measured.
        probe_candidates: rows among which the attestation probes are chosen.
        threads: of torch; None: as torch decides.
        precision: of the matrix products while training (weights, gradients and every measurement stay float32); `auto` takes
            bfloat16 where the CPU multiplies it in hardware.
    """

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = LINEARS
    learning_rate: float | None = None
    continue_rate: float = 0.5
    warmup: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    beta2: float = 0.99
    batch_size: int = 2
    accumulation: int = 1
    epochs: int = 1
    max_steps: int | None = None
    evaluations: int = 8
    patience: int = 3
    validation_rows: int = 16
    probe_candidates: int = 24
    threads: int | None = None
    precision: Precision = "auto"


class TrainJob(msgspec.Struct, frozen=True, kw_only=True):
    """One student to train.

    Attributes:
        base_model: folder of the base model.
        parent: folder of the student it follows, or None.
        render: the view that it is trained on.
        recipe: a name of `RECIPES`.
        mode: `fresh` (from the base model) or `continue` (from the parent's adapter).
        settings: how.
        out: the job's folder: checkpoints, then the candidate. The same job started again there goes on.
        seed: of the run; initialisation and order derive theirs from it.
    """

    base_model: Path
    parent: Path | None
    render: RenderSpec
    recipe: str = "bc-trajectory"
    mode: Mode = "fresh"
    settings: TrainSettings = TrainSettings()
    out: Path
    seed: int = 1


class TrainEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened. Losses are nats a supervised token; `tokens` and `cpu_seconds` are sums since the job's start."""

    kind: Literal["resumed", "step", "validation", "done"]
    step: int
    steps: int
    loss: float | None = None
    tokens: int = 0
    cpu_seconds: float = 0.0


class TrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """What training gave.

    Attributes:
        candidate: folder with the adapter, `render.json` and `probes.json`: what is evaluated, then registered.
        rows: rows trained on.
        steps: optimizer steps taken.
        tokens: tokens read, padding left out, over all epochs.
        supervised_tokens: those that carried loss.
        losses: the training loss of each step.
        validation_losses: (step, loss) of each evaluation.
        train_loss: mean of the last quarter of `losses`.
        validation_loss: the best; that of the weights that were kept. None without a validation set.
        parent_loss: the parent's loss on the same validation rows. None without a parent or a validation set.
        base_loss: the base model's loss on them, measured where training starts from it. None without a validation set.
        stopped_early: whether patience ran out.
        cpu_seconds: of all the job's processes, evaluations included.
        versions: of the packages that made it.
        precision: that of its matrix products.
    """

    candidate: Path
    rows: int
    steps: int
    tokens: int
    supervised_tokens: int
    losses: tuple[float, ...]
    validation_losses: tuple[tuple[int, float], ...]
    train_loss: float
    validation_loss: float | None
    parent_loss: float | None
    stopped_early: bool
    cpu_seconds: float
    versions: dict[str, str]
    base_loss: float | None = None
    precision: str = "float32"


Progress = Callable[[TrainEvent], None]


def derived_seed(seed: int, name: str) -> int:
    """A seed (31 bits) for one purpose: no two purposes share a stream, and adding one does not move the others."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big") >> 1


def peak_rate(parameters: int, settings: TrainSettings, mode: Mode) -> float:
    """The peak learning rate: as set, else by the base model's size; a continued student gets its share of it."""
    by_size = 2e-3 if parameters <= 500_000_000 else 5e-4 if parameters < 7_000_000_000 else 2e-4
    return (settings.learning_rate or by_size) * (settings.continue_rate if mode == "continue" else 1.0)


def evaluation_steps(steps: int, evaluations: int) -> frozenset[int]:
    """The steps after which to measure: evenly spread, the last one among them."""
    return frozenset(max(1, round(steps * i / evaluations)) for i in range(1, evaluations + 1)) | {steps}
