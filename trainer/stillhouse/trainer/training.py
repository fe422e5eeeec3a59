"""Training one student, from curated examples to a candidate folder. Reads top to bottom; started again, it goes on."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import SFTConfig

from stillhouse.schemas.errors import GateError, PermanentError
from stillhouse.schemas.precision import takes_bfloat16
from stillhouse.schemas.render import Renderer, RenderSpec
from stillhouse.schemas.student_folder import ADAPTER, RENDER
from stillhouse.trainer.collate import Collator, Row, items_of
from stillhouse.trainer.examples import Example
from stillhouse.trainer.loss import mean_loss, token_log_probabilities
from stillhouse.trainer.manifest import versions
from stillhouse.trainer.probes import choose_probes, save_probes
from stillhouse.trainer.recipes import recipe
from stillhouse.trainer.training_checks import check_examples, check_lineage, check_rows, sample
from stillhouse.trainer.training_folder import JobFolder, save_adapter
from stillhouse.trainer.training_job import Progress, TrainEvent, TrainJob, TrainResult, derived_seed, evaluation_steps, peak_rate
from stillhouse.trainer.training_trainer import LabelledTrainer, Patience, Reporter, newest_checkpoint

_NEVER = 1_000_000_000  # steps between transformers' own evaluations: the Reporter asks for ours


def train(job: TrainJob, examples: Sequence[Example], validation: Sequence[Example], progress: Progress) -> TrainResult:
    """Train a student.

    Killed at any moment and called again with the same arguments it continues from its last checkpoint, or returns the
    result that was already there.

    Args:
        job: what to train, and where.
        examples: the window's training side.
        validation: its validation side; may be empty, then nothing is measured and nothing stops early.
        progress: told about every step and measurement.

    Raises:
        GateError: the data gate said no: a held-out or erased row, or nothing to learn from; rows were lost or too long;
            or the loss is not a number.
        UsageError: the parent has another shape than the job, or no such recipe exists.
        PermanentError: the folder belongs to another job.
    """
    check_examples(examples, validation)
    check_lineage(job)
    make, renderer = recipe(job.recipe).rows, Renderer(job.render, job.base_model)
    rows = make(examples, renderer)
    held = sample(make(validation, renderer), job.settings.validation_rows, derived_seed(job.seed, "validation"))
    _check_rows(rows, job.render)
    _check_rows(held, job.render)

    folder = JobFolder(job.out)
    folder.open(_digest(job, rows, held))
    finished = folder.result()
    if finished:
        return finished

    if job.settings.threads:
        torch.set_num_threads(job.settings.threads)
    model = adapted_model(job)
    base_loss, parent_loss = _base_loss(job, model, held), _parent_loss(job, model, held)
    trainer = make_trainer(job, model, rows, held, progress)
    _check_rows(rows, job.render, taken=len(trainer.train_dataset))

    checkpoint = newest_checkpoint(folder.checkpoints)
    if checkpoint:
        trainer.recall(checkpoint)
        progress(TrainEvent(kind="resumed", step=int(checkpoint.name.rpartition("-")[2]), steps=trainer.args.max_steps))
    if not (checkpoint and trainer.ended(checkpoint, job.settings.patience)):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    save_adapter(model, folder.candidate, base_name=job.base_model.name)
    job.render.save(folder.candidate / RENDER)
    _probe(job, model, rows, folder.candidate)
    result = msgspec.structs.replace(_result(job, trainer, len(rows), parent_loss, folder.candidate), base_loss=base_loss)
    folder.finish(result)
    progress(
        TrainEvent(
            kind="done", step=result.steps, steps=result.steps, loss=result.train_loss, tokens=result.tokens, cpu_seconds=result.cpu_seconds
        )
    )
    return result


def _check_rows(rows: Sequence[Row], spec: RenderSpec, *, taken: int | None = None) -> None:
    try:
        check_rows(rows, spec, taken=taken)
    except PermanentError as error:  # of the window's data, and so a reason to reject it
        raise GateError(error.what, where=error.where, fix=error.fix) from error


def _digest(job: TrainJob, rows: Sequence[Row], held: Sequence[Row]) -> str:
    """What the job's outcome depends on."""
    parent = (job.parent / ADAPTER[1]) if job.parent else None
    inputs = [job.base_model.name, str(parent), job.render, job.recipe, job.mode, job.settings, job.seed, rows, held]
    return hashlib.sha256(msgspec.json.encode(inputs)).hexdigest()


