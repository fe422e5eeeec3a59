"""In which precision a machine multiplies matrices: one rule for training and serving."""

from collections.abc import Mapping
from typing import Any, Literal

Precision = Literal["auto", "float32", "bfloat16"]

# As `torch.cpu.get_capabilities()` names them: x86's two, and ARM's.
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


def takes_bfloat16(precision: Precision, capabilities: Mapping[str, Any]) -> bool:
    """Whether matrix products are computed in bfloat16. `auto` does where the CPU has instructions for it; without them it is slower.

    Args:
        precision: as it was set.
        capabilities: what the CPU can do, by torch's names.
    """
    if precision != "auto":
        return precision == "bfloat16"
    return any(capabilities.get(name) for name in _INSTRUCTIONS)
