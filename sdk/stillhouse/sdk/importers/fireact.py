"""FireAct fine-tuning rows: ReAct text of question answering with a search tool, as chat (JSONL) or as Alpaca rows (JSON)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import Outcome, Task, TrajectoryStarted
from stillhouse.schemas.messages import Message
from stillhouse.sdk.importers.base import Importer, Run, Turn, beginning, load_json, record_hash
from stillhouse.sdk.importers.react import action_from_text, observation_from_text, split

Json = dict[str, Any]

_END = re.compile(r"Episode finished, reward = (?P<reward>\w+)")
_REWARDS = {"True": 1.0, "1": 1.0, "False": 0.0, "0": 0.0}


class FireAct(Importer):
    """Rows of FireAct. The row's last observation says whether the answer was right."""

    name = "fireact"
    expects = "JSON lines with messages, or a JSON list of instruction and output, in ReAct text (Thought, Action, Observation)"

    def detect(self, path: Path) -> bool:
        """By the keys of the first row and the markers of ReAct."""
        start = beginning(path)
        chat = start.startswith("{") and '"messages"' in start[:200]
        alpaca = start.startswith("[") and all(f'"{key}"' in start for key in ("instruction", "output"))
        return (chat or alpaca) and "Observation:" in start and "\\nAction:" in start

    def runs(self, path: Path) -> Iterator[Run]:
        """One run for each row."""
        for place, row in enumerate(_rows(path)):
            try:
                question, pieces = _chat(row) if "messages" in row else _alpaca(row)
                yield self._run(row, question, pieces, path.stem)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise PermanentError(f"a row is not as FireAct writes it: {error!r}", where=f"{path}[{place}]") from error

    def _run(self, row: Json, question: str | None, pieces: list[tuple[str, str]], family: str) -> Run:
        turns = [Turn(Message(role="user", content=question))] if question is not None else []
        action: Message | None = None
        for place, (role, text) in enumerate(pieces):
            if role == "assistant":
                action = action_from_text(text, f"call_{place}")
                if not action.tool_calls:
                    self.lost("assistant text without a whole action, kept as text")
                turns.append(Turn(action, action=True))
            else:
                turns.append(Turn(observation_from_text(text, action)))
        ended = next((found for _, text in reversed(pieces) if (found := _END.search(text))), None)
        reward = _REWARDS.get(ended["reward"]) if ended else None
        self.lost("system prompt and tools are not in the source")
        if reward is None:
            self.lost("no reward in the source: outcome unknown")
        return Run(
            id=record_hash(row),
            started=TrajectoryStarted(task=Task(family=family, instruction=question)),
            turns=turns,
            outcome=Outcome.UNKNOWN if reward is None else Outcome.SUCCESS if reward == 1.0 else Outcome.FAILURE,
            reward=reward,
            verifier=None if reward is None else "fireact",
        )


def _rows(path: Path) -> Iterator[Json]:
    if beginning(path).startswith("["):
        yield from load_json(path)
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise PermanentError(f"not a JSON line: {error}", where=f"{path}:{number}") from error


def _chat(row: Json) -> tuple[str | None, list[tuple[str, str]]]:
    messages = [(message["role"], message["content"]) for message in row["messages"]]
    asked = messages[0][0] == "user"
    return messages[0][1] if asked else None, messages[1:] if asked else messages


def _alpaca(row: Json) -> tuple[str | None, list[tuple[str, str]]]:
    head, pieces = split(row["output"])
    # The options of a multiple-choice question stand before the first thought.
    return "\n".join(part for part in (row["instruction"], row["input"], head.rstrip("\n")) if part), pieces
