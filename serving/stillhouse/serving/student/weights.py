"""Linear layers whose weight is packed for the CPU and swapped for another adapter's between two forwards.

A step with two adapters runs once for each with merged weights. On two cores that is cheaper than one pass in which PEFT mixes
adapters row by row (its many small products cost more than the second reading of the weights): see docs/student-server.md.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# What torch.compile's freezing does to a linear layer. M=1.9-2.2x faster than F.linear for batches of 8 to 24 rows.
_ROWS_HINT = 24
Deltas = Callable[[], Iterable[tuple[str, torch.Tensor]]]


def can_pack() -> bool:
    """Whether this torch has oneDNN's packed linear layer."""
    return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


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
        if can_pack() and weight.device.type == "cpu":
            return cls(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT), True, dtype)
        return cls(weight, False, dtype)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`x` (…, in) times the weight, plus the bias; as `x` in its precision."""
        given, x = x.dtype, x.to(self.dtype)
        bias = bias if bias is None else bias.to(self.dtype)
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "").to(given)  # type: ignore[no-any-return]
        return F.linear(x, self.weight, bias).to(given)


class SwapLinear(torch.nn.Module):
    """A linear layer with the weight of whichever adapter is in use."""

    def __init__(self, linear: torch.nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.bias = linear.bias
        self.base = linear.weight
        self.current = self.base_packed = Packed.of(linear.weight.data, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (…, in) to (…, out)."""
        return self.current(x, self.bias)


class WeightSets:
    """The packed weights of the adapters used last; others are merged again when they are needed.

    Args:
        model: a model; its linear layers are replaced.
        resident: adapters whose weights are held merged at once.
        dtype: in which the layers multiply; adapters are merged in float32 first, and everything between two layers stays float32.
    """

    def __init__(self, model: torch.nn.Module, resident: int, dtype: torch.dtype = torch.float32) -> None:
        self.merges = 0
        self.resident, self.dtype = resident, dtype
        self.linears: dict[str, SwapLinear] = {}
        self._deltas: dict[str, Deltas] = {}
        self._merged: OrderedDict[str, dict[str, Packed]] = OrderedDict()
        self._in_use = ""
        for name, module in [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]:
            parent, _, leaf = name.rpartition(".")
            self.linears[name] = SwapLinear(module, dtype)
            setattr(model.get_submodule(parent), leaf, self.linears[name])

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The weight's shape (out, in) of each linear layer."""
        return {name: layer.base.shape for name, layer in self.linears.items()}

    def __contains__(self, adapter: str) -> bool:
        """Whether an adapter is known; the empty name, the base model, always is."""
        return not adapter or adapter in self._deltas

    def add(self, adapter: str, deltas: Deltas) -> None:
        """Know an adapter: `deltas()` gives what it adds to each named layer's weight."""
        self._deltas[adapter] = deltas

    def remove(self, adapter: str) -> None:
        """Forget an adapter."""
        del self._deltas[adapter]
        self._merged.pop(adapter, None)
        if self._in_use == adapter:
            self.use("")

    def use(self, adapter: str) -> None:
        """Let every layer use an adapter's weights; the empty name is the base model.

        Raises:
            KeyError: no such adapter was added.
        """
        if adapter == self._in_use and (not adapter or adapter in self._merged):
            return
        merged = self._ready(adapter) if adapter else {}
        for name, layer in self.linears.items():
            layer.current = merged.get(name, layer.base_packed)
        self._in_use = adapter

    def _ready(self, adapter: str) -> dict[str, Packed]:
        if adapter not in self._merged:
            while len(self._merged) >= self.resident:
                self._merged.popitem(last=False)
            self.merges += 1
            self._merged[adapter] = {n: Packed.of(self.linears[n].base.data + d, self.dtype) for n, d in self._deltas[adapter]()}
        self._merged.move_to_end(adapter)
        return self._merged[adapter]
