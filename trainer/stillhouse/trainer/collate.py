"""Rows of token ids, the batches they are put in, and the order of those batches."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypedDict

import torch
from torch.utils.data import Sampler

from stillhouse.schemas.render import Rendered

IGNORED = -100  # transformers' label of a position without loss
# How many batches are sorted by length together: padding stays small, and batches still mix.
_SORTED_BATCHES = 4


class Row(NamedTuple):
    """One sequence to train on. `weight` is that of each of its supervised tokens."""

    ids: list[int]
    labels: list[int]
    weight: float

    @property
    def supervised(self) -> int:
        """Positions that carry loss (the first token is predicted from nothing and carries none)."""
        return sum(label != IGNORED for label in self.labels[1:])


class Item(TypedDict):
    """A row as the trainer's dataset holds it."""

    input_ids: list[int]
    labels: list[int]
    weight: float


class Batch(TypedDict):
    """Rows padded on the right to one length: [rows, tokens], and a weight a row."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    weight: torch.Tensor


def row_of(rendered: Rendered, weight: float = 1.0) -> Row:
    """A row whose loss is on the rendered targets; what follows the last target is cut off, as it teaches nothing."""
    end = max((i + 1 for i, wanted in enumerate(rendered.mask) if wanted), default=0)
    ids, mask = rendered.ids[:end], rendered.mask[:end]
    return Row(ids, [i if wanted else IGNORED for i, wanted in zip(ids, mask, strict=True)], weight)


def items_of(rows: Sequence[Row]) -> list[Item]:
    """The rows as the dataset's items."""
    return [{"input_ids": r.ids, "labels": r.labels, "weight": r.weight} for r in rows]


class Collator:
    """Pads rows on the right. There is no attention mask: a causal model's real positions never look at padding after them.

    Args:
        pad_id: the token that fills up.
    """

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, items: Sequence[Item]) -> Batch:
        """The batch of the items."""
        shape = len(items), max(len(i["input_ids"]) for i in items)
        ids, labels = torch.full(shape, self._pad_id), torch.full(shape, IGNORED)
        for place, item in enumerate(items):
            size = len(item["input_ids"])
            ids[place, :size] = torch.tensor(item["input_ids"])
            labels[place, :size] = torch.tensor(item["labels"])
        return {"input_ids": ids, "labels": labels, "weight": torch.tensor([i["weight"] for i in items], dtype=torch.float32)}


class BucketSampler(Sampler[int]):
    """Every row once an epoch, neighbours of like length, in an order that depends on the seed and the epoch only.

    Args:
        lengths: tokens of each row.
        batch_size: rows a batch.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch, self._seed, self._epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch (the trainer calls this)."""
        self._epoch = epoch

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        """Row indices; each `batch_size` of them are a batch, the last may be shorter."""
        order = random.Random(f"{self._seed}/{self._epoch}")
        rows = list(range(len(self._lengths)))
        order.shuffle(rows)
        span, size = self._batch * _SORTED_BATCHES, self._batch
        sorted_rows = [r for i in range(0, len(rows), span) for r in sorted(rows[i : i + span], key=self._lengths.__getitem__)]
        batches = [sorted_rows[i : i + size] for i in range(0, len(rows), size)]
        short = [batches.pop()] if batches and len(batches[-1]) < size else []  # a short batch can only come last
        order.shuffle(batches)
        return iter([row for batch in batches + short for row in batch])
