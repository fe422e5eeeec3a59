"""Linear layers whose base weight is packed for the CPU and shared by all adapters; each row of a step has its own adapter's low-rank part.

A step reads the base weights once, whatever adapters its rows are of: on a CPU, reading them is most of a step's time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# What torch.compile's freezing does to a linear layer. M=1.9-2.2x faster than F.linear for batches of 8 to 24 rows.
_ROWS_HINT = 24
Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]


@dataclass(frozen=True, slots=True)
class Share:
    """Rows `start … end-1` of a product are one adapter's."""

    adapter: str
    start: int
    end: int


def shares(adapters: Sequence[str]) -> tuple[Share, ...]:
    """The runs of equal names, one name a row; rows of the base model (the empty name) add nothing and are left out."""
    found, start = [], 0
    for end in range(1, len(adapters) + 1):
        if end == len(adapters) or adapters[end] != adapters[start]:
            if adapters[start]:
                found.append(Share(adapters[start], start, end))
            start = end
    return tuple(found)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN's packed linear layer, and this CPU what it needs for a precision."""
    if not (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight (out, in) as a linear layer uses it; packed when oneDNN is there."""

    weight: torch.Tensor
    packed: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, weight: torch.Tensor, dtype: torch.dtype = torch.float32) -> "Packed":
        """Pack a weight, to multiply in `dtype`. Packing copies."""
        weight = weight.to(dtype)
        if can_pack(dtype) and weight.device.type == "cpu":
            return cls(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT), True, dtype)
        return cls(weight, False, dtype)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`x` (…, in) times the weight, plus the bias; as `x` in its precision."""
        given, x = x.dtype, x.to(self.dtype)
        bias = bias if bias is None else bias.to(self.dtype)
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "").to(given)  # type: ignore[no-any-return]
        return F.linear(x, self.weight, bias).to(given)


class MixedLinear(torch.nn.Module):
    """A linear layer whose rows may be of different adapters.

    The low-rank part is computed beside the base's product and in float32: merged into a base weight of lower precision, what an
    adapter adds would be rounded away with it.
    """

    def __init__(self, linear: torch.nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = linear.weight.shape
        self.bias = linear.bias
        self.packed = Packed.of(linear.weight.data, dtype)
        self.factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.shares: tuple[Share, ...] = ()

    def add(self, adapter: str, a: torch.Tensor, b: torch.Tensor, scaling: float) -> None:
        """Know what an adapter adds here: scaling · B A, with A (rank, in) and B (out, rank)."""
        self.factors[adapter] = (a.T.contiguous(), (b.T * scaling).contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, 1, in) to (rows, 1, out), or without the middle."""
        out = self.packed(x, self.bias)
        for share in self.shares:
            if share.adapter in self.factors:
                a, b = self.factors[share.adapter]
                rows = slice(share.start, share.end)
                out[rows].view(-1, self.shape[0]).addmm_(x[rows].reshape(-1, self.shape[1]) @ a, b)
        return out


class WeightSets:
    """The base weights, and what each adapter adds to them.

    Args:
        model: a model; its linear layers are replaced.
        dtype: in which the base weights multiply; everything between two layers stays float32.
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> None:
        self.linears: dict[str, MixedLinear] = {}
        self._known: set[str] = set()
        for name, module in [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]:
            parent, _, leaf = name.rpartition(".")
            self.linears[name] = MixedLinear(module, dtype)
            setattr(model.get_submodule(parent), leaf, self.linears[name])

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The weight's shape (out, in) of each linear layer."""
        return {name: layer.shape for name, layer in self.linears.items()}

    def __contains__(self, adapter: str) -> bool:
        """Whether an adapter is known; the empty name, the base model, always is."""
        return not adapter or adapter in self._known

    def add(self, adapter: str, factors: Factors) -> None:
        """Know an adapter by its layers' A (rank, in), B (out, rank) and scaling."""
        self._known.add(adapter)
        for name, (a, b, scaling) in factors.items():
            self.linears[name].add(adapter, a, b, scaling)

    def remove(self, adapter: str) -> None:
        """Forget an adapter.

        Raises:
            KeyError: no such adapter was added.
        """
        self._known.remove(adapter)
        for layer in self.linears.values():
            layer.factors.pop(adapter, None)

    def use(self, adapters: Sequence[str]) -> None:
        """Say whose the rows of the next products are, one name a row; the empty name is the base model."""
        runs = shares(adapters)
        for layer in self.linears.values():
            layer.shares = runs