def adapted_model(job: TrainJob) -> Any:
    """The base model with the adapter to train: a new one, or the parent's."""
    base = AutoModelForCausalLM.from_pretrained(job.base_model, dtype=torch.float32, local_files_only=True, use_safetensors=True)
    if job.mode == "continue":
        model = PeftModel.from_pretrained(base, job.parent, is_trainable=True)
        # A student's folder names its base only; where that is no folder, peft asks the hub about it at every save.
        model.peft_config["default"].base_model_name_or_path = str(job.base_model)
        return model
    torch.manual_seed(derived_seed(job.seed, "adapter"))
    shape = LoraConfig(
        r=job.settings.rank, lora_alpha=job.settings.alpha, target_modules=list(job.settings.targets),
        lora_dropout=0.0, task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(base, shape)


def make_trainer(job: TrainJob, model: Any, rows: Sequence[Row], held: Sequence[Row], progress: Progress) -> LabelledTrainer:
    """TRL's trainer, told everything that its defaults would do otherwise."""
    settings = job.settings
    per_epoch = -(-len(rows) // (settings.batch_size * settings.accumulation))
    steps = min(per_epoch * settings.epochs, settings.max_steps or _NEVER)
    args = SFTConfig(
        output_dir=str(JobFolder(job.out).checkpoints),
        max_length=None,  # the default would cut at 1024 tokens and drop the rows whose targets lie behind
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        max_steps=steps,
        learning_rate=peak_rate(model.get_base_model().num_parameters(), settings, job.mode),
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        adam_beta2=settings.beta2,
        max_grad_norm=settings.max_grad_norm,
        use_cpu=True, bf16=False, gradient_checkpointing=False, dataloader_pin_memory=False,
        eval_strategy="steps" if held else "no", eval_steps=_NEVER,
        save_strategy="steps", save_steps=_NEVER,
        load_best_model_at_end=bool(held), metric_for_best_model="eval_loss", greater_is_better=False,
        logging_steps=1, logging_nan_inf_filter=False, disable_tqdm=True, report_to="none",
        seed=derived_seed(job.seed, "training"), data_seed=derived_seed(job.seed, "order"),
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(job.base_model, local_files_only=True)
    # Else transformers "aligns" the three by itself, aloud. Nothing here ever writes a begin-of-text token.
    tokenizer.bos_token_id = model.generation_config.bos_token_id = model.config.bos_token_id
    trainer = LabelledTrainer(
        rows=rows, held=held, pad_id=job.render.pad_id, bfloat16=_in_bfloat16(job),
        model=model, args=args, processing_class=tokenizer, data_collator=Collator(job.render.pad_id),
        train_dataset=Dataset.from_list(items_of(rows)),
        eval_dataset=Dataset.from_list(items_of(held)) if held else None,
        callbacks=[Patience(settings.patience)] if held else [],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Reporter(progress, evaluation_steps(steps, settings.evaluations), bool(held)))
    return trainer


def _in_bfloat16(job: TrainJob) -> bool:
    return takes_bfloat16(job.settings.precision, torch.cpu.get_capabilities())


def _base_loss(job: TrainJob, model: Any, held: Sequence[Row]) -> float | None:
    """The base model's loss on the validation rows; a new adapter changes nothing before its first step."""
    return mean_loss(model, held, job.render.pad_id) if held and job.mode == "fresh" else None


def _parent_loss(job: TrainJob, model: Any, held: Sequence[Row]) -> float | None:
    """The parent's loss on the validation rows; called before the first step."""
    if not (job.parent and held):
        return None
    if job.mode == "continue":
        return mean_loss(model, held, job.render.pad_id)
    model.load_adapter(job.parent, "parent")
    model.set_adapter("parent")
    loss = mean_loss(model, held, job.render.pad_id)
    model.set_adapter("default")
    model.delete_adapter("parent")
    return loss


def _probe(job: TrainJob, model: Any, rows: Sequence[Row], candidate: Path) -> None:
    """Choose the attestation probes among the shortest rows: they are scored again and again for as long as it serves."""
    shortest = sorted((r.ids for r in rows), key=lambda ids: (len(ids), ids))[: job.settings.probe_candidates]
    if job.parent:
        model.load_adapter(job.parent, "parent")

    def under(adapter: str) -> Any:
        def score(sequences: Sequence[Sequence[int]]) -> list[list[float]]:
            model.set_adapter(adapter)
            return token_log_probabilities(model, sequences)

        return score

    def base(sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        with model.disable_adapter():
            return token_log_probabilities(model, sequences)

    save_probes(candidate, choose_probes(shortest, under("default"), base, under("parent") if job.parent else None))


def _result(job: TrainJob, trainer: LabelledTrainer, rows: int, parent_loss: float | None, candidate: Path) -> TrainResult:
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    measured = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    counted = [entry for entry in history if "tokens" in entry][-1]
    last = losses[-max(1, len(losses) // 4) :]
    return TrainResult(
        candidate=candidate, rows=rows, steps=trainer.state.global_step,
        tokens=counted["tokens"], supervised_tokens=counted["supervised_tokens"], cpu_seconds=counted["cpu_seconds"],
        losses=tuple(losses), validation_losses=tuple(measured),
        train_loss=sum(last) / len(last), validation_loss=min((loss for _, loss in measured), default=None), parent_loss=parent_loss,
        stopped_early=trainer.state.global_step < trainer.args.max_steps, versions=versions(),
        precision="bfloat16" if _in_bfloat16(job) else "float32",
    )  # fmt: skip
