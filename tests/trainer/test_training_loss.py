"""The loss on labelled positions is TRL's loss, its weights count, and accumulation does not change its gradient."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from stillhouse.schemas.render import Rendered, Renderer
from stillhouse.trainer.collate import BucketSampler, Collator, Row, items_of, row_of
from stillhouse.trainer.loss import labelled_loss, mean_loss, token_log_probabilities
from stillhouse.trainer.recipes import recipe
from stillhouse.trainer.training import adapted_model, make_trainer
from tests.trainer.training_factory import base_in, example, examples, job

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_in(tmp_path_factory.mktemp("models"))


def rows_of(base: Path, weights: Sequence[float] = ()) -> list[Row]:
    chosen = [example(i, weight=w) for i, w in enumerate(weights)] or examples(4)
    spec = job(base, base).render
    return recipe("weighted" if weights else "bc-trajectory").rows(chosen, Renderer(spec, base))


def batch_of(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    return {**Collator(0)(items_of(rows))}  # type: ignore[dict-item]


def trls_loss(model: Any, base: Path, rows: Sequence[Row], out: Path) -> torch.Tensor:
    """What TRL itself makes of the same rows, with its own collator and attention mask."""
    items = [{"input_ids": r.ids, "labels": r.labels} for r in rows]
    args = SFTConfig(str(out), max_length=None, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none")
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list(items), processing_class=AutoTokenizer.from_pretrained(base))
    return trainer.compute_loss(trainer.model, dict(trainer.data_collator(items)))  # type: ignore[no-any-return]


def test_it_is_trls_own_loss_and_gradient(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows, model = rows_of(base), adapted_model(job(base, tmp_path))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide half the gradient
            torch.nn.init.normal_(parameter, std=0.1)
    assert len({len(r.ids) for r in rows}) > 1  # there is padding
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = labelled_loss(model, **batch_of(rows))
    our_gradient = torch.autograd.grad(ours, parameters)
    theirs = trls_loss(model, base, rows, tmp_path)
    their_gradient = torch.autograd.grad(theirs, parameters)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-4)
    for one, other in zip(our_gradient, their_gradient, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert mean_loss(model, rows, 0, batch_size=3) == pytest.approx(theirs.item(), abs=1e-4)


def test_the_loss_is_the_sum_over_rows_of_weight_times_their_token_losses(base: Path, tmp_path: Path) -> None:
    rows, model = rows_of(base, (0.5, 2.0, 1.0)), adapted_model(job(base, tmp_path))
    total = 0.0
    for row, known in zip(rows, token_log_probabilities(model, [row.ids for row in rows], batch_size=2), strict=True):
        total += row.weight * sum(-p for p, label in zip(known, row.labels[1:], strict=True) if label != -100)
    with torch.no_grad():
        assert float(labelled_loss(model, **batch_of(rows))) == pytest.approx(total / sum(r.supervised for r in rows), abs=1e-4)


class Gradient(TrainerCallback):  # type: ignore[misc]
    """Keeps the gradient that the optimizer gets."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.kept = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def gradient(base: Path, out: Path, weights: Sequence[float], batch: int, accumulation: int) -> torch.Tensor:
    settings = {"batch_size": batch, "accumulation": accumulation, "max_steps": 1, "max_grad_norm": 0.0, "precision": "float32"}
    made = job(base, out, recipe="weighted", settings=settings)
    trainer, kept = make_trainer(made, adapted_model(made), rows_of(base, weights), [], lambda _: None), Gradient()
    trainer.add_callback(kept)
    trainer.train()
    return kept.kept


def test_two_layouts_of_accumulation_give_one_gradient(base: Path, tmp_path: Path) -> None:
    weights = (0.5, 2.0, 1.0, 1.5)
    whole = gradient(base, tmp_path / "4x1", weights, 4, 1)
    assert float(whole.norm()) > 0
    for batch, accumulation in ((2, 2), (1, 4)):
        torch.testing.assert_close(gradient(base, tmp_path / f"{batch}", weights, batch, accumulation), whole, atol=1e-6, rtol=1e-4)


def test_the_weights_arrive_in_the_gradient(base: Path, tmp_path: Path) -> None:
    one = gradient(base, tmp_path / "a", (1.0, 1.0), 2, 1)
    twice = gradient(base, tmp_path / "b", (2.0, 2.0), 2, 1)
    other = gradient(base, tmp_path / "c", (0.5, 1.5), 2, 1)
    torch.testing.assert_close(twice, 2 * one, atol=1e-6, rtol=1e-4)
    assert float((other - one).norm()) > 1e-3 * float(one.norm())


def test_only_labelled_positions_reach_the_head(base: Path, tmp_path: Path) -> None:
    rows, model = rows_of(base), adapted_model(job(base, tmp_path))
    seen: list[torch.Size] = []
    model.get_base_model().lm_head.register_forward_hook(lambda _, __, logits: seen.append(logits.shape))
    labelled_loss(model, **batch_of(rows))
    assert seen == [torch.Size([sum(r.supervised for r in rows), model.config.vocab_size])]


def test_what_follows_the_last_target_is_cut_off() -> None:
    assert row_of(Rendered([5, 6, 7, 8], [False, True, False, False]), 2.0) == Row([5, 6], [-100, 6], 2.0)
    assert row_of(Rendered([5, 6], [False, False])).supervised == 0
    assert Row([5, 6], [5, -100], 1.0).supervised == 0  # nothing predicts the first token


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 5), st.integers(0, 3))
def test_every_row_comes_once_an_epoch(lengths: list[int], batch: int, seed: int) -> None:
    sampler = BucketSampler(lengths, batch, seed)
    first = list(sampler)
    assert sorted(first) == list(range(len(lengths)))
    assert first == list(BucketSampler(lengths, batch, seed))
    sampler.set_epoch(1)
    assert sorted(sampler) == sorted(first)


def test_batches_are_of_like_length_and_epochs_differ() -> None:
    lengths = [((i * 37) % 100) + 1 for i in range(64)]
    sampler = BucketSampler(lengths, 4, seed=1)
    order = list(sampler)
    sampler.set_epoch(1)
    assert order != list(sampler)

    def padding(rows: list[int]) -> int:
        batches = [rows[i : i + 4] for i in range(0, 64, 4)]
        return sum(max(lengths[r] for r in b) - lengths[r] for b in batches for r in b)

    assert padding(order) < padding(list(range(64))) / 2
