"""The loss on labelled positions only, and what is measured with it.

TRL's own loss projects every position through the output head on a CPU, forward and back, and measures entropy and accuracy
on the way. Two thirds of an agent's conversation are context without a label; here only labelled positions reach the head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from stillhouse.trainer.collate import IGNORED, Collator, Row, items_of


def labelled_loss(
    model: Any, input_ids: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Σᵢ wᵢ Σₜ ℓᵢₜ / N: the weighted negative log-likelihood of the labelled tokens, in nats.

    Args:
        model: a causal language model with an output head; an adapter may be on it.
        input_ids: [rows, tokens], padded on the right.
        labels: [rows, tokens], -100 where there is no loss; not shifted.
        weight: [rows].
        items: N, the labelled tokens of the whole optimizer step; of this batch when not given.
    """
    following = labels[:, 1:]
    wanted = following != IGNORED
    head = (model.get_base_model() if hasattr(model, "get_base_model") else model).get_output_embeddings()
    # Through the model's own forward, so that every wrapper around it sees the call; only the head's input is narrowed.
    with head.register_forward_pre_hook(lambda _, hidden: (hidden[0][:, :-1][wanted],)):
        logits = model(input_ids=input_ids, use_cache=False).logits
    token_loss = F.cross_entropy(logits.float(), following[wanted], reduction="none")
    weights = weight[:, None].expand_as(following)[wanted]
    return (token_loss * weights).sum() / (wanted.sum().clamp(min=1) if items is None else items)


def mean_loss(model: Any, rows: Sequence[Row], pad_id: int, batch_size: int = 8) -> float:
    """The mean loss, in nats a supervised token, over all supervised tokens of the rows; weights are not used."""
    total, count, collate = 0.0, 0, Collator(pad_id)
    with _evaluating(model):
        by_length = sorted(rows, key=lambda r: len(r.ids))
        for start in range(0, len(by_length), batch_size):
            part = by_length[start : start + batch_size]
            batch = collate(items_of(part))
            total += float(labelled_loss(model, batch["input_ids"], batch["labels"], torch.ones(len(part)), 1))
            count += sum(r.supervised for r in part)
    return total / count


def token_log_probabilities(model: Any, sequences: Sequence[Sequence[int]], batch_size: int = 4) -> list[list[float]]:
    """The log-probability of each token but the first, given those before it, of each sequence."""
    scored: list[list[float]] = []
    with _evaluating(model):
        for start in range(0, len(sequences), batch_size):
            scored += _log_probabilities(model, sequences[start : start + batch_size])
    return scored


def _log_probabilities(model: Any, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """Of a few at once, padded on the right, where no token of theirs looks."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(s) for s in sequences], batch_first=True)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    chosen = logits.gather(2, ids[:, 1:, None])[..., 0] - logits.logsumexp(-1)
    return [row[: len(s) - 1].tolist() for row, s in zip(chosen, sequences, strict=True)]


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """No gradients, no dropout; afterwards the model is in the mode it was in."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
