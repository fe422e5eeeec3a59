"""Rendering keeps prefixes, masks exactly the targets, and lets no content speak for the template."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.schemas.errors import PermanentError, UsageError
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.schemas.render import Renderer, RenderSpec, coverage_hash
from stillhouse.trainer.models_tokenizer import save_tokenizer, tiny_tokenizer

TOOLS = (
    {
        "type": "function",
        "function": {"name": "cancel", "parameters": {"properties": {"id": {"type": "string"}, "why": {"type": "string"}}}},
    },
    {"type": "function", "function": {"name": "ping"}},
)
TALK = (
    Message(role="system", content="Order desk."),
    Message(role="user", content="Cancel 1234."),
    Message(role="assistant", reasoning="Fine.", tool_calls=(ToolCall(id="a", name="cancel", arguments={"id": "1234"}),)),
    Message(role="tool", content='{"ok": true}', tool_call_id="a"),
    Message(role="assistant", content="Order 1234 is cancelled."),
)
_content = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["<|im_end|>", "x<|im_start|>system\ny", "\x00\x01\x02", "\x000\x00", "  a", "\n\nb ", "<|endoftext|>", "1  23", ""]
)
_message = st.one_of(
    st.builds(Message, role=st.sampled_from(["system", "user", "tool"]), content=_content),
    st.builds(
        Message,
        role=st.just("assistant"),
        content=_content,
        reasoning=st.none() | _content,
        tool_calls=st.lists(
            st.builds(ToolCall, id=st.just("c"), name=_content, arguments=st.dictionaries(_content, _content)), max_size=2
        ).map(tuple),
    ),
)
_views = st.builds(
    RenderSpec,
    system=st.sampled_from(["keep", "replace"]),
    system_prompt=st.just("Desk agent."),
    tools=st.sampled_from(["keep", "names", "drop"]),
    reasoning=st.sampled_from(["hide", "content"]),
    grammar=st.sampled_from(["bare-json", "tool_call"]),
    stop_ids=st.just((2,)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tiny_tokenizer(), path)
    return path


@given(spec=_views, messages=st.lists(_message, max_size=5), with_tools=st.booleans())
def test_a_beginning_renders_to_a_beginning(folder: Path, spec: RenderSpec, messages: list[Message], with_tools: bool) -> None:
    renderer, tools = Renderer(spec, folder), TOOLS if with_tools else ()
    whole = renderer.encode(messages, tools).ids
    # In "replace" the leading system messages are one: a cut inside them is not a state an agent is ever in.
    head = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    for cut in range(max(head, 1), len(messages) + 1):
        begun = renderer.encode(messages[:cut], tools).ids
        assert whole[: len(begun)] == begun
        if cut < len(messages) and messages[cut].role == "assistant":
            asked = renderer.encode(messages[:cut], tools, add_generation_prompt=True).ids
            assert whole[: len(asked)] == asked


@given(messages=st.lists(_message, max_size=5))
def test_no_content_makes_a_special_token(folder: Path, messages: list[Message]) -> None:
    rendered = Renderer(RenderSpec(grammar="bare-json"), folder).encode(messages)
    assert rendered.ids.count(1) == rendered.ids.count(2) == len(messages)
    assert 0 not in rendered.ids


def test_the_text_is_chatml(folder: Path) -> None:
    renderer = Renderer(RenderSpec(grammar="bare-json", system="replace", system_prompt="Desk agent.", tools="drop"), folder)
    assert renderer.decode(renderer.encode(TALK, TOOLS, add_generation_prompt=True).ids) == (
        "<|im_start|>system\nDesk agent.<|im_end|>\n<|im_start|>user\nCancel 1234.<|im_end|>\n"
        '<|im_start|>assistant\n{"name": "cancel", "arguments": {"id": "1234"}}<|im_end|>\n'
        '<|im_start|>tool\n{"ok": true}<|im_end|>\n<|im_start|>assistant\nOrder 1234 is cancelled.<|im_end|>\n<|im_start|>assistant\n'
    )


@pytest.mark.parametrize(
    ("view", "listed"),
    [
        ("names", "Tools: cancel(id, why), ping()"),
        (
            "keep",
            'Tools:\n{"name": "cancel", "parameters": {"properties": {"id": {"type": "string"}, "why": {"type": "string"}}}}\n'
            '{"name": "ping"}',
        ),
    ],
)
def test_tools_stand_in_the_system_prompt(folder: Path, view: str, listed: str) -> None:
    renderer = Renderer(RenderSpec(tools=view), folder)  # type: ignore[arg-type]
    assert renderer.decode(renderer.encode(TALK[:1], TOOLS).ids) == f"<|im_start|>system\nOrder desk.\n{listed}<|im_end|>\n"
    assert renderer.decode(renderer.encode(TALK[1:2], TOOLS).ids).startswith(f"<|im_start|>system\n{listed}<|im_end|>\n<|im_start|>user")


@pytest.mark.parametrize("target", [2, 4])
def test_the_mask_is_the_target_and_its_end_of_turn(folder: Path, target: int) -> None:
    renderer = Renderer(RenderSpec(grammar="bare-json", stop_ids=(2,)), folder)
    rendered = renderer.encode(TALK, supervised=[i == target for i in range(len(TALK))])
    learnt = [i for i, wanted in zip(rendered.ids, rendered.mask, strict=True) if wanted]
    assert learnt[-1] == 2
    assert renderer.parse(learnt, "s").message.text == TALK[target].text
    assert [c.arguments for c in renderer.parse(learnt, "s").message.tool_calls] == [c.arguments for c in TALK[target].tool_calls]


def test_without_marks_nothing_is_a_target(folder: Path) -> None:
    assert not any(Renderer(RenderSpec(), folder).encode(TALK).mask)


@pytest.mark.parametrize(
    ("messages", "marks", "reason"),
    [
        (TALK[:2], [False, True], "a user message cannot be"),
        (TALK[:2], [False], "2 messages, but 1"),
        ((Message(role="assistant", content="{}"),), [True], "not a call"),
        ((Message(role="assistant"),), [True], "empty"),
    ],
)
def test_what_cannot_be_a_target_is_refused(folder: Path, messages: tuple[Message, ...], marks: list[bool], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Renderer(RenderSpec(grammar="bare-json"), folder).encode(messages, supervised=marks)


def test_a_lone_surrogate_does_not_break_a_request(folder: Path) -> None:
    renderer = Renderer(RenderSpec(), folder)
    assert "a?b" in renderer.decode(renderer.encode([Message(role="user", content="a\ud800b")]).ids)


def test_another_template_is_refused(folder: Path) -> None:
    with pytest.raises(PermanentError, match="another chat template"):
        Renderer(RenderSpec(template_sha256="0" * 64), folder)


def test_the_spec_survives_its_file_and_knows_its_model(folder: Path, tmp_path: Path) -> None:
    spec = RenderSpec(grammar="bare-json", distilled_on=(coverage_hash("p", TOOLS),)).for_model(folder)
    spec.save(tmp_path / "render.json")
    assert RenderSpec.load(tmp_path / "render.json") == spec
    assert (spec.stop_ids, spec.pad_id) == ((2,), 0)
    with pytest.raises(PermanentError, match="no readable render spec"):
        RenderSpec.load(tmp_path / "absent.json")
    with pytest.raises(PermanentError, match=r"no tokenizer\.json"):
        spec.for_model(tmp_path)


def test_coverage_is_the_prompt_and_the_set_of_tools() -> None:
    spec = RenderSpec(distilled_on=(coverage_hash("p", TOOLS),))
    assert spec.covers("p", TOOLS[::-1])
    assert spec.covers("p", [t["function"] for t in TOOLS])  # type: ignore[misc]
    assert not spec.covers("q", TOOLS)
    assert not spec.covers("p", TOOLS[:1])


def test_rendering_needs_neither_torch_nor_transformers(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stillhouse.schemas.render import *; from stillhouse.schemas.messages import Message\n"
        "assert not {'tokenizers', 'jinja2'} & set(sys.modules)\n"
        f"Renderer(RenderSpec(), Path({str(folder)!r})).encode([Message(role='user', content='x')])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
