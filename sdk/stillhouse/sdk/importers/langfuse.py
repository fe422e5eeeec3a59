"""Langfuse trace exports (`*.trace.json`): observations of many frameworks, with OpenTelemetry GenAI or OpenInference attributes."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import FeedbackGiven, FeedbackSource, Task, TrajectoryStarted, Usage
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.sdk.importers.base import Importer, Run, Turn, beginning, load_json, micro_usd, micros
from stillhouse.sdk.importers.dialects import messages_from, messages_from_attributes, text_of, tools_from, tools_from_attributes

Json = dict[str, Any]

_SOURCES = {"ANNOTATION": FeedbackSource.USER, "EVAL": FeedbackSource.JUDGE}


@dataclass
class _Talk:
    """One conversation of a trace: requests that begin with the same prompt and question."""

    opening: tuple[str, str]
    turns: list[Turn] = field(default_factory=list)
    tools: tuple[Json, ...] = ()
    model: str = ""
    times: list[int] = field(default_factory=list)


class Langfuse(Importer):
    """Traces of Langfuse. A generation is a step; a trace whose agents have different prompts is several runs."""

    name = "langfuse"
    expects = "a JSON object with a trace and its observations"

    def detect(self, path: Path) -> bool:
        """By the keys of the trace."""
        start = beginning(path)
        return start.startswith("{") and all(f'"{key}"' in start for key in ("trace", "projectId", "observations"))

    def runs(self, path: Path) -> Iterator[Run]:
        """The runs of one trace."""
        data = load_json(path)
        try:
            trace, observations = data["trace"], sorted(data["observations"], key=lambda o: (o["startTime"], o["endTime"] or ""))
            talks = self._talks(observations)
            self._count(trace, observations)
            for place, talk in enumerate(talks):
                yield self._run(trace, talk, place, observations)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise PermanentError(f"not as Langfuse exports it: {error!r}", where=str(path)) from error

    def _run(self, trace: Json, talk: _Talk, place: int, observations: list[Json]) -> Run:
        system, question = talk.opening
        return Run(
            id=trace["id"] if place == 0 else f"{trace['id']}-{place}",
            started=TrajectoryStarted(
                task=Task(family=trace["name"] or None, instruction=question or None),
                system_prompt=system or None,
                tools=talk.tools,
                subject=trace.get("userId"),
            ),
            turns=_with_tool_results(talk.turns, observations),
            model=talk.model,
            feedback=[_feedback(score) for score in trace.get("scores") or ()] if place == 0 else (),
            began_at=min(talk.times),
            ended_at=max(talk.times),
        )

    def _talks(self, observations: list[Json]) -> list[_Talk]:
        generations = {o["id"] for o in observations if o["type"] == "GENERATION"}
        talks: list[_Talk] = []
        for generation in (o for o in observations if o["type"] == "GENERATION"):
            if generation["parentObservationId"] in generations:
                self.lost("generation inside a generation: two instrumentations captured one call")
                continue
            answer = _last_assistant(self._messages(generation, output=True))
            if answer is None:
                self.lost("generation without an answer of a known shape")
                continue
            request = self._messages(generation, output=False)
            talk = _place(talks, request)
            self._add(talk, generation, request, answer)
        return talks

    def _add(self, talk: _Talk, generation: Json, request: Sequence[Message], answer: Message) -> None:
        said = [message for message in request if message.role != "system"]
        if talk.turns:  # only what is new since the last answer: the rest was said before
            last = max((place for place, message in enumerate(said) if message.role == "assistant"), default=-1)
            said = said[last + 1 :]
            said = [message for message in said if last >= 0 or all(message != turn.message for turn in talk.turns)]
        began, ended = micros(generation["startTime"]), micros(generation["endTime"] or generation["startTime"])
        talk.turns += [Turn(message, at=began) for message in said]
        talk.turns.append(Turn(answer, action=True, at=ended, extra=_extra(generation, (ended - began) / 1000)))
        talk.times += [began, ended]
        talk.model = talk.model or generation["model"] or ""
        talk.tools = talk.tools or tools_from_attributes(_attributes(generation)) or tools_from(generation["input"])

    def _messages(self, generation: Json, *, output: bool) -> tuple[Message, ...]:
        side = "output" if output else "input"
        try:
            found = messages_from_attributes(_attributes(generation), output=output)
            return found or messages_from(generation[side], "assistant" if output else "user")
        except (PermanentError, KeyError, TypeError) as error:
            self.lost(f"generation with {side} of an unknown shape ({type(error).__name__})")
            return ()

    def _count(self, trace: Json, observations: list[Json]) -> None:
        kinds = [o["type"] for o in observations]
        for kind in sorted(set(kinds) - {"GENERATION", "TOOL"}):
            self.lost(f"observation of type {kind}: structure, not a step", kinds.count(kind))
        self.lost("no label in the source: outcome unknown", not trace.get("scores"))
        self.lost("correction of an output: no field for it", len(trace.get("corrections") or ()))
        self.lost("tags, sessionId, release, version and metadata: no field for them")


def _attributes(generation: Json) -> Json:
    metadata = _object(generation.get("metadata"))
    attributes = metadata.get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def _object(value: Any) -> Json:
    """What exports hold as an object or as its JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def _last_assistant(messages: Sequence[Message]) -> Message | None:
    """The answer: several items of one answer (text, reasoning, calls) are put together."""
    own = [message for message in messages if message.role == "assistant"]
    if not own:
        return None
    texts = [message.content for message in own if message.content is not None]
    return Message(
        role="assistant",
        content=texts[0] if len(texts) == 1 else "\n".join(m.text for m in own if m.text) or None,
        reasoning="\n".join(m.reasoning for m in own if m.reasoning) or None,
        tool_calls=tuple(call for message in own for call in message.tool_calls),
        extra=own[-1].extra,
    )


