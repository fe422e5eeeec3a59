"""Your own logs: one JSON object a line with OpenAI `messages`, and what else you know of the run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import Outcome, Task, TrajectoryStarted
from stillhouse.schemas.openai import from_openai
from stillhouse.sdk.importers.base import Importer, Run, Turn, beginning, micros, record_hash

Json = dict[str, Any]

_KNOWN = {"id", "messages", "tools", "model", "task_id", "family", "subject", "success", "reward", "started_at", "ended_at"}


class Chat(Importer):
    """Chat logs as JSON lines. Only `messages` must be there; unknown keys are counted, never guessed at."""

    name = "chat"
    expects = "JSON lines with messages as OpenAI writes them (and tools, id, model, task_id, family, success, reward, …)"

    def detect(self, path: Path) -> bool:
        """By the first line, which must be an object with `messages`."""
        first = beginning(path).partition("\n")[0]
        return first.startswith("{") and '"messages"' in first and '"role"' in first

    def runs(self, path: Path) -> Iterator[Run]:
        """One run for each line."""
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield self._run(json.loads(line))
                    except (PermanentError, KeyError, TypeError, AttributeError, ValueError) as error:
                        raise PermanentError(f"not a chat log's line: {error}", where=f"{path}:{number}") from error

    def _run(self, record: Json) -> Run:
        messages = from_openai(record["messages"])
        system = [message.text for message in messages if message.role == "system"]
        talk = [message for message in messages if message.role != "system"]
        success, reward = record.get("success"), record.get("reward")
        for key in sorted(record.keys() - _KNOWN):
            self.lost(f"{key}: unknown field")
        if success not in (None, True, False):
            raise ValueError(f"success must be true, false or absent, not {success!r}")
        if success is None:
            self.lost("no success in the source: outcome unknown")
        return Run(
            id=_text(record, "id") or record_hash(record),
            started=TrajectoryStarted(
                task=Task(
                    id=_text(record, "task_id"),
                    family=_text(record, "family"),
                    instruction=next((message.text for message in talk if message.role == "user"), None),
                ),
                system_prompt="\n".join(system) or None,
                tools=tuple(record.get("tools") or ()),
                subject=_text(record, "subject"),
            ),
            turns=[Turn(message, action=message.role == "assistant") for message in talk],
            model=_text(record, "model") or "",
            outcome=Outcome.UNKNOWN if success is None else Outcome.SUCCESS if success else Outcome.FAILURE,
            reward=None if reward is None else float(reward),
            began_at=micros(record["started_at"]) if record.get("started_at") else None,
            ended_at=micros(record["ended_at"]) if record.get("ended_at") else None,
        )


def _text(record: Json, key: str) -> str | None:
    """A name that some logs write as a number."""
    value = record.get(key)
    return None if value is None else str(value)
