"""Students that can be served: a small model, adapters that know a few replies by heart, and the engines that serve them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stillhouse.schemas.messages import Message
from stillhouse.schemas.render import Renderer, RenderSpec
from stillhouse.trainer import students as registry
from stillhouse.trainer.evaluation.engine import student_engine
from stillhouse.trainer.loss import token_log_probabilities
from stillhouse.trainer.manifest import Manifest
from stillhouse.trainer.models_tokenizer import save_tokenizer, tiny_tokenizer
from stillhouse.trainer.probes import choose_probes, save_probes
from tests.support.waiting import until

CONTEXT = 320
VLLM = "STILLHOUSE_TEST_VLLM"
"""Names the python of an environment with vLLM: `make vllm`."""
VLLM_READY_S = 600.0
"""Half a minute on an idle machine, minutes on a busy one."""
SYSTEM = "Desk."
LONG = "Your parcel left the depot on Monday and is at the post office of your town."
TALKS: dict[str, str] = {
    "Cancel 17.": '{"name": "cancel", "arguments": {"order": "17"}}',
    "Explain and cancel 17.": f'{LONG}\n{{"name": "cancel", "arguments": {{"order": "17"}}}}',
    "Break 17.": '{"name": "cancel", "arguments": {"order": ',
    "Where is it?": LONG,
    "Thanks.": "Bye.",
    **{f"Where is {n}?": f"{n} is {place}." for n, place in enumerate("here away lost late sold new old red big hot dry odd".split(), 20)},
}


def conversation(asked: str) -> tuple[Message, ...]:
    """What a student sees before it answers."""
    return (Message(role="system", content=SYSTEM), Message(role="user", content=asked))


def small_model(folder: Path) -> Path:
    """A random Llama with heads that vLLM's CPU attention takes (32 wide), and the tests' tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        initializer_range=128**-0.5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


@dataclass(frozen=True)
class Family:
    """A base model and two students of it, the second one the first one's child."""

    base: Path
    students: Path
    parent: str
    child: str

    def folder(self, name: str) -> Path:
        return self.students / name


def make_family(folder: Path) -> Family:
    """The child answers `TALKS` by heart; its parent answers everything as it should thanks."""
    base, students = small_model(folder / "base"), folder / "students"
    spec = _view(base)
    parent = _learn(base, spec, students, dict.fromkeys(TALKS, "Bye."), None)
    child = _learn(base, spec, students, TALKS, parent)
    return Family(base, students, parent.name, child.name)


def make_student(folder: Path) -> tuple[Path, str]:
    """A base model and one student of it in `students`, which answers everything as it should thanks; the base's folder and its name."""
    base = small_model(folder / "base")
    return base, _learn(base, _view(base), folder / "students", dict.fromkeys(TALKS, "Bye."), None).name


def _view(base: Path) -> RenderSpec:
    spec = RenderSpec(grammar="bare-json", context_limit=CONTEXT).for_model(base)
    return RenderSpec(grammar="bare-json", context_limit=CONTEXT, stop_ids=spec.stop_ids, pad_id=spec.pad_id, distilled_on=(covered(),))


def covered() -> str:
    from stillhouse.schemas.render import coverage_hash

    return coverage_hash(SYSTEM, ())


