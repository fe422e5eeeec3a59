"""What every importer shares: runs of a source become events with ids that a second import repeats, and nothing is lost silently."""

import json
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from stillhouse.schemas.errors import PermanentError, UsageError
from stillhouse.schemas.events import (
    AgentEvent,
    Body,
    FeedbackGiven,
    Outcome,
    Policy,
    PolicyRole,
    StepTaken,
    TrajectoryEnded,
    TrajectoryStarted,
)
from stillhouse.schemas.messages import Message

NAMESPACE = uuid.UUID("7c1e54b8-5a0e-5a5c-9d6e-2f3b8f1f6a10")
_SECOND = 1_000_000
_SNIFF_BYTES = 64 * 1024

NO_TIMES = "no timestamp in the source: occurred_at is the event's place in its run, in seconds since 1970"


@dataclass(frozen=True)
class Turn:
    """One message of a run with what the source says about it. `action`: a step of the policy (a scripted greeting is none).

    `at` are microseconds since the epoch, None without a timestamp; `extra` are further fields of `StepTaken`.
    """

    message: Message
    action: bool = False
    at: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run of an agent as its source tells it.

    Args:
        id: what the source calls the run, or a hash of its record: the same at every import.
        started: task, tools and the rest of how it began.
        turns: its messages in order, without the system prompt.
        model: of the agent; empty when the source does not say.
        feedback: what the source's own verifier said of steps.
    """

    id: str
    started: TrajectoryStarted
    turns: Sequence[Turn]
    model: str = ""
    role: PolicyRole = PolicyRole.TEACHER
    outcome: Outcome = Outcome.UNKNOWN
    reward: float | None = None
    verifier: str | None = None
    feedback: Sequence[FeedbackGiven] = ()
    began_at: int | None = None
    ended_at: int | None = None


class Importer(ABC):
    """Reads one format. `report` counts, by reason, what the last `read` could not carry."""

    name: ClassVar[str]
    expects: ClassVar[str]

    def __init__(self) -> None:
        self.report: Counter[str] = Counter()

    @abstractmethod
    def detect(self, path: Path) -> bool:
        """Whether a file looks like this format, by its beginning."""

    @abstractmethod
    def runs(self, path: Path) -> Iterator[Run]:
        """The runs of a file.

        Raises:
            PermanentError: a record is not as the format says.
        """

    def read(self, path: Path, *, tenant: str = "default", role: PolicyRole | None = None, model: str = "") -> Iterator[AgentEvent]:
        """The events of a file (or of all files of this format in a folder), in order, the same at every call.

        Args:
            path: the file or folder.
            tenant: whose runs they are.
            role: who acted, when the importer's own word (teacher, unless the source says otherwise) is wrong.
            model: of the agent, for a source that does not say.

        Raises:
            PermanentError: it is another format; the message says which importer fits, if one does.
        """
        self.report.clear()
        seen: Counter[str] = Counter()
        for file in self._files(path):
            for run in self.runs(file):
                seen[run.id] += 1
                if seen[run.id] > 1:  # the same record twice is two runs, and stays two at the next import
                    run = replace(run, id=f"{run.id}#{seen[run.id]}")
                yield from self._events(replace(run, role=role or run.role, model=run.model or model), tenant)

    def _files(self, path: Path) -> list[Path]:
        if not path.is_dir():
            if not self.detect(path):
                raise wrong_file(self, path)
            return [path]
        files = sorted(file for file in path.rglob("*") if file.is_file())
        ours = [file for file in files if self.detect(file)]
        if not ours:
            raise PermanentError(f"no file for {self.name} in the folder: expected {self.expects}", where=str(path))
        self.lost("file of another format in the folder", len(files) - len(ours))
        return ours

    def lost(self, reason: str, count: int = 1) -> None:
        """Count something that events have no place for."""
        if count:
            self.report[reason] += count

    def _events(self, run: Run, tenant: str) -> Iterator[AgentEvent]:
        steps = list(_steps(run.turns))
        if any(turn.action and turn.at is None for turn in run.turns):
            self.lost(NO_TIMES)
        if not run.model:
            self.lost("no model name in the source")
        policy, trajectory_id = Policy(role=run.role, model=run.model), f"{self.name}-{run.id}"
        end = TrajectoryEnded(steps=len(steps), outcome=run.outcome, reward=run.reward, verifier=run.verifier)
        bodies: list[tuple[Body, int | None]] = [(run.started, run.began_at), *steps, (end, run.ended_at)]
        latest = 0
        for place, (body, at) in enumerate(bodies + [(word, run.ended_at) for word in run.feedback]):
            # Clocks of a source may step back; an event never comes before the one it follows.
            latest = max(latest + (at is None), at if at is not None else (place + 1) * _SECOND)
            yield AgentEvent(
                event_id=event_id(self.name, run.id, type(body).__name__, place),
                tenant=tenant,
                trajectory_id=trajectory_id,
                occurred_at=latest,
                agent=self.name,
                policy=policy,
                body=body,
            )


def _steps(turns: Sequence[Turn]) -> Iterator[tuple[Body, int | None]]:
    """Cut a conversation into steps: tool messages answer the step before, everything else is the state of the next one.

    What follows the last action is its observation, there is no next one.
    """
    actions = [place for place, turn in enumerate(turns) if turn.action]
    state = [turn.message for turn in turns[: actions[0] if actions else 0]]
    for index, place in enumerate(actions):
        after = [turn.message for turn in turns[place + 1 : actions[index + 1] if index + 1 < len(actions) else len(turns)]]
        answered = len(after)
        if index + 1 < len(actions):
            answered = next((k for k, message in enumerate(after) if message.role != "tool"), len(after))
        turn = turns[place]
        yield (
            StepTaken(index=index, state=tuple(state), action=turn.message, observation=tuple(after[:answered]), **turn.extra),
            turn.at,
        )
        state = after[answered:]


def event_id(source: str, run: str, kind: str, place: int) -> str:
    """A uuid5 of source, run, kind and position: an import run twice is a duplicate by construction."""
    return str(uuid.uuid5(NAMESPACE, json.dumps([source, run, kind, place])))


def micros(time: str | float) -> int:
    """A time as microseconds since the epoch: seconds, or ISO 8601 (UTC when it names no zone).

    Raises:
        ValueError: it is neither.
    """
    if isinstance(time, str):
        parsed = datetime.fromisoformat(time)
        delta = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
        return delta // timedelta(microseconds=1)
    return round(time * _SECOND)


def micro_usd(dollars: float | None) -> int | None:
    """A cost as events carry it."""
    return None if dollars is None else round(dollars * 1_000_000)


def record_hash(record: Any) -> str:
    """A name for a run that its source gives none: the hash of its record, wherever the file lies."""
    text = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def beginning(path: Path) -> str:
    """The first 64 KiB of a file as text, empty when it cannot be read as such."""
    try:
        with path.open("rb") as file:
            return file.read(_SNIFF_BYTES).decode("utf-8", "ignore").lstrip("\ufeff \r\n\t")
    except OSError as error:
        raise UsageError(f"the file cannot be read: {error.strerror}", where=str(path)) from error


def load_json(path: Path) -> Any:
    """A whole JSON file.

    Raises:
        PermanentError: it is none.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PermanentError(f"not a whole JSON file: {error}", where=str(path)) from error


def wrong_file(importer: Importer, path: Path) -> PermanentError:
    """An error that says what was found, what was expected and which importer fits."""
    from stillhouse.sdk.importers import detect

    start = beginning(path)[:60]
    fits = detect(path)
    fix = f"It looks like {fits}: import it with that." if fits else "No importer knows this format; see docs/importers.md."
    return PermanentError(f"not a file for {importer.name}: expected {importer.expects}, found {start!r}", where=str(path), fix=fix)
