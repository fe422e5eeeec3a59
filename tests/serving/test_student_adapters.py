"""Adapters: the same numbers as PEFT, mixed in one batch; and folders that must not be served."""

import json
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from stillhouse.schemas.render import RenderSpec
from stillhouse.serving.student.adapters import AdapterNotFoundError, AdapterRefusedError, read_adapter
from stillhouse.serving.student.engine import Engine
from stillhouse.serving.student.generation import Generation, Result
from stillhouse.serving.student.model import ServedModel
from stillhouse.serving.student.scheduler import Limits
from stillhouse.serving.student.weights import Packed, shares
from stillhouse.trainer.students import register
from tests.serving.conftest import random_adapter, random_llama
from tests.trainer.training_factory import manifest

pytestmark = pytest.mark.model
PROMPT = (5, 17, 80, 3, 44)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [random_adapter(tmp_path_factory.mktemp("adapter") / f"a{seed}", seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def shapes() -> dict[str, torch.Size]:
    return ServedModel(random_llama()).weights.shapes


def peft_says(folder: Path, max_new: int = 10) -> list[int]:
    from peft import PeftModel

    model = PeftModel.from_pretrained(random_llama(), folder)
    ids = torch.tensor([PROMPT])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new, do_sample=False, pad_token_id=0)
    return out[0, len(PROMPT) :].tolist()  # type: ignore[no-any-return]


def test_adapters_mixed_in_one_batch_say_what_peft_says(folders: list[Path]) -> None:
    model = ServedModel(random_llama())
    engine = Engine(model, Limits(wait_s=0.0), 1 << 24)
    names = ["", *(f.name for f in folders)]
    for folder in folders:
        model.weights.add(folder.name, read_adapter(folder.name, folder, model.weights.shapes).factors)
    for _ in range(2):  # the second time from the cache, which must know whose keys and values they are
        results: dict[str, Result] = {}
        for name in names:
            engine.submit(Generation(name, PROMPT, 10, frozenset(), partial(results.__setitem__, name)))
        while len(results) < len(names):
            engine.step()
        said = [results[n].tokens for n in names]
        assert said[1:] == [peft_says(f) for f in folders]
        assert len({tuple(s) for s in said}) == len(names)


def test_rslora_and_alpha_patterns_scale_as_in_peft(tmp_path: Path, folders: list[Path], shapes: dict[str, torch.Size]) -> None:
    from peft import PeftModel

    folder = tmp_path / "scaled"
    folder.mkdir()
    config = json.loads((folders[0] / "adapter_config.json").read_text())
    config |= {"use_rslora": True, "alpha_pattern": {"1.mlp.up_proj": 3, "v_proj": 5}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes((folders[0] / "adapter_model.safetensors").read_bytes())
    model = PeftModel.from_pretrained(random_llama(), folder).get_base_model()
    for layer, (a, b, scaling) in read_adapter("x", folder, shapes).factors.items():
        assert torch.allclose((b @ a) * scaling, model.get_submodule(layer).get_delta_weight("default"), atol=1e-6), layer


def test_a_packed_weight_multiplies_like_a_plain_one() -> None:
    weight, x, bias = torch.randn(33, 20), torch.randn(7, 1, 20), torch.randn(33)
    with torch.inference_mode():
        assert torch.allclose(Packed.of(weight)(x, bias), torch.nn.functional.linear(x, weight, bias), atol=1e-5)


def test_bfloat16_rounds_products_and_gives_back_what_it_was_given() -> None:
    weight, x, bias = torch.randn(33, 20), torch.randn(7, 1, 20), torch.randn(33)
    with torch.inference_mode():
        exact, rounded = torch.nn.functional.linear(x, weight, bias), Packed.of(weight, torch.bfloat16)(x, bias)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact) and torch.allclose(rounded, exact, atol=0.15)


def test_what_an_adapter_adds_is_not_rounded_with_the_base_weight(folders: list[Path]) -> None:
    """A delta below the base weight's rounding must not vanish with it."""
    model = ServedModel(random_llama(), torch.bfloat16)
    adapter = read_adapter("x", folders[0], model.weights.shapes)
    model.weights.add("x", {layer: (a, b, scaling * 1e-4) for layer, (a, b, scaling) in adapter.factors.items()})
    name, layer = next((n, linear) for n, linear in model.weights.linears.items() if n in adapter.factors)
    x, (a, b, scaling) = torch.eye(layer.shape[1])[:, None], adapter.factors[name]
    with torch.inference_mode():
        model.weights.use([""] * len(x))
        base = layer(x)
        model.weights.use(["x"] * len(x))
        assert torch.allclose(layer(x) - base, (b @ a).T[:, None] * scaling * 1e-4, atol=1e-7)


def test_an_adapter_that_was_removed_adds_nothing(folders: list[Path]) -> None:
    model = ServedModel(random_llama())
    adapter = read_adapter("x", folders[0], model.weights.shapes)
    model.weights.add("x", adapter.factors)
    assert "x" in model.weights
    model.weights.remove("x")
    assert "x" not in model.weights and not any(layer.factors for layer in model.weights.linears.values())
    with pytest.raises(KeyError):
        model.weights.remove("x")


names = st.lists(st.sampled_from(["", "a", "b"]), max_size=12)


@given(names)
def test_every_row_of_an_adapter_is_in_one_share(rows: list[str]) -> None:
    found = {i: share.adapter for share in shares(rows) for i in range(share.start, share.end)}
    assert found == {i: name for i, name in enumerate(rows) if name}
    assert all(one.end <= other.start for one, other in pairwise(shares(rows)))


def copy(source: Path, dest: Path) -> Path:
    dest.mkdir()
    for file in source.iterdir():
        (dest / file.name).write_bytes(file.read_bytes())
    return dest


def test_what_is_no_adapter_is_not_found(tmp_path: Path, folders: list[Path], shapes: dict[str, torch.Size]) -> None:
    with pytest.raises(AdapterNotFoundError):
        read_adapter("x", tmp_path / "nowhere", shapes)
    folder = copy(folders[0], tmp_path / "x")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterNotFoundError, match="safetensors"):
        read_adapter("x", folder, shapes)


