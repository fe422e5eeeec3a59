"""Tokens a CPU-second of the student server's engine on order-desk conversations: batched or alone, with and without kept keys and values.

Conversations have the desk's lengths: prompts and observations of right ways through tasks, and as many generated tokens as
the right action has. Weights do not matter for speed, so the adapters are random. Prints one JSON object. About five minutes
on two cores; `--tiny` shows that it runs, its figures mean nothing.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads would be counted as working

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from stillhouse.examples.order_desk.gold import clean_trajectory
from stillhouse.examples.order_desk.tasks import make_tasks
from stillhouse.schemas.messages import Message
from stillhouse.schemas.render import Renderer, RenderSpec
from stillhouse.serving.student.adapters import read_adapter
from stillhouse.serving.student.engine import Engine
from stillhouse.serving.student.generation import Generation, Result
from stillhouse.serving.student.model import ServedModel
from stillhouse.serving.student.scheduler import Limits
from stillhouse.trainer import models

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Conversation = list[tuple[list[int], int]]  # turns: new tokens of the prompt, tokens to generate


def conversations(renderer: Renderer, count: int) -> list[Conversation]:
    """Turns of right ways through tasks."""
    found = []
    for task in make_tasks("train", count, seed=1):
        messages, turns, seen = [Message(role="system"), *clean_trajectory(task)], [], 0
        for i, message in enumerate(messages):
            if message.role == "assistant":
                prompt = renderer.encode(messages[:i], add_generation_prompt=True).ids
                whole = renderer.encode(messages[: i + 1]).ids
                turns.append((prompt[seen:], len(whole) - len(prompt)))
                seen = len(whole)
        found.append(turns)
    return found


def play(engine: Engine, asked: Sequence[Conversation], adapters: Sequence[str]) -> int:
    """Play conversations, each turn as soon as the one before has ended; the tokens generated."""
    left, ended, generated = len(asked), list[tuple[int, Result]](), 0
    prompts, turns = [list[int]() for _ in asked], [0 for _ in asked]

    def begin(i: int) -> None:
        new, count = asked[i][turns[i]]
        prompts[i] += new
        on_end = partial(lambda i, result: ended.append((i, result)), i)
        engine.submit(Generation(adapters[i % len(adapters)], tuple(prompts[i]), count, frozenset(), on_end))

    for i in range(len(asked)):
        begin(i)
    while left:
        engine.step()
        for i, result in ended:
            generated += len(result.tokens)
            prompts[i] += result.tokens
            turns[i] += 1
            left -= turns[i] == len(asked[i])
            if turns[i] < len(asked[i]):
                begin(i)
        ended.clear()
    return generated


def measure(work: Callable[[], int], tasks: int) -> dict[str, float]:
    """Generated tokens a CPU-second, and CPU-seconds a task."""
    cpu, wall = time.process_time(), time.monotonic()
    tokens = work()
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    return {"tokens": tokens, "cpu_s": cpu, "wall_s": wall, "tokens_per_cpu_s": tokens / cpu, "cpu_s_per_task": cpu / tasks}


def random_adapters(base: Path, folder: Path, names: Sequence[str]) -> None:
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")
        )
        model.save_pretrained(folder / name)


@torch.inference_mode()
def peft_mixed(base: Path, folder: Path, names: Sequence[str], rows: int, steps: int) -> float:
    """CPU-seconds of a step of `rows` sequences in which PEFT mixes adapters by row (no cache: attention is left out)."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder / names[0], adapter_name=names[0]).eval()
    for name in names[1:]:
        model.load_adapter(folder / name, adapter_name=name)
    ids, per_row = torch.ones(rows, 1, dtype=torch.long), [names[i % len(names)] for i in range(rows)]
    return _per_step(lambda: model(input_ids=ids, adapter_names=per_row, use_cache=False), steps)


@torch.inference_mode()
def mixed(model: ServedModel, names: Sequence[str], rows: int, steps: int) -> float:
    """CPU-seconds of the same step of the student server's model."""
    from stillhouse.serving.student.attention import arrange
    from stillhouse.serving.student.lanes import Lanes
    from stillhouse.serving.student.scheduler import Row, Running

    lanes, owners = Lanes(model.shape, rows), sorted(names[i % len(names)] for i in range(rows))
    sequences = [Running(i, name, (1,), 1, 0.0, lane=i) for i, name in enumerate(owners)]
    layout = arrange([Row(s, 0, 1, True) for s in sequences], {})[1]
    return _per_step(lambda: model.forward(owners, [1] * rows, lanes, layout, list(range(rows))), steps)


def _per_step(step: Callable[[], object], steps: int) -> float:
    step()
    began = time.process_time()
    for _ in range(steps):
        step()
    return (time.process_time() - began) / steps


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--tasks", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        base = models.tiny(folder / "tiny", seed=1) if options.tiny else models.fetch()
        spec = RenderSpec(system="replace", system_prompt="Order desk agent.", tools="drop", grammar="bare-json").for_model(base)
        asked, names = conversations(Renderer(spec, base), options.tasks), ["one", "two", "three"]
        random_adapters(base, folder, names)
        model = ServedModel.load(base)
        for name in names:
            model.weights.add(name, read_adapter(name, folder / name, model.weights.shapes).factors)
        few = max(1, options.tasks // 8)
        out: dict[str, Any] = {"threads": options.threads, "tiny": options.tiny}
        one, cache = names[:1], 2 << 30
        ways = [
            ("batched", 24, cache, options.tasks, one),
            ("batched_no_kv", 24, 0, options.tasks, one),
            ("alone", 1, cache, few, one),
            ("alone_no_kv", 1, 0, few, one),
            ("batched_three_adapters", 24, cache, options.tasks, names),
        ]
        for label, batch, kv, tasks, adapters in ways:
            engine = Engine(model, Limits(batch=batch, wait_s=0.0), kv)
            out[label] = measure(partial(play, engine, asked[:tasks], adapters), tasks)
            out[label]["prefilled"] = engine.counters.prefilled
        out["step_of_24"] = {
            f"{n}_adapters": {
                "mixed_cpu_s": mixed(model, names[:n], 24, 8),
                "peft_mixed_cpu_s": peft_mixed(base, folder, names[:n], 24, 8),
            }
            for n in (1, 2, 3)
        }
    print(json.dumps(out, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
