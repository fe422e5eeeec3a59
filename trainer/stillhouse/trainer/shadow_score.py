"""Shadow, the pure part: which teacher steps are asked, how one answer is judged, and what all of them say. See docs/shadow.md."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from statistics import fmean, median
from typing import Any, NamedTuple

import msgspec

from stillhouse.schemas.events import Outcome, PolicyRole
from stillhouse.schemas.ledger import chance
from stillhouse.schemas.messages import Message
from stillhouse.schemas.render import RenderSpec
from stillhouse.schemas.trajectory import Status, Trajectory
from stillhouse.trainer.evaluation.stats import Rate, rate

_WHOLE = (Status.ENDED, Status.UNENDED, Status.FAILED)  # `incomplete` has gaps: the state at a step is not known


class Fallback(StrEnum):
    """Why the teacher would have had to answer."""

    UNCOVERED = "uncovered"
    CONTEXT_FULL = "context_full"
    FORMAT = "format"
    TIMEOUT = "timeout"


class Point(NamedTuple):
    """A teacher's step: the conversation that it answered, and its answer. `unit` is the task (or run) that it is a part of."""

    key: str
    step: int
    unit: str
    family: str
    succeeded: bool
    state: tuple[Message, ...]
    system_prompt: str | None
    tools: tuple[dict[str, Any], ...]
    answer: Message
    cost_micro_usd: int | None


class Reply(NamedTuple):
    """What the student answered. `full`: it was cut off at the end of its context."""

    message: Message
    malformed: bool
    full: bool


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One step, judged. `agrees` is None where the student was not asked, or did not answer.

    Attributes:
        key: of the trajectory.
        step: index of its step.
        unit: the task (or run): steps of one are no independent observations.
        family: of the task.
        succeeded: whether the teacher's run did.
        calls: whether the teacher called a tool; else it replied.
        asked: whether the student was asked.
        fallback: why the teacher would have answered.
        agrees: whether the student did the same.
        same_tool: whether it called the same tools, whatever their arguments.
        latency_s: of its answer.
        teacher_micro_usd: what the teacher's step cost.
    """

    key: str
    step: int
    unit: str
    family: str
    succeeded: bool
    calls: bool
    asked: bool
    fallback: Fallback | None = None
    agrees: bool | None = None
    same_tool: bool | None = None
    latency_s: float | None = None
    teacher_micro_usd: int | None = None


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What some steps say: a rate has the mean of each task, and the number of tasks as its sample size.

    Fallbacks are of all steps, everything else of the steps that were asked.

    Attributes:
        steps: how many.
        asked: how many of them the student was asked.
        fallbacks: the teacher would have answered; `reasons` count why.
        format_errors: the answer was no action of the student's grammar.
        agreement: the teacher's action; a malformed or cut answer is none.
        on_successes: the same, in runs that succeeded.
        calls: the same, where the teacher called a tool.
        same_tool: there, the same tools with whatever arguments.
        replies: the same, where the teacher replied: word for word.
    """

    steps: int
    asked: int
    fallbacks: Rate
    reasons: dict[str, int]
    format_errors: Rate
    agreement: Rate
    on_successes: Rate
    calls: Rate
    same_tool: Rate
    replies: Rate
    latency_median_s: float | None
    latency_p95_s: float | None
    teacher_usd_per_step: float | None


def points(made: Trajectory) -> list[Point]:
    """The steps of a trajectory that a teacher took, each with the state that it answered; none where that is not known."""
    if made.headless or made.status not in _WHOLE:
        return []
    brings = next((m for m in made.steps[0].state if m.role == "system"), None) if made.steps else None
    prompt = brings.text if brings else made.system_prompt
    found = []
    family = made.task.family or ""
    unit = "/".join((made.tenant, family, made.task.id)) if made.task.id else made.key
    for place, step in enumerate(made.steps):
        if step.policy.role is PolicyRole.TEACHER:
            seen = tuple(msgspec.structs.replace(m, reasoning=None) for m in made.before(place))  # as a client sends it
            found.append(
                Point(
                    made.key, step.index, unit, family, made.outcome is Outcome.SUCCESS,
                    seen, prompt, made.tools, step.action, step.cost_micro_usd,
                )
            )  # fmt: skip
    return found


def order(keys: Iterable[str], seed: int) -> list[str]:
    """Trajectories in the order in which they are drawn: by a hash, so that a new one moves no other."""
    return sorted(keys, key=lambda key: (chance(seed, "shadow", key), key))