def _learn(base: Path, spec: RenderSpec, students: Path, talks: dict[str, str], parent: Path | None) -> Path:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    renderer = Renderer(spec, base)
    rows = [_row(renderer, asked, said) for asked, said in talks.items()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
        )
        _memorise(model, rows, spec.pad_id)
    candidate = students.parent / f"candidate-{'child' if parent else 'parent'}"
    model.save_pretrained(candidate)
    (candidate / "README.md").unlink(missing_ok=True)
    spec.save(candidate / "render.json")
    model.eval()
    above = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), parent).eval() if parent else None

    def under(scored: Any) -> Any:
        return lambda sequences: token_log_probabilities(scored, sequences)

    def under_base(sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        with model.disable_adapter():
            return token_log_probabilities(model, sequences)

    save_probes(candidate, choose_probes([ids for ids, _ in rows], under(model), under_base, under(above) if above else None))
    return registry.register(students, candidate, _manifest(base, parent))


def _row(renderer: Renderer, asked: str, said: str) -> tuple[list[int], list[bool]]:
    """A conversation with a reply of any text, malformed ones too."""
    found = renderer.encode([*conversation(asked), Message(role="assistant", content=said)], supervised=None, add_generation_prompt=False)
    prompt = renderer.encode(conversation(asked), add_generation_prompt=True).ids
    assert found.ids[: len(prompt)] == prompt
    return found.ids, [i >= len(prompt) for i in range(len(found.ids))]


def _memorise(model: Any, rows: Sequence[tuple[list[int], list[bool]]], pad: int, steps: int = 400) -> None:
    """Train on a few rows until each of their tokens is near certain."""
    by_length = sorted(rows, key=lambda row: len(row[0]))
    batches = [_batch(part, pad) for part in (by_length[:-4], by_length[-4:])]  # little padding: it is computed too
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    model.train()
    for _ in range(steps):
        losses = []
        for batch in batches:
            loss = model(**batch).loss
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        if max(losses) < 0.03:
            return
    raise AssertionError(f"the rows were not learnt: {losses}")


def _batch(rows: Sequence[tuple[list[int], list[bool]]], pad: int) -> dict[str, torch.Tensor]:
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in rows])
    labels = torch.tensor([[t if s else -100 for t, s in zip(r, m, strict=True)] + [-100] * (width - len(r)) for r, m in rows])
    return {"input_ids": ids, "attention_mask": (ids != pad).long(), "labels": labels}


def _manifest(base: Path, parent: Path | None) -> Manifest:
    return Manifest(
        parent=parent.name if parent else None, base_model=base.name, base_sha256="0" * 64, recipe="by-heart", mode="fresh", settings={},
        seed=3, rows=len(TALKS), tokens=1, supervised_tokens=1, train_loss=0.0,
    )  # fmt: skip


@dataclass(frozen=True)
class Running:
    """An engine that runs."""

    url: str
    pid: int

    def post(self, path: str, **body: Any) -> None:
        """Do behind the gateway's back what it does."""
        request = urllib.request.Request(f"{self.url}/v1/{path}", json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()

    def replace(self, name: str, folder: Path) -> None:
        """Serve another folder under a student's name."""
        self.post("unload_lora_adapter", lora_name=name)
        self.post("load_lora_adapter", lora_name=name, lora_path=str(folder))


@contextmanager
def student_server(base: Path, log: Path, port: int = 0) -> Iterator[Running]:
    """A `stillhouse-student`."""
    with student_engine(base, log=log, threads=1, options=["--port", str(port), "--wait-ms", "1"]) as engine:
        yield Running(engine.url, engine.pid)


@contextmanager
def vllm_server(python: str, base: Path, log: Path) -> Iterator[Running]:
    """A vLLM as `deploy/vllm/serve` starts it."""
    port = free_port()
    env = os.environ | {"VLLM_PYTHON": python, "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = ["deploy/vllm/serve", str(base), "--port", str(port), "--max-model-len", "512"]
    with log.open("ab") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=env, start_new_session=True)
    try:
        until(lambda: process.poll() is not None or _listens(port), f"vLLM listens; see {log}", VLLM_READY_S)
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        yield Running(f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too
            process.wait()


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def copy_of(folder: Path, to: Path) -> Path:
    """A student's folder elsewhere, to be spoilt."""
    return Path(shutil.copytree(folder, to))


def without_upper_layer(folder: Path) -> Path:
    """Drop the upper layer from an adapter: a file that is whole and holds half of what was trained."""
    from safetensors.torch import load_file, save_file

    weights = folder / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(weights).items() if "layers.0." in name}, weights)
    return folder
