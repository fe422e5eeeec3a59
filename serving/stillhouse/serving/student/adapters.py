"""A student's folder as the server needs it: checked files, what LoRA adds to each layer, and how the student sees a conversation."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.render import RenderSpec
from stillhouse.schemas.student_folder import ADAPTER, MANIFEST, RENDER, sha256_of, verify

CONFIG, WEIGHTS = ADAPTER
BASE_MANIFEST = "model.json"
# What torch.load would run code of: not even beside an adapter that is nobody's student.
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
_KEY = re.compile(r"^base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight$")


class AdapterNotFoundError(PermanentError):
    """There is no adapter where one was said to be."""


class AdapterRefusedError(PermanentError):
    """The folder is not one that this server serves: the message says why."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A checked adapter.

    Attributes:
        digest: hex, over its weights, configuration and render spec.
        render: None without a render.json.
        factors: A (rank, in), B (out, rank) and scaling by layer: scaling · B A is added to the layer's weight (out, in).
    """

    name: str
    folder: Path
    digest: str
    render: RenderSpec | None
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]


def base_identity(model: Path) -> str | None:
    """What a student's manifest calls its base model by; None for a folder that is not one of Stillhouse's base models."""
    manifest = model / BASE_MANIFEST
    return sha256_of(manifest) if manifest.is_file() else None


def read_adapter(name: str, folder: Path, layers: Mapping[str, torch.Size], base_sha256: str | None = None) -> Adapter:
    """Read and check a student's folder, or a PEFT LoRA folder without a manifest.

    Args:
        name: what it will be called.
        folder: where it is.
        layers: the weight's shape (out, in) of every linear layer of the model.
        base_sha256: the model's `base_identity`.

    Raises:
        AdapterNotFoundError: no such folder, or no adapter in it.
        AdapterRefusedError: a pickle, not what its manifest says, a kind of adapter that cannot be merged, or one for another model.
    """
    if not (folder / CONFIG).is_file():
        raise AdapterNotFoundError(f"No adapter found for {name}", where=str(folder), fix=f"Give a folder with {CONFIG} and {WEIGHTS}.")
    pickles = sorted(p.name for p in folder.rglob("*") if p.suffix in _PICKLES)
    if pickles:
        raise AdapterRefusedError(f"pickled files are not loaded: {', '.join(pickles)}", where=str(folder), fix="Save as safetensors.")
    if not (folder / WEIGHTS).is_file():
        raise AdapterNotFoundError(f"No adapter found for {name}: no {WEIGHTS}", where=str(folder))
    if (folder / MANIFEST).is_file():
        _check_student(folder, base_sha256)
    render = RenderSpec.load(folder / RENDER) if (folder / RENDER).is_file() else None
    factors = _factors(folder, _config(folder), layers)
    return Adapter(name, folder, _digest(folder), render, factors)


def _digest(folder: Path) -> str:
    files = [folder / n for n in (WEIGHTS, CONFIG, RENDER) if (folder / n).is_file()]
    return hashlib.sha256("".join(f"{p.name}:{sha256_of(p)}\n" for p in files).encode()).hexdigest()


def _check_student(folder: Path, base_sha256: str | None) -> None:
    """It is as it was registered, and its base model is the one that is served."""
    try:
        card = verify(folder)
    except PermanentError as error:
        raise AdapterRefusedError(error.what, where=error.where, fix=error.fix or "Take the student from its registry again.") from error
    if base_sha256 is not None and card.base_sha256 != base_sha256:
        raise AdapterRefusedError(
            f"{card.name} was trained on another base model: {card.base_model} {card.base_sha256[:12]}, served is {base_sha256[:12]}",
            where=str(folder),
            fix="Serve it on its own base model.",
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


def _scaling(config: dict[str, Any]) -> Callable[[str, int], float]:
    """PEFT's own rule: alpha / r, or alpha / √r with rslora; a pattern names the end of a layer's name."""
    patterns: dict[str, float] = config.get("alpha_pattern") or {}

    def factor(layer: str, rank: int) -> float:
        alpha = next((v for k, v in patterns.items() if re.search(rf"(^|\.)(?:{k})$", layer)), config["lora_alpha"])
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)

    return factor
