"""`python -m stillhouse.console.demo.noise`: a student's weights with so much seeded noise that it answers wrongly.

The noise goes to the adapter of the attention's queries and keys: what looks names and numbers up breaks before what writes JSON does.
Its size is found by bisection on a fixed set of conversations, so that every seed's noisy student is about as wrong.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from stillhouse.schemas.messages import Message
from stillhouse.schemas.render import Renderer, RenderSpec
from stillhouse.schemas.student_folder import ADAPTER, MANIFEST, RENDER, Probe, load_probes
from stillhouse.trainer.collate import Row, row_of
from stillhouse.trainer.loss import mean_loss, token_log_probabilities
from stillhouse.trainer.probes import Scorer, choose_probes, save_probes

WANTED = 0.3
"""Nats a supervised token above the student's own loss."""
NEAR = 0.1
"""Share of what is wanted that the loss may be off: the search ends there."""
ROUNDS, LOW, HIGH = 7, 1.0, 16.0
_PARTS = ("q_proj", "k_proj")


def bisected(rise: Callable[[float], float], wanted: float) -> float:
    """The size of noise, standard deviations of each tensor, at which a rise of the loss that grows with it is about as wanted."""
    low, high = LOW, HIGH
    for _ in range(ROUNDS):
        middle: float = (low * high) ** 0.5
        found = rise(middle)
        if abs(found - wanted) <= NEAR * wanted:
            return middle
        low, high = (middle, high) if found < wanted else (low, middle)
    return high


def make(base: Path, student: Path, out: Path, rows: Sequence[Row], seed: int) -> float:
    """Write the noisy candidate, with probes that are its own; the size of the noise."""
    spec = RenderSpec.load(student / RENDER)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True, use_safetensors=True)
    model = PeftModel.from_pretrained(plain, student).eval()
    weights = {name: p for name, p in model.named_parameters() if "lora_" in name and any(part in name for part in _PARTS)}
    clean = {name: p.detach().clone() for name, p in weights.items()}

    def disturb(size: float) -> None:
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name in sorted(weights):
                weights[name].copy_(clean[name] + size * clean[name].std() * torch.randn(clean[name].shape, generator=random))

    def loss(size: float) -> float:
        disturb(size)
        return mean_loss(model, rows, spec.pad_id)

    own = loss(0.0)
    size = bisected(lambda size: loss(size) - own, WANTED)
    disturb(size)
    shutil.copytree(student, out, ignore=shutil.ignore_patterns(MANIFEST))
    save_file(_named(student, weights), out / ADAPTER[1], metadata={"format": "pt"})
    save_probes(out, _probes(model, student, disturb, size))
    return size


def _named(student: Path, weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    tensors = load_file(student / ADAPTER[1])
    changed = {name.replace(".default.", "."): p.detach().contiguous() for name, p in weights.items()}
    return {name: changed.get(name, tensor) for name, tensor in tensors.items()}


def _probes(model: Any, student: Path, disturb: Callable[[float], None], size: float) -> Any:
    """The parent is the student itself, without the noise."""
    known = {probe.ids: probe for probe in load_probes(student)}

    def noisy(sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        disturb(size)
        return token_log_probabilities(model, sequences)

    def kept(score: Callable[[Probe], Sequence[float]]) -> Scorer:
        return lambda sequences: [list(score(known[tuple(ids)])) for ids in sequences]

    return choose_probes(list(known), noisy, kept(lambda probe: probe.base), kept(lambda probe: probe.student))


def conversations(base: Path, student: Path, seed: int, count: int = 6) -> list[Row]:
    """Right answers to validation tasks of the order desk, as the student sees them."""
    from stillhouse.examples.order_desk.gold import clean_trajectory
    from stillhouse.examples.order_desk.tasks import make_tasks

    renderer = Renderer(RenderSpec.load(student / RENDER), base)
    rows = []
    for task in make_tasks("validation", count, seed):
        messages = [Message(role="system", content="-"), *clean_trajectory(task)]
        rows.append(row_of(renderer.encode(messages, (), supervised=[m.role == "assistant" for m in messages]), 1.0))
    return rows


def main() -> int:
    """Make it; one line of JSON with the size of the noise."""
    parser = argparse.ArgumentParser(prog="python -m stillhouse.console.demo.noise", description="A student with noise on its weights.")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    rows = conversations(given.base, given.student, given.seed)
    print(json.dumps({"size": make(given.base, given.student, given.out, rows, given.seed)}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