def sample(found: Mapping[str, Sequence[Point]], steps: int, seed: int) -> list[Point]:
    """Draw steps: one of each trajectory, then a second of each, until there are enough. Any order of `found` gives the same."""
    keys = order(found, seed)
    lists = {key: sorted(found[key], key=lambda p: (chance(seed, "shadow", key, p.step), p.step)) for key in keys}
    rounds = max(map(len, lists.values()), default=0)
    return [lists[key][turn] for turn in range(rounds) for key in keys if turn < len(lists[key])][:steps]


def covered(point: Point, spec: RenderSpec) -> bool:
    """Whether the gateway would give the student this step: distilled on its system prompt and tools, and all of it is text."""
    only_text = all(part.get("type") == "text" for m in point.state if isinstance(m.content, list) for part in m.content)
    return only_text and spec.covers(point.system_prompt, point.tools)


def unasked(point: Point, why: Fallback) -> Score:
    """A step that the teacher would have answered, the student unasked."""
    return _score(point, asked=False, fallback=why)


def timed_out(point: Point, latency_s: float) -> Score:
    """A step that the student did not answer in time."""
    return _score(point, asked=True, fallback=Fallback.TIMEOUT, agrees=False, latency_s=latency_s)


def judge(point: Point, reply: Reply, latency_s: float) -> Score:
    """The student's answer beside the teacher's."""
    why = Fallback.CONTEXT_FULL if reply.full else Fallback.FORMAT if reply.malformed else None
    agrees, tools = why is None and same_action(point.answer, reply.message), why is None and _tools(point.answer) == _tools(reply.message)
    return _score(point, asked=True, fallback=why, agrees=agrees, same_tool=tools, latency_s=latency_s)


def same_action(one: Message, other: Message) -> bool:
    """The same calls with the same arguments in the same order; without calls, the same words, however spaced."""
    if one.tool_calls or other.tool_calls:
        return [(c.name, c.arguments, c.raw_arguments) for c in one.tool_calls] == [
            (c.name, c.arguments, c.raw_arguments) for c in other.tool_calls
        ]
    return one.text.split() == other.text.split()


def by_family(scores: Sequence[Score]) -> dict[str, Figures]:
    """The figures of each family."""
    return {family: figures([s for s in scores if s.family == family]) for family in sorted({s.family for s in scores})}


def figures(scores: Sequence[Score]) -> Figures:
    """What some steps say."""
    answered = [s for s in scores if s.asked]
    times = sorted(s.latency_s for s in answered if s.latency_s is not None)
    costs = [s.teacher_micro_usd for s in scores if s.teacher_micro_usd is not None]
    whys = [s.fallback for s in scores if s.fallback]
    return Figures(
        steps=len(scores),
        asked=len(answered),
        fallbacks=_rate((s.unit, s.fallback is not None) for s in scores),
        reasons={why.value: whys.count(why) for why in Fallback if why in whys},
        format_errors=_rate((s.unit, s.fallback is Fallback.FORMAT) for s in answered),
        agreement=_rate((s.unit, s.agrees) for s in answered),
        on_successes=_rate((s.unit, s.agrees) for s in answered if s.succeeded),
        calls=_rate((s.unit, s.agrees) for s in answered if s.calls),
        same_tool=_rate((s.unit, s.same_tool) for s in answered if s.calls),
        replies=_rate((s.unit, s.agrees) for s in answered if not s.calls),
        latency_median_s=median(times) if times else None,
        latency_p95_s=times[-(-len(times) * 95 // 100) - 1] if times else None,
        teacher_usd_per_step=fmean(costs) / 1e6 if costs else None,
    )


def _rate(observed: Iterable[tuple[str, bool | None]]) -> Rate:
    units: dict[str, list[float]] = {}
    for unit, value in observed:
        units.setdefault(unit, []).append(float(bool(value)))
    return rate([fmean(values) for values in units.values()])


def _tools(message: Message) -> list[str]:
    return [c.name for c in message.tool_calls]


def _score(point: Point, **found: Any) -> Score:
    return Score(
        key=point.key, step=point.step, unit=point.unit, family=point.family, succeeded=point.succeeded,
        calls=bool(point.answer.tool_calls), teacher_micro_usd=point.cost_micro_usd, **found,
    )  # fmt: skip
