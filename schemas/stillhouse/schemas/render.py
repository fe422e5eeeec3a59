"""From messages to token ids, and from token ids to an action: the one module for training, evaluation, attestation and serving.

Needs `tokenizers` and `jinja2` (imported when a Renderer is made), neither torch nor transformers.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from stillhouse.schemas.actions import Grammar, ParsedAction, parse_action, unwritable, write_action
from stillhouse.schemas.errors import MissingExtraError, PermanentError, UsageError
from stillhouse.schemas.messages import Message
from stillhouse.schemas.render_template import END_OF_TURN, PAD, TEMPLATE, TEMPLATE_SHA256

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import Tokenizer

Tool = Mapping[str, Any]
# Marks that the template's output is cut at. Contents never reach the template, so no content can forge one.
_BEGIN, _END, _SLOT = "\x01", "\x02", "\x00"


class RenderSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How one student sees a conversation: `render.json` of its folder.

    Attributes:
        system: keep the conversation's system prompt, or replace it by `system_prompt`.
        tools: show whole tool definitions, only names and parameters, or none.
        reasoning: hide the assistant's reasoning, or write it before its content.
        context_limit: tokens a conversation and its reply may have; callers enforce it.
        template_sha256: the template that it was trained with; the Renderer refuses another.
        grammar: how the student writes calls.
        stop_ids: token ids that end a turn.
        pad_id: token id that fills up batches.
        distilled_on: `coverage_hash` of every (system prompt, tools) that it was trained on.
    """

    system: Literal["keep", "replace"] = "keep"
    system_prompt: str = ""
    tools: Literal["keep", "names", "drop"] = "keep"
    reasoning: Literal["hide", "content"] = "hide"
    context_limit: int = 2048
    template_sha256: str = TEMPLATE_SHA256
    grammar: Grammar = "tool_call"
    stop_ids: tuple[int, ...] = ()
    pad_id: int = 0
    distilled_on: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path) -> "RenderSpec":
        """The spec in a `render.json` file.

        Raises:
            PermanentError: the file is not there or is no render spec.
        """
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError) as error:
            raise PermanentError(f"no readable render spec: {error}", where=str(path)) from error

    def save(self, path: Path) -> None:
        """Write it as `render.json`."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2))

    def for_model(self, folder: Path) -> "RenderSpec":
        """The same view with the stop and pad ids of the model in `folder`.

        Raises:
            PermanentError: the model's tokenizer does not have the template's tokens.
        """
        tokenizer = _tokenizer(folder)
        ids = {token: tokenizer.token_to_id(token) for token in (END_OF_TURN, PAD)}
        if None in ids.values():
            raise PermanentError(f"the tokenizer lacks {' or '.join(t for t, i in ids.items() if i is None)}", where=str(folder))
        return msgspec.structs.replace(self, stop_ids=(ids[END_OF_TURN],), pad_id=ids[PAD])

    def covers(self, system_prompt: str | None, tools: Sequence[Tool]) -> bool:
        """Whether the student was distilled on this system prompt with these tools."""
        return coverage_hash(system_prompt, tools) in self.distilled_on


class Rendered(NamedTuple):
    """Token ids, and for each whether its loss counts."""

    ids: list[int]
    mask: list[bool]


class Renderer:
    """Renders conversations for one student.

    Args:
        spec: the student's view.
        tokenizer_dir: the folder with the model's `tokenizer.json`.

    Raises:
        PermanentError: no tokenizer there, or the spec was made with another template.
        MissingExtraError: `tokenizers` or `jinja2` is not installed.
    """

    def __init__(self, spec: RenderSpec, tokenizer_dir: Path) -> None:
        if spec.template_sha256 != TEMPLATE_SHA256:
            raise PermanentError(
                "the student was trained with another chat template",
                where=f"template_sha256 {spec.template_sha256[:12]}, this version has {TEMPLATE_SHA256[:12]}",
                fix="Serve it with the version that trained it, or train it again.",
            )
        self.spec = spec
        self._tokenizer = _tokenizer(tokenizer_dir)
        self._template = _compiled()
        special = {t.content: i for i, t in self._tokenizer.get_added_tokens_decoder().items() if t.special}
        self._special = special
        self._cut = re.compile("|".join([*map(re.escape, special), _BEGIN, _END, f"{_SLOT}[0-9]+{_SLOT}"]))

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        supervised: Sequence[bool] | None = None,
        add_generation_prompt: bool = False,
    ) -> Rendered:
        """Token ids of a conversation.

        The ids of a longer conversation begin with the ids of its beginning, generation prompt included. Special tokens in a
        content are text: no message can end its turn or forge another. What a model writes after the generation prompt is
        encoded apart from the prompt, as generation does it.

        Args:
            messages: the conversation.
            tools: OpenAI tool definitions.
            supervised: for each message whether it is a training target; None: none is.
            add_generation_prompt: end with the beginning of the assistant's turn.

        Returns:
            the ids, and a mask that is True on the targets' tokens and their end-of-turn token.

        Raises:
            UsageError: a target is not the assistant's, cannot be read back from the grammar, or the lengths differ.
        """
        self._check_targets(messages, supervised)
        flags = [bool(supervised and supervised[i]) for i, m in enumerate(messages) if m.role == "assistant"]
        roles, contents = self._view(messages, tools)
        slots = [{"role": r, "content": f"{_SLOT}{i}{_SLOT}" if c else ""} for i, (r, c) in enumerate(zip(roles, contents, strict=True))]
        text = self._template.render(messages=slots, add_generation_prompt=add_generation_prompt)
        return self._ids(text, contents, iter(flags))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def parse(self, reply: Sequence[int] | str, call_id_seed: str) -> ParsedAction:
        """The action in a reply, given as text or as token ids (read up to the first stop id)."""
        if not isinstance(reply, str):
            stop = next((i for i, token in enumerate(reply) if token in self.spec.stop_ids), len(reply))
            reply = self.decode(reply[:stop])
        return parse_action(reply, self.spec.grammar, call_id_seed=call_id_seed)

    def coverage_hash(self, system_prompt: str | None, tools: Sequence[Tool]) -> str:
        """See the function of the same name."""
        return coverage_hash(system_prompt, tools)

    def _check_targets(self, messages: Sequence[Message], supervised: Sequence[bool] | None) -> None:
        if supervised is None:
            return
        if len(supervised) != len(messages):
            raise UsageError(f"{len(messages)} messages, but {len(supervised)} marks of supervision")
        for i, (message, wanted) in enumerate(zip(messages, supervised, strict=True)):
            if wanted and message.role != "assistant":
                raise UsageError(f"a {message.role} message cannot be a training target", where=f"message {i}")
            reason = unwritable(message, self.spec.grammar, reasoning=self.spec.reasoning == "content") if wanted else None
            if reason:
                raise UsageError(f"not a training target: {reason}", where=f"message {i}")

    def _view(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[str], list[str]]:
        """Roles and texts as the student sees them, the tool list inside the system prompt."""
        spec, body = self.spec, list(messages)
        if spec.system == "replace":
            first = next((i for i, m in enumerate(body) if m.role != "system"), len(body))
            body[:first] = [Message(role="system", content=spec.system_prompt)]
        listed = _tool_list(tools, spec.tools)
        if listed and not (body and body[0].role == "system"):
            body.insert(0, Message(role="system"))
        shown = spec.reasoning == "content"
        texts = [write_action(m, spec.grammar, reasoning=shown) if m.role == "assistant" else m.text for m in body]
        if listed:
            texts[0] = "\n".join(t for t in (texts[0], listed) if t)
        return [m.role for m in body], texts

    def _ids(self, text: str, contents: Sequence[str], flags: Iterator[bool]) -> Rendered:
        """Cut the template's output at special tokens and at the beginning of each generation; encode what lies between."""
        out = Rendered([], [])
        run, target, at = "", False, 0
        for cut in [*self._cut.finditer(text), None]:
            run += text[at : cut.start() if cut else len(text)]
            mark = cut.group() if cut else ""
            at = cut.end() if cut else at
            if mark.startswith(_SLOT):
                run += contents[int(mark[1:-1])]
                continue
            self._put(out, self._encode_run(run), target)
            run = ""
            if mark == _BEGIN:
                target = next(flags)
            elif mark == _END:
                target = False
            elif mark:
                self._put(out, [self._special[mark]], target)
        return out

    def _encode_run(self, text: str) -> list[int]:
        # A lone surrogate (JSON allows one) is no text that UTF-8 can hold.
        safe = text.encode("utf-8", "replace").decode("utf-8") if text else ""
        return list(self._tokenizer.encode(safe, add_special_tokens=False).ids) if safe else []

    @staticmethod
    def _put(out: Rendered, ids: list[int], target: bool) -> None:
        out.ids.extend(ids)
        out.mask.extend([target] * len(ids))