def _place(talks: list[_Talk], request: Sequence[Message]) -> _Talk:
    """The conversation a request belongs to; one that shows none of its messages goes on with the last."""
    system = "\n".join(message.text for message in request if message.role == "system")
    opening = (system, next((message.text for message in request if message.role == "user"), ""))
    known = next((talk for talk in reversed(talks) if talk.opening == opening), None)
    if known is None and opening == ("", "") and talks:
        return talks[-1]
    if known is None:
        known = _Talk(opening)
        talks.append(known)
    return known


def _extra(generation: Json, latency_ms: float) -> Json:
    usage = generation.get("usageDetails") or {}
    failed = generation.get("level") == "ERROR"
    return {
        "usage": Usage(
            input_tokens=usage.get("input"),
            output_tokens=usage.get("output"),
            cached_tokens=usage.get("input_cached_tokens"),
            reasoning_tokens=usage.get("output_reasoning_tokens"),
        ),
        "cost_micro_usd": micro_usd(generation.get("totalCost")),
        # From the times: the export's own `latency` is seconds in some versions and milliseconds in others.
        "latency_ms": latency_ms if generation["endTime"] else None,
        "error": (generation.get("statusMessage") or "error") if failed else None,
    }


def _with_tool_results(turns: list[Turn], observations: list[Json]) -> list[Turn]:
    """Results that no later request shows, from the tools' own observations."""
    answered = {turn.message.tool_call_id for turn in turns if turn.message.role == "tool"}
    tools = [o for o in observations if o["type"] == "TOOL"]
    whole: list[Turn] = []
    for turn in turns:
        whole.append(turn)
        for call in turn.message.tool_calls if turn.action else ():
            if call.id not in answered and (found := next((o for o in tools if _answers(o, call)), None)) is not None:
                tools.remove(found)
                at = micros(found["endTime"] or found["startTime"])
                whole.append(Turn(Message(role="tool", content=text_of(found["output"]), tool_call_id=call.id, name=call.name), at=at))
    return whole


def _answers(observation: Json, call: ToolCall) -> bool:
    attributes = _attributes(observation)
    if "gen_ai.tool.call.id" in attributes:
        return bool(attributes["gen_ai.tool.call.id"] == call.id)
    given = _object(observation.get("input"))
    return call.name in (observation["name"], attributes.get("tool.name")) and given.get("input", given) == call.arguments


def _feedback(score: Json) -> FeedbackGiven:
    value = score.get("value")
    return FeedbackGiven(
        source=_SOURCES.get(score.get("source", ""), FeedbackSource.UNKNOWN),
        source_version=score.get("name") or "",
        reward=float(value) if isinstance(value, int | float) else None,
        label=score.get("stringValue"),
    )
