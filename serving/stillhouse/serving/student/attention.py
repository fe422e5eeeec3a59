"""Attention of a step over lanes and long segments, without padding a token.

A step's tokens go through the model as a batch of T sequences of one token, so that linear layers compute what is needed and
nothing else; only here they meet their sequences again. What a sequence looks at is in two places: its lane, and long segments
that many sequences may have in common. A segment is read once for all of them; parts are put together by their log-sum-exp.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from stillhouse.serving.student.lanes import Lanes
from stillhouse.serving.student.scheduler import Row

ATTENTION = "stillhouse_lanes"


@dataclass(frozen=True, slots=True)
class Span:
    """One prompt piece: rows `at … at+count-1` of the step are places `start …` of `lane`."""

    lane: int
    start: int
    count: int
    at: int
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Common:
    """A segment (layers, 2, heads, tokens, head_dim) and the rows of the step that look at all of it."""

    segment: torch.Tensor
    rows: torch.Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a step's tokens belong. The first `single` rows are one token each of different lanes in `low … high-1`.

    Attributes:
        lane: (T,) lane of each row. place: (T,) where in its lane. position: (T,) where in its sequence.
        mask: (high-low, 1, 1, longest) what each lane's single token may look at.
        spans: the prompt pieces behind the single rows.
        common: the segments that rows look at besides their lanes.
    """

    lane: torch.Tensor
    place: torch.Tensor
    position: torch.Tensor
    single: int
    low: int
    high: int
    longest: int
    mask: torch.Tensor | None
    spans: tuple[Span, ...]
    common: tuple[Common, ...]


def arrange(rows: Sequence[Row], apart: Mapping[int, Sequence[torch.Tensor]]) -> tuple[list[Row], Layout]:
    """Rows in the order that the step computes them (single tokens first, each adapter's together), and their layout.

    Args:
        rows: the step's.
        apart: each sequence's segments outside of its lane, by the sequence's key.
    """
    ordered = sorted(rows, key=lambda r: (r.count > 1, r.sequence.adapter))
    lanes = [r.sequence.lane for r in ordered for _ in range(r.count)]
    positions = [p for r in ordered for p in range(r.start, r.start + r.count)]
    places = [p - r.sequence.apart for r in ordered for p in range(r.start, r.start + r.count)]
    single = sum(r.count == 1 for r in ordered)
    spans, at = [], single
    for row in ordered[single:]:
        start = row.start - row.sequence.apart
        spans.append(Span(row.sequence.lane, start, row.count, at, _span_mask(start, row.count)))
        at += row.count
    low, high = min(lanes[:single], default=0), max(lanes[:single], default=-1) + 1
    longest = max(places[:single], default=-1) + 1
    mask = None
    if single:
        seen = torch.zeros(high - low, dtype=torch.long)
        seen[torch.tensor(lanes[:single]) - low] = torch.tensor(places[:single]) + 1
        # A lane of somebody else's looks at its first token, so that no row of the softmax is empty.
        mask = torch.where(torch.arange(longest)[None] < seen.clamp(min=1)[:, None], 0.0, float("-inf"))[:, None, None, :]
    where = (torch.tensor(lanes), torch.tensor(places), torch.tensor(positions))
    return ordered, Layout(*where, single, low, high, longest, mask, tuple(spans), _common(ordered, apart))


def _common(ordered: Sequence[Row], apart: Mapping[int, Sequence[torch.Tensor]]) -> tuple[Common, ...]:
    segments: dict[tuple[int, int], torch.Tensor] = {}
    looking: dict[tuple[int, int], list[int]] = {}
    at = 0
    for row in ordered:
        for segment in apart.get(row.sequence.key, ()):
            same = (segment.data_ptr(), segment.shape[-2])  # the same memory is the same segment, whoever cut the view
            segments[same] = segment
            looking.setdefault(same, []).extend(range(at, at + row.count))
        at += row.count
    return tuple(Common(segments[same], torch.tensor(rows)) for same, rows in looking.items())


