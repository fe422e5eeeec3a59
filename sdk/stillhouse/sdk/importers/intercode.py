"""InterCode result files (bash): actions as text with an observation and a reward for each, in a chat, ReAct or planning style."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import FeedbackGiven, FeedbackSource, Outcome, Task, TrajectoryStarted
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.sdk.importers.base import Importer, Run, Turn, beginning, load_json, record_hash

Json = dict[str, Any]

_MODEL = re.compile(r"ic_(?P<env>[a-z]+)_multiturn_(?P<model>.+)_\d+_turns")
_EXECUTE = re.compile(r"execute\[(?P<command>.*)\]\s*", re.DOTALL)


class Intercode(Importer):
    """Runs of InterCode. A bash action becomes a call of `bash` with the very text that was run, code fences included.

    Success is a best reward of 1; each step's reward becomes a verifier's feedback on that step.
    """

    name = "intercode"
    expects = "a JSON object of runs by number, each with query, turn_history (actions, observations, rewards) and summary"

    def detect(self, path: Path) -> bool:
        """By the keys of the first run."""
        start = beginning(path)
        return start.startswith("{") and all(f'"{key}"' in start for key in ("environment", "query", "turn_history", "actions"))

    def runs(self, path: Path) -> Iterator[Run]:
        """One run for each entry."""
        data = load_json(path)
        entries = data.get("logs", data)
        named = _MODEL.match(path.stem)
        model = named["model"] if named else path.parent.name
        for key, record in entries.items():
            try:
                yield self._run(record, model, react="thoughts" in record["turn_history"])
            except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
                raise PermanentError(f"a run is not as InterCode writes it: {error!r}", where=f"{path}[{key}]") from error

    def _run(self, record: Json, model: str, react: bool) -> Run:
        history = record["turn_history"]
        family, task_id = record["environment"], f"{Path(record['dataset']).stem}/{record['task_id']}"
        best = float((record.get("summary") or {}).get("max_reward", max(history["rewards"], default=0.0)))
        self._count(record)
        return Run(
            id=f"{record['task_id']}-{record_hash([model, record])}",
            started=TrajectoryStarted(task=Task(id=task_id, family=family, instruction=record["query"]), environment=family),
            turns=[Turn(Message(role="user", content=record["query"])), *self._turns(history, react)],
            model=model,
            outcome=Outcome.SUCCESS if best == 1.0 else Outcome.FAILURE,
            reward=best,
            verifier="intercode",
            feedback=[
                FeedbackGiven(source=FeedbackSource.VERIFIER, source_version="intercode", step=step, reward=float(reward))
                for step, reward in enumerate(history["rewards"])
            ],
        )

    def _turns(self, history: Json, react: bool) -> Iterator[Turn]:
        actions, observations = history["actions"], history["observations"]
        thoughts = history.get("thoughts") or ()
        # With lists of different length nobody can say which observation answered which action after the gap.
        aligned = len(observations) == len(actions) == len(history["valid_action"])
        if not aligned:
            self.lost("observations that cannot be assigned: their list is not as long as the actions'", len(observations))
        for place, text in enumerate(actions):
            call = self._call(text, f"call_{place}", react)
            valid = not aligned or history["valid_action"][place]
            yield Turn(
                Message(
                    role="assistant",
                    content=None if call else text,
                    reasoning=thoughts[place] if place < len(thoughts) else None,
                    tool_calls=(call,) if call else (),
                ),
                action=True,
                extra={} if valid else {"error": "the environment calls the action invalid"},
            )
            if aligned:
                answered = str(observations[place])
                yield Turn(Message(role="tool", content=answered, tool_call_id=call.id) if call else Message(role="user", content=answered))

    def _call(self, text: str, call_id: str, react: bool) -> ToolCall | None:
        if text.strip() == "submit":
            return ToolCall(id=call_id, name="submit")
        if not react:
            return ToolCall(id=call_id, name="bash", arguments={"command": text})
        if found := _EXECUTE.fullmatch(text):
            return ToolCall(id=call_id, name="bash", arguments={"command": found["command"]})
        self.lost("ReAct action that is neither execute[…] nor submit, kept as text")
        return None

    def _count(self, record: Json) -> None:
        history = record["turn_history"]
        self.lost("system prompt and tools are not in the source")
        self.lost("turn_history.steps: the plan, which belongs to no single action", len(history.get("steps") or ()))
        self.lost("summary: turns and the index of the best reward", bool(record.get("summary")))
        self.lost("info: how the last reward was made up", "info" in record)
        known = {"environment", "dataset", "task_id", "query", "turn_history", "summary", "info"}
        for key in sorted(record.keys() - known):
            self.lost(f"{key}: unknown field")
