"""Keys and values of the running sequences, and attention over them without padding a token.

Each running sequence has a lane. A step's tokens go through the model as a batch of T sequences of one token, so that
linear layers compute what is needed and nothing else; only here, in attention, they meet their lanes again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from stillhouse.serving.student.scheduler import Row

ATTENTION = "stillhouse_lanes"


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


@dataclass(frozen=True, slots=True)
class Span:
    """One prompt piece: rows `at … at+count-1` of the step are positions `start …` of `lane`."""

    lane: int
    start: int
    count: int
    at: int
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a step's tokens belong. The first `single` rows are one token each of different lanes in `low … high-1`.

    Attributes:
        lane: (T,) lane of each row. position: (T,) place of each row in its lane.
        mask: (high-low, 1, 1, longest) what each lane's single token may look at.
        spans: the prompt pieces behind the single rows.
    """

    lane: torch.Tensor
    position: torch.Tensor
    single: int
    low: int
    high: int
    longest: int
    mask: torch.Tensor | None
    spans: tuple[Span, ...]


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


def arrange(rows: Sequence[Row]) -> tuple[list[Row], Layout]:
    """Rows in the order that the step computes them (single tokens first), and their layout."""
    ordered = sorted(rows, key=lambda r: r.count > 1)
    lanes = [r.sequence.lane for r in ordered for _ in range(r.count)]
    positions = [p for r in ordered for p in range(r.start, r.start + r.count)]
    single = sum(r.count == 1 for r in ordered)
    spans, at = [], single
    for row in ordered[single:]:
        spans.append(Span(row.sequence.lane, row.start, row.count, at, _span_mask(row.start, row.count)))
        at += row.count
    low, high = min(lanes[:single], default=0), max(lanes[:single], default=-1) + 1
    longest = max(positions[:single], default=-1) + 1
    mask = None
    if single:
        seen = torch.zeros(high - low, dtype=torch.long)
        seen[torch.tensor(lanes[:single]) - low] = torch.tensor(positions[:single]) + 1
        # A lane of somebody else's looks at its first token, so that no row of the softmax is empty.
        mask = torch.where(torch.arange(longest)[None] < seen.clamp(min=1)[:, None], 0.0, float("-inf"))[:, None, None, :]
    return ordered, Layout(torch.tensor(lanes), torch.tensor(positions), single, low, high, longest, mask, tuple(spans))


def _span_mask(start: int, count: int) -> torch.Tensor | None:
    """What a prompt piece may look at; None when it begins the sequence (plain causal)."""
    return torch.ones(count, start + count, dtype=torch.bool).tril(start) if start else None


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    lanes: Lanes,
    layout: Layout,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer for a step, in the form of transformers' attention interface.

    Args:
        module: the attention module, for its `layer_idx`.
        query: (T, heads, 1, head_dim).
        key: (T, kv_heads, 1, head_dim).
        value: like `key`.
        attention_mask: not used; the layout says it.
        scaling: factor of the scores.
        lanes: where keys and values are kept.
        layout: whose tokens these are.

    Returns:
        (T, 1, heads, head_dim), and no weights.
    """
    keys, values = lanes.data[int(module.layer_idx)]  # type: ignore[arg-type]
    keys[layout.lane, :, layout.position] = key[:, :, 0]
    values[layout.lane, :, layout.position] = value[:, :, 0]
    out = torch.empty_like(query)
    if layout.single:
        out[: layout.single] = _attend_singles(query[: layout.single], keys, values, layout, scaling)
    for span in layout.spans:
        end, rows = span.start + span.count, slice(span.at, span.at + span.count)
        seen = (keys[None, span.lane, :, :end], values[None, span.lane, :, :end])
        result = F.scaled_dot_product_attention(
            query[rows].transpose(0, 2), *seen, attn_mask=span.mask, is_causal=span.mask is None, scale=scaling, enable_gqa=True
        )
        out[rows] = result.transpose(0, 2)
    return out.transpose(1, 2), None


def _attend_singles(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: Layout, scaling: float) -> torch.Tensor:
    """One token a lane. The query heads that share a key head go as its queries: every key is read once."""
    n, heads = query.shape[0], keys.shape[1]
    group = query.shape[1] // heads
    place = layout.lane[:n] - layout.low
    spread = query.new_zeros(layout.high - layout.low, heads, group, query.shape[-1])
    spread[place] = query.view(n, heads, group, -1)
    window = (slice(layout.low, layout.high), slice(None), slice(0, layout.longest))
    result = F.scaled_dot_product_attention(spread, keys[window], values[window], attn_mask=layout.mask, scale=scaling)
    return result[place].reshape(query.shape)


AttentionInterface.register(ATTENTION, attend)