def _span_mask(start: int, count: int) -> torch.Tensor | None:
    """What a prompt piece may look at in its lane; None when it begins it (plain causal)."""
    if not start:
        return None
    may = torch.ones(count, start + count, dtype=torch.bool).tril(start)
    return torch.zeros(may.shape).masked_fill_(~may, float("-inf"))


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
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    keys, values = lanes.data[layer]
    keys[layout.lane, :, layout.place] = key[:, :, 0]
    values[layout.lane, :, layout.place] = value[:, :, 0]
    # The query heads that share a key head are queries of it: every key is read once.
    grouped = query.view(query.shape[0], keys.shape[1], -1, query.shape[-1])  # (T, kv_heads, group, head_dim)
    out, weight = torch.empty_like(grouped), grouped.new_empty(grouped.shape[:3])
    if layout.single:
        rows = slice(0, layout.single)
        out[rows], weight[rows] = _attend_singles(grouped[rows], keys, values, layout, scaling)
    for span in layout.spans:
        rows, seen = slice(span.at, span.at + span.count), slice(0, span.start + span.count)
        out[rows], weight[rows] = _attend_span(grouped[rows], keys[span.lane, :, seen], values[span.lane, :, seen], span.mask, scaling)
    for common in layout.common:
        keys_there, values_there = common.segment[layer]
        part, part_weight = _attend_common(grouped[common.rows], keys_there, values_there, scaling)
        out[common.rows], weight[common.rows] = _merge(out[common.rows], weight[common.rows], part, part_weight)
    return out.view(query.shape).transpose(1, 2), None


Parts = tuple[torch.Tensor, torch.Tensor]  # attention (rows, kv_heads, group, head_dim), log-sum-exp of its scores


def _flash(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, causal: bool, scaling: float) -> Parts:
    """The kernel that scaled_dot_product_attention itself takes on a CPU, which also tells the log-sum-exp. All (batch, heads, …)."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # type: ignore[no-any-return]
        query, keys, values, 0.0, causal, attn_mask=mask, scale=scaling
    )


def _attend_singles(grouped: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: Layout, scaling: float) -> Parts:
    """One token a lane."""
    place = layout.lane[: layout.single] - layout.low
    spread = grouped.new_zeros(layout.high - layout.low, *grouped.shape[1:])
    spread[place] = grouped
    window = (slice(layout.low, layout.high), slice(None), slice(0, layout.longest))
    out, weight = _flash(spread, keys[window], values[window], layout.mask, False, scaling)
    return out[place], weight[place]


def _attend_span(grouped: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> Parts:
    """A prompt piece over its own lane. Key heads go as the batch, so that their query heads share them without a copy."""
    query = grouped.permute(1, 2, 0, 3)
    keys, values = (x[:, None].expand(-1, query.shape[1], -1, -1) for x in (keys, values))
    out, weight = _flash(query, keys, values, mask, mask is None, scaling)
    return out.permute(2, 0, 1, 3), weight.permute(2, 0, 1)


def _attend_common(grouped: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> Parts:
    """All rows over one segment, in one product."""
    rows, heads, group, dim = grouped.shape
    query = grouped.transpose(0, 1).reshape(1, heads, rows * group, dim)
    out, weight = _flash(query, keys[None], values[None], None, False, scaling)
    return out.reshape(heads, rows, group, dim).transpose(0, 1), weight.reshape(heads, rows, group).transpose(0, 1)


def _merge(out: torch.Tensor, weight: torch.Tensor, part: torch.Tensor, part_weight: torch.Tensor) -> Parts:
    """Attention over two sets of keys from the attention over each."""
    both = torch.logaddexp(weight, part_weight)
    return out * (weight - both).exp()[..., None] + part * (part_weight - both).exp()[..., None], both


AttentionInterface.register(ATTENTION, attend)