def test_a_pickle_is_refused_even_beside_safetensors(tmp_path: Path, folders: list[Path], shapes: dict[str, torch.Size]) -> None:
    folder = copy(folders[0], tmp_path / "x")
    (folder / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(AdapterRefusedError, match=r"pickled files are not loaded: optimizer\.pt"):
        read_adapter("x", folder, shapes)


def student(tmp_path: Path, adapter: Path) -> Path:
    """A registered one, of the base model `0000…`."""
    candidate = copy(adapter, tmp_path / "candidate")
    (candidate / "README.md").unlink()
    (candidate / "probes.json").write_text("[]")
    RenderSpec().save(candidate / "render.json")
    return register(tmp_path / "students", candidate, manifest(base_sha256="0" * 64))


def test_a_student_is_served_as_it_was_registered_or_not_at_all(tmp_path: Path, folders: list[Path], shapes: dict[str, torch.Size]) -> None:
    own = student(tmp_path, folders[0])
    assert read_adapter("x", own, shapes, "0" * 64).factors
    renamed = copy(own, tmp_path / "student-7-00000000")
    with pytest.raises(AdapterRefusedError, match="was renamed"):
        read_adapter("x", renamed, shapes)
    (own / "notes.json").write_text("{}")
    with pytest.raises(AdapterRefusedError, match=r"not as it was registered: notes\.json"):
        read_adapter("x", own, shapes)
    (own / "notes.json").unlink()
    written = json.loads((own / "manifest.json").read_bytes())
    (own / "manifest.json").write_text(json.dumps(written | {"base_sha256": "1" * 64}))
    with pytest.raises(AdapterRefusedError, match="the manifest is not the one"):
        read_adapter("x", own, shapes)
    (own / "manifest.json").write_text("[]")
    with pytest.raises(AdapterRefusedError, match="no readable manifest"):
        read_adapter("x", own, shapes)


def test_a_student_of_another_base_model_is_refused(tmp_path: Path, folders: list[Path], shapes: dict[str, torch.Size]) -> None:
    with pytest.raises(AdapterRefusedError, match="trained on another base model: tiny 000000000000, served is 111111111111"):
        read_adapter("x", student(tmp_path, folders[0]), shapes, "1" * 64)


@pytest.mark.parametrize(
    "change", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"peft_type": "IA3"}], ids=lambda c: next(iter(c))
)
def test_what_cannot_be_merged_is_refused(
    tmp_path: Path, folders: list[Path], shapes: dict[str, torch.Size], change: dict[str, object]
) -> None:
    folder = copy(folders[0], tmp_path / "x")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(AdapterRefusedError, match="LoRA"):
        read_adapter("x", folder, shapes)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, folders: list[Path], shapes: dict[str, torch.Size]) -> None:
    folder = copy(folders[0], tmp_path / "x")
    with pytest.raises(AdapterRefusedError, match="no linear layer"):
        read_adapter("x", folder, {k: v for k, v in shapes.items() if "layers.2" not in k})
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(n for n in tensors if "lora_B" in n)
    save_file(tensors | {name: tensors[name][1:].contiguous()}, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterRefusedError, match="do not fit"):
        read_adapter("x", folder, shapes)
    (folder / "adapter_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(AdapterRefusedError, match="cannot be read"):
        read_adapter("x", folder, shapes)
