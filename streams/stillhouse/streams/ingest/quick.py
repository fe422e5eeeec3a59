"""The hot path of step 2: events in the layout of the newest released schema, read without fastavro's records.

Most events are written with this release. What is not, or is odd in any way, gives None and goes to the codec, which decides:
a value is accepted here only if it is exactly what the codec makes of it (property tests say so).
"""

from collections.abc import Callable
from struct import Struct
from struct import error as StructError
from typing import Any, NamedTuple

import msgspec

from stillhouse.schemas import codec_schemas
from stillhouse.schemas.events import (
    AgentEvent,
    Assignment,
    FeedbackGiven,
    FeedbackSource,
    Outcome,
    Policy,
    PolicyRole,
    StepTaken,
    Task,
    TrajectoryEnded,
    TrajectoryStarted,
    Usage,
)
from stillhouse.schemas.keys import trajectory_key
from stillhouse.schemas.messages import Message
from stillhouse.streams.ingest.quick_code import Reader, kind_of, long_at, reader, size_at

_ROLES = (PolicyRole.UNKNOWN, PolicyRole.TEACHER, PolicyRole.STUDENT, PolicyRole.HUMAN, PolicyRole.SCRIPT)
_OUTCOMES = (Outcome.UNKNOWN, Outcome.SUCCESS, Outcome.FAILURE, Outcome.ABORTED)
_SOURCES = (FeedbackSource.UNKNOWN, FeedbackSource.VERIFIER, FeedbackSource.USER, FeedbackSource.PROXY, FeedbackSource.JUDGE)
_ENUMS: dict[str, tuple[Any, ...]] = {"PolicyRole": _ROLES, "Outcome": _OUTCOMES, "FeedbackSource": _SOURCES}

_JSON: dict[str, Callable[[Any], Any]] = {
    "state": msgspec.json.Decoder(tuple[Message, ...]).decode,
    "action": msgspec.json.Decoder(Message).decode,
    "observation": msgspec.json.Decoder(tuple[Message, ...]).decode,
    "tools": msgspec.json.Decoder(tuple[dict[str, Any], ...]).decode,
}
_KINDS = {"state": "list", "action": "json", "observation": "list", "tools": "list"}


def _started(
    task_id: str | None,
    task_family: str | None,
    task_instruction: str | None,
    system_prompt: str | None,
    tools: tuple[dict[str, Any], ...],
    attempt: int,
    parent_trajectory: str | None,
    resume_step: int | None,
    environment: str | None,
    subject: str | None,
) -> TrajectoryStarted:
    return TrajectoryStarted(
        task=Task(id=task_id, family=task_family, instruction=task_instruction),
        system_prompt=system_prompt,
        tools=tools,
        attempt=attempt,
        parent_trajectory=parent_trajectory,
        resume_step=resume_step,
        environment=environment,
        subject=subject,
    )


def _step(
    index: int | None,
    state: tuple[Message, ...],
    action: Message,
    observation: tuple[Message, ...],
    input_tokens: int | None,
    output_tokens: int | None,
    cached_tokens: int | None,
    reasoning_tokens: int | None,
    cost_micro_usd: int | None,
    latency_ms: float | None,
    error: str | None,
    logprobs: str | None,
) -> StepTaken:
    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens, cached_tokens=cached_tokens, reasoning_tokens=reasoning_tokens)
    return StepTaken(
        index=index,
        state=state,
        action=action,
        observation=observation,
        usage=usage,
        cost_micro_usd=cost_micro_usd,
        latency_ms=latency_ms,
        error=error,
        logprobs=logprobs,
    )


def _ended(steps: int | None, outcome: int, reward: float | None, verifier: str | None) -> TrajectoryEnded:
    return TrajectoryEnded(steps=steps, outcome=_OUTCOMES[outcome], reward=reward, verifier=verifier)


def _feedback(
    source: int,
    source_version: str,
    step: int | None,
    outcome: int,
    reward: float | None,
    label: str | None,
    revises: str | None,
    retracted: bool,
) -> FeedbackGiven:
    return FeedbackGiven(
        source=_SOURCES[source],
        source_version=source_version,
        step=step,
        outcome=_OUTCOMES[outcome],
        reward=reward,
        label=label,
        revises=revises,
        retracted=retracted,
    )


_MAKERS: dict[str, Callable[..., Any]] = {
    "TrajectoryStarted": _started,
    "StepTaken": _step,
    "TrajectoryEnded": _ended,
    "FeedbackGiven": _feedback,
}
_HEAD = ("event_id", "tenant", "trajectory_id", "occurred_at")
_WHO = ("agent", "policy_role", "policy_model", "policy_version")
_ASSIGNED = ("route", "unit", "experiment", "arm", "epoch")


def _who(agent: str, role: int, model: str, version: str) -> tuple[str, Policy]:
    return agent, Policy(role=_ROLES[role], model=model, version=version)


def _assignment(route: str, unit: str, experiment: str, arm: str, epoch: int) -> Assignment:
    return Assignment(route=route, unit=unit, experiment=experiment, arm=arm, epoch=epoch)


MOST_RUNS = 65_536
"""How many trajectories are remembered."""

_word = Struct("<Q").unpack_from


class Layout:
    """Readers of the parts of an `AgentEvent`, for one schema.

    Args:
        schema: the Avro schema.

    Raises:
        ValueError: it has other fields than this module knows: then there is no quick way.
    """

    def __init__(self, schema: Any) -> None:
        fields = {field["name"]: field["type"] for field in schema["fields"]}
        if tuple(fields) != (*_HEAD, *_WHO, "assignment", "traceparent", "body"):
            raise ValueError("another envelope")
        _same_symbols(schema)
        self.who = reader([(name, kind_of(fields[name])) for name in _WHO], _who, {})
        self.assignment = _record(fields["assignment"][1], _assignment)
        bodies = {2 * place: body for place, body in enumerate(fields["body"]) if body["name"] in _MAKERS}
        self.bodies: dict[int, Reader] = {branch: _record(body, _MAKERS[body["name"]]) for branch, body in bodies.items()}


