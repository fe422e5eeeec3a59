"""An agent without a framework: a loop over any OpenAI-compatible chat endpoint, with the desk's tools.

Teacher, student and base model are run by the same code.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai
import stamina
from openai import AsyncOpenAI

from stillhouse.examples.order_desk.environment import Desk, Verdict
from stillhouse.examples.order_desk.tasks import DeskTask
from stillhouse.examples.order_desk.tools import SYSTEM_PROMPT, TOOLS
from stillhouse.schemas.errors import PermanentError, RetryableError, StillhouseError
from stillhouse.schemas.events import Usage

MAX_TURNS = 12
FAILING_CALLS = 3  # in a row: after so many the agent gives up
FORMAT_ERROR_HEADER = "x-stillhouse-format-error"
# Providers refuse fields that they don't know, so the annotations stay at home.
WIRE_TOOLS: tuple[dict[str, Any], ...] = tuple({"type": t["type"], "function": t["function"]} for t in TOOLS)


@dataclass(frozen=True)
class ChatSettings:
    """How the agent talks to its model.

    Args:
        model: the model name to send.
        temperature: sampling temperature.
        max_tokens: most tokens of one answer.
        attempts: requests for one answer before the episode is given up; 1: no retry.
        backoff_s: the first wait between them; it doubles, with jitter, up to ten times as much.
        shots: OpenAI messages between the system prompt and the customer's message.
    """

    model: str
    temperature: float = 0.0
    max_tokens: int = 512
    attempts: int = 4
    backoff_s: float = 0.5
    shots: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Turn:
    """One answer of the model and what the desk said to it.

    Attributes:
        action: the assistant message in OpenAI's form.
        observation: tool messages, one a call.
        malformed: neither a call nor a reply.
        failed: calls that the desk answered with an error.
    """

    action: dict[str, Any]
    observation: tuple[dict[str, Any], ...]
    usage: Usage
    latency_s: float
    malformed: bool = False
    failed: int = 0


@dataclass
class EpisodeResult:
    """One episode, also a partial one: turns are added as they happen."""

    task: DeskTask
    messages: list[dict[str, Any]]
    turns: list[Turn] = field(default_factory=list)
    reply: str = ""
    verdict: Verdict = field(default=Verdict(success=False, reason="not finished"))

    @property
    def usage(self) -> Usage:
        """The tokens of all turns."""
        return Usage(**{name: _total(getattr(turn.usage, name) for turn in self.turns) for name in Usage.__struct_fields__})


def connect(base_url: str, api_key: str = "none", timeout_s: float = 60.0) -> AsyncOpenAI:
    """A client that doesn't retry by itself: how often an answer is asked for is `ChatSettings.attempts` alone."""
    return AsyncOpenAI(base_url=base_url, api_key=api_key, timeout=timeout_s, max_retries=0)


class ContextFullError(PermanentError):
    """The conversation no longer fits the model's context."""


async def run_episode(
    task: DeskTask,
    chat: AsyncOpenAI,
    settings: ChatSettings,
    on_turn: Callable[[Turn], None] | None = None,
    headers: Mapping[str, str] | None = None,
) -> EpisodeResult:
    """Play one task on a fresh desk until the reply, a malformed answer, three failing calls in a row, or the last turn.

    Args:
        task: the task; the model gets its instruction and nothing else of it.
        chat: the endpoint.
        settings: how to talk to it.
        on_turn: called after every turn, for whoever publishes the run.
        headers: sent with every request (`t.openai_headers()`, when a gateway takes the steps).

    Raises:
        RetryableError: no usable answer after all attempts (an error status of the server, no answer in time, a malformed one).
        PermanentError: the endpoint refused the request; asking again would not help. A conversation that outgrew the model's context is
            no error but a failed run.
    """
    desk = Desk(task)
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, *map(dict, settings.shots), {"role": "user", "content": task.instruction}]
    result, failing = EpisodeResult(task, messages), 0
    why = f"no reply after {MAX_TURNS} turns"
    for _ in range(MAX_TURNS):
        try:
            answer = await _ask(chat, settings, result.messages, headers)
        except ContextFullError:
            why = "the conversation outgrew the model's context"  # what it talked itself into is its failure, not its server's
            break
        turn = _act(desk, *answer)
        result.turns.append(turn)
        result.messages += [turn.action, *turn.observation]
        if on_turn:
            on_turn(turn)
        if not turn.observation:
            result.reply = "" if turn.malformed else str(turn.action["content"])
            why = "a malformed answer" if turn.malformed else ""
            break
        failing = failing + turn.failed if turn.failed == len(turn.observation) else 0
        if failing >= FAILING_CALLS:
            why = f"gave up after {failing} failing calls in a row"
            break
    verdict = desk.verify(replied=bool(result.reply))
    result.verdict = verdict if verdict.success or not why else Verdict(success=False, reason=f"{why}; {verdict.reason}")
    return result


