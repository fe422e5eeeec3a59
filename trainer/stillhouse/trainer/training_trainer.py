"""TRL's SFTTrainer with our loss, order of batches, rate curve and checkpoints that are whole or absent."""

import json
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState
from trl import SFTTrainer

from stillhouse.schemas.errors import GateError, PermanentError
from stillhouse.trainer.collate import IGNORED, BucketSampler, Row
from stillhouse.trainer.files import sync_folder
from stillhouse.trainer.loss import labelled_loss, mean_loss
from stillhouse.trainer.training_job import Progress, TrainEvent

_WHOLE = "whole"  # the file that says a checkpoint was written to its end
_STATE = "trainer_state.json"


class LabelledTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer on labelled positions.

    Weights reach the loss because three things agree: the collator makes them, `_signature_columns` keeps their column, and
    `compute_loss` reads them. Without any one of the three TRL drops them and says nothing.

    Args:
        rows: the training rows, in the dataset's order.
        held: the validation rows.
        pad_id: the padding token.
        bfloat16: compute the training steps' matrix products in it.
        kwargs: SFTTrainer's own.
    """

    lr_scheduler: Any
    control: Any

    def __init__(self, *, rows: Sequence[Row], held: Sequence[Row], pad_id: int, bfloat16: bool = False, **kwargs: Any) -> None:
        self._rows, self._held, self._pad_id, self._bfloat16 = rows, held, pad_id, bfloat16
        self._counted = {"tokens": 0, "supervised_tokens": 0, "cpu_seconds": 0.0}
        self._cpu_start = cpu_seconds()
        super().__init__(**kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "labels", "weight"]

    def _get_train_sampler(self, train_dataset: Any = None) -> BucketSampler:
        return BucketSampler([len(r.ids) for r in self._rows], self.args.per_device_train_batch_size, self.args.data_seed)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Linear warm-up times linear decay to a tenth. Unlike transformers' curve, the first step already learns."""
        if self.lr_scheduler is None:
            warm: int = max(1, self.args.get_warmup_steps(num_training_steps))

            def factor(step: int) -> float:
                return min(1.0, (step + 1) / warm) * max(0.1, 1.0 - float(step) / num_training_steps)

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> torch.Tensor:
        """`labelled_loss` of a batch."""
        if return_outputs:
            raise PermanentError("the labelled loss builds no outputs to return", where="LabelledTrainer.compute_loss")
        self._counted["tokens"] += int((inputs["input_ids"] != self._pad_id).sum())
        self._counted["supervised_tokens"] += int((inputs["labels"][:, 1:] != IGNORED).sum())
        # Here and not by SFTConfig(bf16=True), which wraps the model's forward for good: validation and probes would be rounded too.
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            return labelled_loss(model, inputs["input_ids"], inputs["labels"], inputs["weight"], num_items_in_batch)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: transformers walks over every parameter by name for it, at every step."""
        return 0

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The validation loss over all supervised tokens (transformers' own is a mean of means of batches)."""
        metrics = {"eval_loss": mean_loss(self.model, self._held, self._pad_id)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was counted since the job's start: the log is in every checkpoint, so the sums survive a kill."""
        self._counted["cpu_seconds"] += cpu_seconds() - self._cpu_start
        self._cpu_start = cpu_seconds()
        super().log(logs | self._counted, start_time)

    def recall(self, checkpoint: Path) -> None:
        """Take over the sums of a checkpoint before training goes on from it."""
        last = json.loads((checkpoint / _STATE).read_bytes())["log_history"][-1]
        self._counted = {name: last[name] for name in self._counted}

    def ended(self, checkpoint: Path, patience: int) -> bool:
        """Whether training was over at this checkpoint; then the weights that it was to end with are loaded."""
        state = TrainerState.load_from_json(str(checkpoint / _STATE))
        if state.global_step < self.args.max_steps and _unfallen(state) < patience:
            return False
        self.state = state
        self._load_from_checkpoint(state.best_model_checkpoint or str(checkpoint))
        return True

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Past SFTTrainer's own, which writes a model card for the hub first.
        super(SFTTrainer, self)._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        sync_folder(folder)
        (folder / _WHOLE).touch()
        # Transformers' own limit would delete before the new one is whole, and leave the mark on what is half deleted.
        for other in folder.parent.glob("checkpoint-*"):
            if other not in (folder, Path(self.state.best_model_checkpoint or folder)):
                discard(other)


class Patience(TrainerCallback):  # type: ignore[misc]
    """Stops a training whose validation loss does not fall any more.

    Transformers' own counts in memory and begins at nought after a restart; this one counts in the log, which every checkpoint has.

    Args:
        patience: measurements in a row that may not fall.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Look at the measurements so far."""
        if _unfallen(state) >= self._patience:
            control.should_training_stop = True
        return control


def _unfallen(state: Any) -> int:
    """Measurements since the lowest."""
    losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Tells the caller what happened, and asks for a measurement and a checkpoint after given steps.

    Args:
        progress: the caller.
        measure_after: steps after which to measure and save.
        measures: whether there is anything to measure on.
    """

    def __init__(self, progress: Progress, measure_after: frozenset[int], measures: bool) -> None:
        self._progress, self._measure_after, self._measures = progress, measure_after, measures

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Ask for the measurement of this step."""
        if state.global_step in self._measure_after:
            control.should_evaluate, control.should_save = self._measures, True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Pass on the loss of a step or of a validation."""
        logs = logs or {}
        for name in ("loss", "eval_loss"):
            if name not in logs:
                continue
            if not torch.isfinite(torch.tensor(logs[name])):
                raise GateError(f"the {name} of step {state.global_step} is {logs[name]}", fix="Lower [trainer] learning_rate.")
            event = TrainEvent(
                kind="step" if name == "loss" else "validation", step=state.global_step, steps=state.max_steps, loss=logs[name],
                tokens=int(logs["tokens"]), cpu_seconds=logs["cpu_seconds"],
            )  # fmt: skip
            self._progress(event)


def newest_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint below `folder`; what a killed process left half written is deleted."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / _WHOLE).exists():
            whole.append(path)
        else:
            discard(path)
    return max(whole, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint, its mark first: half deleted it must not count as whole."""
    (checkpoint / _WHOLE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def cpu_seconds() -> float:
    """CPU time of this process so far, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