def _record(schema: Any, make: Callable[..., Any]) -> Reader:
    names = [field["name"] for field in schema["fields"]]
    if tuple(names) != make.__code__.co_varnames[: make.__code__.co_argcount]:
        raise ValueError(f"other fields in {schema['name']}")
    fields = [(field["name"], _KINDS.get(field["name"]) or kind_of(field["type"])) for field in schema["fields"]]
    return reader(fields, make, {name: _JSON[name] for name in names if name in _JSON})


def _same_symbols(schema: Any) -> None:
    if isinstance(schema, list):
        for one in schema:
            _same_symbols(one)
    elif isinstance(schema, dict):
        if schema.get("type") == "enum" and tuple(schema["symbols"]) != tuple(one.value for one in _ENUMS[schema["name"]]):
            raise ValueError(f"other symbols in {schema['name']}")
        for field in schema.get("fields", ()):
            _same_symbols(field["type"])
        _same_symbols(schema["type"] if not isinstance(schema["type"], str) else [])


class _Run(NamedTuple):
    """What the events of one trajectory begin with: how it is written, and what it says."""

    head: bytes
    tenant: str
    trajectory_id: str
    key: str
    who: bytes
    agent: str
    policy: Policy


class QuickReader:
    """Reads events; remembers trajectories, of which every event says the same at its beginning.

    What it remembers is only taken where the bytes are the same, so a wrong record key does no harm.
    """

    def __init__(self) -> None:
        newest = codec_schemas.newest("AgentEvent")
        try:
            self._layout: Layout | None = Layout(newest.schema)
        except ValueError:  # a release with fields that this module does not know: everything goes to the codec
            self._layout = None
        self._begin = b"\xc3\x01" + newest.fingerprint
        self._runs: dict[bytes | None, _Run] = {}

    def read(self, data: bytes, record_key: bytes | None) -> tuple[str, AgentEvent] | None:
        """The trajectory's key and the event; None: ask the codec."""
        layout = self._layout
        if layout is None or not data.startswith(self._begin):
            return None
        try:
            at, place = _text_at(data, 10)
            event_id = data[at:place].decode()
            run = self._runs.get(record_key)
            if run is None or not data.startswith(run.head, place):
                run = self._meet(layout, data, place, record_key)
            occurred_at, place = _time_at(data, place + len(run.head))
            if not data.startswith(run.who, place):
                run = self._other(layout, data, place, run, record_key)
            place += len(run.who)
            assignment, place = _maybe(layout.assignment, data, place)
            traceparent, place = _maybe(_string, data, place)
            body, place = layout.bodies[data[place]](data, place + 1)
        except (ValueError, LookupError, StructError, msgspec.MsgspecError, RecursionError):
            return None
        if place != len(data) or not (event_id and run.tenant and run.trajectory_id):
            return None
        return run.key, AgentEvent(
            event_id=event_id,
            tenant=run.tenant,
            trajectory_id=run.trajectory_id,
            occurred_at=occurred_at,
            body=body,
            agent=run.agent,
            policy=run.policy,
            assignment=assignment,
            traceparent=traceparent,
        )

    def _meet(self, layout: Layout, data: bytes, place: int, record_key: bytes | None) -> _Run:
        """Read tenant and trajectory, and who acts, and remember them."""
        tenant, after = _string(data, place)
        trajectory_id, after = _string(data, after)
        _, who = long_at(data, after)
        run = _Run(data[place:after], tenant, trajectory_id, trajectory_key(tenant, trajectory_id), b"", "", Policy())
        return self._other(layout, data, who, run, record_key)

    def _other(self, layout: Layout, data: bytes, place: int, run: _Run, record_key: bytes | None) -> _Run:
        """Read who acts; the trajectory is the same."""
        (agent, policy), after = layout.who(data, place)
        if len(self._runs) >= MOST_RUNS:
            self._runs.clear()
        run = self._runs[record_key] = run._replace(who=data[place:after], agent=agent, policy=policy)
        return run


def _text_at(data: bytes, at: int) -> tuple[int, int]:
    size = data[at]
    if size < 0x80 and not size & 1:
        return at + 1, at + 1 + (size >> 1)
    size, at = size_at(data, at)
    return at, at + size


def _string(data: bytes, at: int) -> tuple[str, int]:
    at, end = _text_at(data, at)
    return data[at:end].decode(), end


def _maybe(read: Callable[[bytes, int], tuple[Any, int]], data: bytes, at: int) -> tuple[Any, int]:
    branch = data[at]
    if branch == 0:
        return None, at + 1
    if branch == 2:
        return read(data, at + 1)
    raise ValueError("no such branch")


def _time_at(data: bytes, at: int) -> tuple[int, int]:
    """`long_at` for integers of eight bytes, as every time from 1979 to 3111 has: their 7 bits each are put together in pairs."""
    word = _word(data, at)[0]
    if word & 0x8080808080808080 != 0x0080808080808080:
        return long_at(data, at)
    word = (word & 0x007F007F007F007F) | ((word >> 1) & 0x3F803F803F803F80)
    word = (word & 0x00003FFF00003FFF) | ((word >> 2) & 0x0FFFC0000FFFC000)
    word = (word & 0x0FFFFFFF) | ((word >> 4) & 0x00FFFFFFF0000000)
    return (word >> 1) ^ -(word & 1), at + 8