def coverage_hash(system_prompt: str | None, tools: Sequence[Tool]) -> str:
    """Hash (hex) of a system prompt and tool definitions; neither the tools' order nor that of their keys matters."""
    functions = sorted(json.dumps(t.get("function", t), sort_keys=True, ensure_ascii=False) for t in tools)
    return hashlib.sha256(json.dumps([system_prompt or "", functions]).encode()).hexdigest()


def _tool_list(tools: Sequence[Tool], view: str) -> str:
    """The tools as the template writes them; empty when there are none to show."""
    functions = [t.get("function", t) for t in tools]
    if not functions or view == "drop":
        return ""
    if view == "names":
        return "Tools: " + ", ".join(f"{f['name']}({', '.join((f.get('parameters') or {}).get('properties') or {})})" for f in functions)
    return "\n".join(["Tools:", *(json.dumps(f, ensure_ascii=False) for f in functions)])


def _tokenizer(folder: Path) -> "Tokenizer":
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("rendering", "serving") from error
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise PermanentError("no tokenizer.json", where=str(folder), fix="Give the folder of a base model: stillhouse models fetch.")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True  # "<|im_end|>" in a text is text
    return tokenizer


def _compiled() -> "Template":
    """The template, with the generation region's ends as marks in its output."""
    try:
        from jinja2 import nodes
        from jinja2.ext import Extension
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingExtraError("rendering", "serving") from error

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            begin, end = (nodes.Output([nodes.TemplateData(mark)], lineno=line) for mark in (_BEGIN, _END))
            return [begin, *body, end]

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation])
    return environment.from_string(TEMPLATE)
