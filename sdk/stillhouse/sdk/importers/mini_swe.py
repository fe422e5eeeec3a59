"""mini-swe-agent trajectories (`*.traj.json`, format 1.1): a coding agent with one bash tool, usage, cost and times."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import Outcome, Task, TrajectoryStarted, Usage
from stillhouse.schemas.openai import message_from_openai
from stillhouse.sdk.importers.base import Importer, Run, Turn, beginning, load_json, micro_usd, micros, record_hash

Json = dict[str, Any]


class MiniSwe(Importer):
    """One run a file. Whether it solved its task is in the SWE-bench report beside the run's folder, where there is one."""

    name = "mini-swe"
    expects = "a JSON object with info, messages and trajectory_format mini-swe-agent-1.1"

    def detect(self, path: Path) -> bool:
        """By the name of the agent and the keys of `info`."""
        start = beginning(path)
        return start.startswith("{") and all(f'"{key}"' in start for key in ("info", "model_stats", "mini_version"))

    def runs(self, path: Path) -> Iterator[Run]:
        """The run of this file."""
        data = load_json(path)
        try:
            yield self._run(data, path)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise PermanentError(f"not as mini-swe-agent writes it: {error!r}", where=str(path)) from error

    def _run(self, data: Json, path: Path) -> Run:
        info, messages = data["info"], data["messages"]
        task_id = data["instance_id"]
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        talk = [message for message in messages if message["role"] not in ("system", "exit")]
        first = next((message["content"] for message in talk if message["role"] == "user"), None)
        times = [message["extra"]["timestamp"] for message in talk if "timestamp" in message.get("extra", {})]
        solved = _resolved(path, task_id)
        self._count(messages, solved, info)
        return Run(
            id=f"{task_id}-{record_hash(data)}",
            started=TrajectoryStarted(
                task=Task(id=task_id, family=task_id.rpartition("-")[0] or None, instruction=first),
                system_prompt=system,
                environment=info["config"]["environment"].get("image"),
            ),
            turns=[self._turn(message, talk[place + 1 :]) for place, message in enumerate(talk)],
            model=info["config"]["model"]["model_name"],
            outcome={None: Outcome.UNKNOWN, True: Outcome.SUCCESS, False: Outcome.FAILURE}[solved],
            verifier=None if solved is None else "swe-bench",
            began_at=micros(times[0]) if times else None,
            ended_at=micros(times[-1]) if times else None,
        )

    def _turn(self, message: Json, after: list[Json]) -> Turn:
        wire = {key: value for key, value in message.items() if key != "extra" and value is not None}
        extra = message.get("extra", {})
        at = micros(extra["timestamp"]) if "timestamp" in extra else None
        if message["role"] != "assistant":
            return Turn(message_from_openai(wire), at=at)
        usage = extra.get("response", {}).get("usage", {})
        more = {
            "usage": Usage(
                input_tokens=usage.get("prompt_tokens"),
                output_tokens=usage.get("completion_tokens"),
                cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
            ),
            "cost_micro_usd": micro_usd(extra.get("cost")),
            "error": _error(after),
        }
        return Turn(message_from_openai(wire), action=True, at=at, extra=more)

    def _count(self, messages: list[Json], solved: bool | None, info: Json) -> None:
        if solved is None:
            self.lost("no SWE-bench report beside the run's folder: outcome unknown")
        self.lost("tools are not in the source")
        self.lost("info.config: settings of the agent")
        self.lost("exit message and submission: the patch is in the run", sum(m["role"] == "exit" for m in messages))
        self.lost("extra.response: the provider's answer, said again", sum("response" in m.get("extra", {}) for m in messages))
        self.lost("extra.raw_output: the observation without its frame", sum("raw_output" in m.get("extra", {}) for m in messages))
        if info["exit_status"] != "Submitted":
            self.lost(f"exit_status {info['exit_status']}: no field for it")


def _error(after: list[Json]) -> str | None:
    """A return code other than 0, or an exception, of the commands that the step ran."""
    for message in after:
        if message["role"] != "tool":
            return None
        extra = message.get("extra", {})
        if extra.get("exception_info"):
            return str(extra["exception_info"])
        if extra.get("returncode"):
            return f"return code {extra['returncode']}"
    return None


def _resolved(path: Path, task_id: str) -> bool | None:
    """What the report `*.<run folder>.json` beside the run's folder says of a task; None without a report or an entry."""
    if len(path.parents) < 3:
        return None
    folder = path.parents[1]
    for report in sorted(folder.parent.glob(f"*.{folder.name}.json")):
        try:
            found = json.loads(report.read_bytes())
            if task_id in found["completed_ids"]:
                return task_id in found["resolved_ids"]
        except (ValueError, KeyError, TypeError) as error:
            raise PermanentError(f"not a SWE-bench report: {error!r}", where=str(report)) from error
    return None
