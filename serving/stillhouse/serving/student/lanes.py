"""Keys and values of the running sequences: each has a lane of one tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class KvShape:
    """Sizes of a model's keys and values."""

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values of one token in all layers."""
        return 2 * self.layers * self.heads * self.head_dim * self.dtype.itemsize


class Lanes:
    """The tensor (layers, 2, lanes, heads, capacity, head_dim) that running sequences live in.

    Args:
        shape: the model's sizes.
        lanes: how many sequences at most.
        capacity: tokens a lane holds at first; it doubles as needed.
    """

    def __init__(self, shape: KvShape, lanes: int, capacity: int = 256) -> None:
        self.shape = shape
        self.capacity = capacity
        # Zeros, not garbage: a masked NaN is still a NaN.
        self.data = torch.zeros(shape.layers, 2, lanes, shape.heads, capacity, shape.head_dim, dtype=shape.dtype)

    def reserve(self, tokens: int) -> None:
        """Make every lane hold `tokens` at least."""
        if tokens <= self.capacity:
            return
        old, held = self.data, self.capacity
        self.capacity = max(tokens, 2 * held)
        self.data = torch.zeros(*old.shape[:4], self.capacity, old.shape[5], dtype=old.dtype)
        self.data[..., :held, :] = old

    def load(self, lane: int, segments: Sequence[tuple[torch.Tensor, int]]) -> int:
        """Put cached segments at the beginning of a lane; how many tokens that are."""
        at = 0
        self.reserve(sum(n for _, n in segments))
        for segment, n in segments:
            self.data[:, :, lane, :, at : at + n] = segment[..., :n, :]
            at += n
        return at

    def take(self, lane: int, start: int, end: int) -> torch.Tensor:
        """A copy (layers, 2, heads, end-start, head_dim) of a lane's tokens."""
        return self.data[:, :, lane, :, start:end].clone()


def cut_segment(segment: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two segments of one. Both are copies, so that dropping either frees its memory."""
    return segment[..., :n, :].clone(), segment[..., n:, :].clone()
