"""tau-bench result files (`historical_trajectories/*.json`): a list of scored runs with OpenAI messages."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import Outcome, Task, TrajectoryStarted
from stillhouse.schemas.messages import Message
from stillhouse.schemas.openai import from_openai
from stillhouse.sdk.importers.base import Importer, Run, Turn, beginning, load_json, record_hash

_CARRIED = {"task_id", "reward", "info", "traj", "trial"}
_FILE = re.compile(r"(?P<model>.+)-(?P<domain>airline|retail)$")


class TauBench(Importer):
    """Runs of tau-bench. Success is the source's own reward of 1; a run cut at the step limit has no reward details and failed."""

    name = "tau-bench"
    expects = "a JSON list of runs with task_id, reward, info, traj and trial"

    def detect(self, path: Path) -> bool:
        """By the keys of the first run."""
        start = beginning(path)
        return start.startswith("[") and all(f'"{key}"' in start for key in ("task_id", "reward", "info")) and '"traj"' in start

    def runs(self, path: Path) -> Iterator[Run]:
        """One run for each record."""
        named = _FILE.match(path.stem)
        model, domain = (named["model"], named["domain"]) if named else ("", None)
        for place, record in enumerate(load_json(path)):
            try:
                yield self._run(record, model, domain)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise PermanentError(f"a run is not as tau-bench writes it: {error!r}", where=f"{path}[{place}]") from error

    def _run(self, record: dict[str, Any], model: str, domain: str | None) -> Run:
        messages = from_openai(record["traj"])
        head = messages[0] if messages and messages[0].role == "system" else None
        info = record["info"]
        task = info.get("task") or {}
        self._count(record, domain)
        reward = float(record["reward"])
        return Run(
            id=f"{record['task_id']}-{record['trial']}-{record_hash(record)}",
            turns=_turns(messages[1:] if head else messages),
            model=model,
            started=TrajectoryStarted(
                task=Task(id=_task_id(record, domain), family=domain, instruction=task.get("instruction")),
                system_prompt=head.text if head else None,
                attempt=int(record["trial"]) + 1,
                environment="tau-bench",
                subject=task.get("user_id"),
            ),
            outcome=Outcome.SUCCESS if reward == 1.0 else Outcome.FAILURE,
            reward=reward,
            verifier="tau-bench",
        )

    def _count(self, record: dict[str, Any], domain: str | None) -> None:
        info = record["info"]
        self.lost("tools are not in the source")
        if domain is None:
            self.lost("no model and domain in the file's name (model-airline.json, model-retail.json)")
        if info.get("reward_info") is None:
            self.lost("reward_info is null: a run cut at its step limit, failed by its reward")
        else:
            self.lost("info.reward_info: how the reward was made up")
        task = info.get("task") or {}
        for key in sorted(task.keys() - {"user_id", "instruction"}):
            self.lost(f"info.task.{key}: the evaluator's answer, not part of the run")
        if "user_cost" in info:
            self.lost("info.user_cost: the simulated user's, not the agent's")
        for key in sorted(info.keys() - {"task", "reward_info", "user_cost"}):
            self.lost(f"info.{key}: no field for it")
        for key in sorted(record.keys() - _CARRIED):
            self.lost(f"{key}: unknown field")


def _task_id(record: dict[str, Any], domain: str | None) -> str:
    return f"{domain}/{record['task_id']}" if domain else str(record["task_id"])


def _turns(messages: tuple[Message, ...]) -> list[Turn]:
    turns = []
    for place, message in enumerate(messages):
        failed = message.role == "assistant" and _error(messages, place)
        turns.append(Turn(message, action=message.role == "assistant", extra={"error": failed} if failed else {}))
    return turns


def _error(messages: tuple[Message, ...], place: int) -> str | None:
    """The first error among a step's tool results: the environment starts those with `Error:`."""
    for message in messages[place + 1 :]:
        if message.role != "tool":
            return None
        if message.text.startswith("Error:"):
            return message.text
    return None