def _act(desk: Desk, action: dict[str, Any], malformed: bool, usage: Usage, latency_s: float) -> Turn:
    observation: list[dict[str, Any]] = []
    failed = 0
    for call in action.get("tool_calls") or ():
        try:
            arguments = json.loads(call["function"]["arguments"])
        except ValueError:
            arguments, malformed = None, True
        result = desk.call(call["function"]["name"], arguments)
        failed += "error" in result
        observation.append({"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)})
    return Turn(action, tuple(observation), usage, latency_s, malformed, failed)


async def _ask(
    chat: AsyncOpenAI, settings: ChatSettings, messages: Sequence[Mapping[str, Any]], headers: Mapping[str, str] | None
) -> tuple[dict[str, Any], bool, Usage, float]:
    """One answer, asked for again when the server is away, busy, broken or talks nonsense."""
    retries = stamina.retry_context(
        on=RetryableError, attempts=settings.attempts, timeout=None, wait_initial=settings.backoff_s, wait_max=10 * settings.backoff_s
    )
    async for attempt in retries:
        with attempt:
            began = time.perf_counter()
            try:
                answer = await _request(chat, settings, messages, headers)
            except StillhouseError as error:
                error.what += f" (attempt {attempt.num} of {settings.attempts})"
                raise
            return *answer, time.perf_counter() - began
    raise AssertionError("stamina ends by a result or by an error")


async def _request(
    chat: AsyncOpenAI, settings: ChatSettings, messages: Sequence[Mapping[str, Any]], headers: Mapping[str, str] | None
) -> tuple[dict[str, Any], bool, Usage]:
    where = f"{settings.model} at {chat.base_url}"
    try:
        raw = await chat.chat.completions.with_raw_response.create(
            model=settings.model,
            messages=_without_reasoning(messages),  # type: ignore[arg-type]  # plain dicts in OpenAI's form
            tools=WIRE_TOOLS,  # type: ignore[arg-type]
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            extra_headers=dict(headers or {}),
        )
        body = json.loads(raw.text)
        action, usage = _action(body), _usage(body)
    except openai.APITimeoutError as error:
        raise RetryableError("the model gave no answer in time", where=where, fix="Is it overloaded? See its log.") from error
    except openai.APIConnectionError as error:
        raise RetryableError(f"the model cannot be reached: {error.__cause__ or error}", where=where, fix="Is it running?") from error
    except openai.APIStatusError as error:
        if error.status_code == 400 and ("context_length_exceeded" in str(error.body) or "maximum context length" in error.message):
            raise ContextFullError(error.message, where=where) from error
        kind = RetryableError if error.status_code >= 500 or error.status_code in (408, 409, 429) else PermanentError
        raise kind(f"the model answered {error.status_code}: {error.message}", where=where, fix="See the server's log.") from error
    except (ValueError, LookupError, TypeError) as error:
        raise RetryableError(f"the model's answer is no chat completion: {error!r}", where=where, fix="Is this an OpenAI API?") from error
    return action, _is_malformed(action, raw.headers), usage


def _without_reasoning(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What goes back to the model: its earlier thoughts do not, as with providers that hide them."""
    return [{k: v for k, v in message.items() if k != "reasoning_content"} for message in messages]


def _action(body: Any) -> dict[str, Any]:
    message = body["choices"][0]["message"]
    calls = message.get("tool_calls") or []
    action: dict[str, Any] = {"role": "assistant", "content": message.get("content")}
    if message.get("reasoning_content"):
        action["reasoning_content"] = str(message["reasoning_content"])
    if calls:
        action["tool_calls"] = [
            {
                "id": str(c["id"]),
                "type": "function",
                "function": {"name": str(c["function"]["name"]), "arguments": str(c["function"]["arguments"])},
            }
            for c in calls
        ]
    elif not isinstance(action["content"], str):
        raise ValueError("neither content nor tool calls")
    return action


def _usage(body: Any) -> Usage:
    usage = body.get("usage") or {}
    prompt, completion = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    return Usage(
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
        cached_tokens=prompt.get("cached_tokens"),
        reasoning_tokens=completion.get("reasoning_tokens"),
    )


def _is_malformed(action: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
    """Neither a call nor a reply: by the student server's own word, or by what a torn call looks like."""
    if action.get("tool_calls"):
        return False
    content = str(action["content"]).strip()
    return FORMAT_ERROR_HEADER in headers or not content or content.startswith("{")


def _total(values: Any) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
