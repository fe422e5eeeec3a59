"""A student's folder as the server needs it: checked files, what LoRA adds to each layer, and how the student sees a conversation."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.render import RenderSpec

WEIGHTS, CONFIG, RENDER, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "render.json", "manifest.json"
# What torch.load would run code of.
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
_KEY = re.compile(r"^base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight$")


class AdapterNotFoundError(PermanentError):
    """There is no adapter where one was said to be."""


class AdapterRefusedError(PermanentError):
    """The folder is not one that this server serves: the message says why."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A checked adapter. `digest` (hex) is over its weights, configuration and render spec; `render` is None without a render.json."""

    name: str
    folder: Path
    digest: str
    render: RenderSpec | None
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]

    def deltas(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What to add to the weight (out, in) of each layer: scaling · B A."""
        for layer, (a, b, scaling) in self.factors.items():
            yield layer, (b @ a) * scaling


def read_adapter(name: str, folder: Path, layers: Mapping[str, torch.Size]) -> Adapter:
    """Read and check a PEFT LoRA folder.

    Args:
        name: what it will be called.
        folder: where it is.
        layers: the weight's shape (out, in) of every linear layer of the model.

    Raises:
        AdapterNotFoundError: no such folder, or no adapter in it.
        AdapterRefusedError: a pickle, a wrong hash, a kind of adapter that cannot be merged, or one for another model.
    """
    if not (folder / CONFIG).is_file():
        raise AdapterNotFoundError(f"No adapter found for {name}", where=str(folder), fix=f"Give a folder with {CONFIG} and {WEIGHTS}.")
    pickles = sorted(p.name for p in folder.rglob("*") if p.suffix in _PICKLES)
    if pickles:
        raise AdapterRefusedError(f"pickled files are not loaded: {', '.join(pickles)}", where=str(folder), fix="Save as safetensors.")
    if not (folder / WEIGHTS).is_file():
        raise AdapterNotFoundError(f"No adapter found for {name}: no {WEIGHTS}", where=str(folder))
    _check_manifest(folder)
    render = RenderSpec.load(folder / RENDER) if (folder / RENDER).is_file() else None
    factors = _factors(folder, _config(folder), layers)
    return Adapter(name, folder, _digest(folder), render, factors)


def _digest(folder: Path) -> str:
    files = [folder / n for n in (WEIGHTS, CONFIG, RENDER) if (folder / n).is_file()]
    return hashlib.sha256("".join(f"{p.name}:{_sha256(p)}\n" for p in files).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _check_manifest(folder: Path) -> None:
    """Every file that the manifest lists has the listed hash, and every file that is read is listed."""
    if not (folder / MANIFEST).is_file():
        return
    try:
        listed = json.loads((folder / MANIFEST).read_bytes())["files"]
        wrong = [n for n, digest in listed.items() if not (folder / n).is_file() or _sha256(folder / n) != digest]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterRefusedError(f"the manifest cannot be read: {error}", where=str(folder / MANIFEST)) from error
    wrong += [n for n in (WEIGHTS, CONFIG, RENDER) if (folder / n).is_file() and n not in listed]
    if wrong:
        raise AdapterRefusedError(
            f"sha256 does not match the manifest: {', '.join(sorted(wrong))}",
            where=str(folder),
            fix="Take the student from its registry again.",
        )


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise AdapterRefusedError(f"{CONFIG} is not JSON: {error}", where=str(folder)) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterRefusedError("only LoRA adapters are served", where=str(folder / CONFIG))
    unmergeable = [k for k in ("use_dora", "modules_to_save", "fan_in_fan_out", "lora_bias", "alora_invocation_tokens") if config.get(k)]
    if config.get("bias", "none") != "none":
        unmergeable.append("bias")
    if unmergeable:
        raise AdapterRefusedError(f"only plain LoRA is served, without {', '.join(unmergeable)}", where=str(folder / CONFIG))
    return config


def _factors(folder: Path, config: dict[str, Any], layers: Mapping[str, torch.Size]) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise AdapterRefusedError(f"{WEIGHTS} cannot be read: {error}", where=str(folder)) from error
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.match(key)
        if not match or match["layer"] not in layers:
            raise AdapterRefusedError(
                f"the model has no linear layer for {key}", where=str(folder / WEIGHTS), fix="Load it on its own base model."
            )
        sides.setdefault(match["layer"], {})[match["side"]] = tensor.float()
    scaling = _scaling(config)
    found = {}
    for layer, pair in sides.items():
        if (
            set(pair) != {"A", "B"}
            or (pair["B"].shape[0], pair["A"].shape[1]) != tuple(layers[layer])
            or pair["A"].shape[0] != pair["B"].shape[1]
        ):
            raise AdapterRefusedError(f"the factors of {layer} do not fit the model", where=str(folder / WEIGHTS))
        found[layer] = (pair["A"], pair["B"], scaling(layer, pair["A"].shape[0]))
    if not found:
        raise AdapterRefusedError("no LoRA weights", where=str(folder / WEIGHTS))
    return found


def _fits(pair: Mapping[str, torch.Tensor], shape: torch.Size) -> bool:
    if set(pair) != {"A", "B"}:
        return False
    (rank, width), (height, same_rank) = pair["A"].shape, pair["B"].shape
    return rank == same_rank and (height, width) == tuple(shape)


def _scaling(config: dict[str, Any]) -> Callable[[str, int], float]:
    """PEFT's own rule: alpha / r, or alpha / √r with rslora; a pattern names the end of a layer's name."""
    patterns: dict[str, float] = config.get("alpha_pattern") or {}

    def factor(layer: str, rank: int) -> float:
        alpha = next((v for k, v in patterns.items() if re.search(rf"(^|\.)(?:{k})$", layer)), config["lora_alpha"])
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)

    return factor
