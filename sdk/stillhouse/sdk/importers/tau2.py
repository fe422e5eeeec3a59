"""tau2-bench simulation files: tasks, environment and scored simulations with times, usage and cost for each message."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import Outcome, PolicyRole, Task, TrajectoryStarted, Usage
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.schemas.openai import arguments_from_text
from stillhouse.sdk.importers.base import Importer, Run, Turn, beginning, load_json, micro_usd, micros

Json = dict[str, Any]


class Tau2(Importer):
    """Runs of tau2-bench. A fine-tuned agent (`ft:…`) is imported as a student.

    Model arguments are never carried: files in the wild hold keys there.
    """

    name = "tau2"
    expects = "a JSON object with info (environment_info, agent_info), tasks and simulations"

    def detect(self, path: Path) -> bool:
        """By the keys of `info`, which comes first."""
        start = beginning(path)
        return start.startswith("{") and all(f'"{key}"' in start for key in ("info", "agent_info", "environment_info", "num_trials"))

    def runs(self, path: Path) -> Iterator[Run]:
        """One run for each simulation."""
        data = load_json(path)
        try:
            info = data["info"]
            tasks = {str(task["id"]): task for task in data["tasks"]}
            simulations = data["simulations"]
        except (KeyError, TypeError) as error:
            raise PermanentError(f"not as tau2-bench writes it: {error!r}", where=str(path)) from error
        for place, simulation in enumerate(simulations):
            try:
                yield self._run(simulation, info, tasks.get(str(simulation["task_id"]), {}))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise PermanentError(f"a simulation is not as tau2-bench writes it: {error!r}", where=f"{path}[{place}]") from error

    def _run(self, simulation: Json, info: Json, task: Json) -> Run:
        environment, agent = info["environment_info"], info["agent_info"]
        domain, model = environment["domain_name"], agent["llm"]
        reward = (simulation.get("reward_info") or {}).get("reward")
        self._count(simulation, info, task)
        return Run(
            id=simulation["id"],
            started=TrajectoryStarted(
                task=Task(id=f"{domain}/{simulation['task_id']}", family=domain, instruction=_instruction(task)),
                system_prompt=environment["policy"],
                tools=tuple(environment.get("tool_defs") or ()),
                attempt=int(simulation["trial"]) + 1,
                environment=f"tau2-bench@{info['git_commit'][:12]}",
            ),
            turns=[turn for place, message in enumerate(simulation["messages"]) for turn in self._turn(message, place, simulation)],
            model=model,
            role=PolicyRole.STUDENT if model.startswith("ft:") else PolicyRole.TEACHER,
            outcome=Outcome.UNKNOWN if reward is None else Outcome.SUCCESS if reward == 1.0 else Outcome.FAILURE,
            reward=reward,
            verifier="tau2-bench",
            began_at=micros(simulation["start_time"]),
            ended_at=micros(simulation["end_time"]),
        )

    def _turn(self, message: Json, place: int, simulation: Json) -> Iterator[Turn]:
        role, at = message["role"], micros(message["timestamp"])
        if role == "tool":
            if message.get("requestor") == "user":
                self.lost("tool result of the simulated user")
                return
            yield Turn(Message(role="tool", content=message["content"], tool_call_id=message["id"]), at=at)
        elif role == "user":
            self.lost("tool call of the simulated user", len(message.get("tool_calls") or ()))
            if message["content"]:
                yield Turn(Message(role="user", content=message["content"]), at=at)
        else:
            raw = message.get("raw_data") or {}
            action = Message(role="assistant", content=message["content"], reasoning=_reasoning(message, raw), tool_calls=_calls(message))
            # tau2 opens with a greeting that no model wrote.
            greeting = place == 0 and message.get("usage") is None and message.get("cost") == 0.0
            if greeting:
                self.lost("scripted greeting: kept as state, not as a step")
            errors = [*(message.get("errors") or ()), *_tool_errors(simulation["messages"], place)]
            extra = {"usage": _usage(message, raw), "cost_micro_usd": micro_usd(message.get("cost")), "error": "\n".join(errors) or None}
            yield Turn(action, action=not greeting, at=at, extra=extra)

    def _count(self, simulation: Json, info: Json, task: Json) -> None:
        self.lost("times without a zone, read as UTC")
        self.lost("llm_args and user_info: settings of the simulation")
        self.lost("user_cost and the simulated user's usage: not the agent's")
        self.lost("raw_data: the provider's answer, said again", sum(bool(m.get("raw_data")) for m in simulation["messages"]))
        self.lost("the agent's own wrapping of the policy is not in the source")
        if not info["environment_info"].get("tool_defs"):
            self.lost("tools are not in the source")
        if simulation.get("reward_info"):
            self.lost("reward_info: how the reward was made up")
        if (reason := simulation["termination_reason"]) not in ("user_stop", "agent_stop"):
            self.lost(f"termination_reason {reason}: in the outcome only")
        if task.get("evaluation_criteria"):
            self.lost("evaluation_criteria: the evaluator's answer, not part of the run")
        self.lost("seed and duration: no field for it")


def _instruction(task: Json) -> str | None:
    """What the user wants: the ticket of a task without a user, else the simulated user's instructions as text."""
    if task.get("ticket"):
        return str(task["ticket"])
    instructions = (task.get("user_scenario") or {}).get("instructions")
    if isinstance(instructions, dict):
        keys = ("reason_for_call", "known_info", "unknown_info", "task_instructions")
        return "\n".join(instructions[key] for key in keys if instructions.get(key)) or None
    return instructions or None


def _reasoning(message: Json, raw: Json) -> str | None:
    blocks = [block["thinking"] for block in raw.get("thinking_blocks") or () if block.get("type") == "thinking"]
    return message.get("reasoning") or "\n".join(blocks) or None


def _calls(message: Json) -> tuple[ToolCall, ...]:
    calls = []
    for call in message.get("tool_calls") or ():
        arguments, raw = arguments_from_text(call["arguments"])
        calls.append(ToolCall(id=call["id"], name=call["name"], arguments=arguments, raw_arguments=raw))
    return tuple(calls)


def _usage(message: Json, raw: Json) -> Usage:
    usage = message.get("usage") or {}
    cached = (raw.get("usage") or {}).get("cache_read_input_tokens")
    return Usage(input_tokens=usage.get("prompt_tokens"), output_tokens=usage.get("completion_tokens"), cached_tokens=cached)


def _tool_errors(messages: list[Json], place: int) -> Iterator[str]:
    for message in messages[place + 1 :]:
        if message["role"] != "tool":
            return
        if message.get("error") and message.get("requestor") != "user":
            yield message["content"]
