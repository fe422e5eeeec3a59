"""ToolBench: answers of ToolEval (chains whose tool records may be cut off) and depth-first search trees with pruned branches."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import Outcome, Task, TrajectoryStarted
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.schemas.openai import arguments_from_text
from stillhouse.sdk.importers.base import Importer, Run, Turn, beginning, load_json, record_hash

Json = dict[str, Any]

_CUT_OFF = re.compile(r"\{'name': '(?P<name>[^']*)(?:', 'arguments': ['\"](?P<arguments>.*))?.*", re.DOTALL)
_ANSWERED, _GAVE_UP = 3, 4  # ToolBench's observation codes of a final answer and of giving up


class ToolBench(Importer):
    """Runs of ToolBench. ToolEval says nothing of success; a tree's answered branch succeeded when the tree was won.

    Each leaf of a tree is a run: an attempt that shares its first steps with the one before, from which it was resumed.
    """

    name = "toolbench"
    expects = "a JSON object of answers by query id (query, available_tools, answer), or of one search tree (win, tree, answer_generation)"

    def detect(self, path: Path) -> bool:
        """By the keys of the first answer, or of the tree."""
        start = beginning(path)
        answers = all(f'"{key}"' in start for key in ("query", "available_tools"))
        return start.startswith("{") and (answers or all(f'"{key}"' in start for key in ("win", "tree", "node_type", "io_state")))

    def runs(self, path: Path) -> Iterator[Run]:
        """One run for each answer, or for each leaf of the tree."""
        data = load_json(path)
        try:
            if "tree" in data:
                yield from self._tree(data, path)
                return
            for key, record in data.items():
                yield self._answer(key, record, path)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise PermanentError(f"not as ToolBench writes it: {error!r}", where=str(path)) from error

    def _answer(self, key: str, record: Json, path: Path) -> Run:
        answer = record["answer"]
        nodes: list[Json] = []
        branch = answer["answer_details"]
        while branch:
            self.lost("further branch of an answer", len(branch) - 1)
            nodes.append(branch[0])
            branch = branch[0]["next"]
        turns = list(self._answer_turns(nodes, answer["final_answer"]))
        self.lost("answer.method and total_steps: no field for it")
        self.lost("no label in the source: outcome unknown")
        return Run(
            id=f"{key}-{record_hash([path.parent.name, record])}",
            started=TrajectoryStarted(
                task=Task(id=key, family=path.stem, instruction=record["query"]),
                system_prompt=next((node["message"] for node in nodes if node["role"] == "system" and node["message"]), None),
                tools=_tools(record["available_tools"]),
            ),
            turns=turns,
            model=path.parent.name.partition("_")[0],
        )

    def _answer_turns(self, nodes: list[Json], final_answer: str) -> Iterator[Turn]:
        thought: str | None = None
        for place, node in enumerate(nodes):
            if node["role"] == "user":
                yield Turn(Message(role="user", content=node["message"]))
            elif node["role"] == "assistant":
                if thought is not None:
                    yield Turn(Message(role="assistant", content=thought), action=True)
                thought = node["message"]
            elif node["role"] == "tool":
                call, response = self._record(node["message"], f"call_{place}", final_answer)
                yield Turn(Message(role="assistant", content=thought, tool_calls=(call,)), action=True)
                yield Turn(Message(role="tool", content=response, tool_call_id=call.id, name=call.name))
                thought = None
        if thought is not None:
            yield Turn(Message(role="assistant", content=thought), action=True)

    def _record(self, text: str, call_id: str, final_answer: str) -> tuple[ToolCall, str]:
        """Call and response of a tool record, a Python literal that the source may have cut off anywhere.

        The final answer, which is the arguments of `Finish`, is whole elsewhere.
        """
        head, marker, response = text.partition(", 'response': ")
        record = _literal(text) or _literal(head + "}")
        if record is not None:
            if "response" not in record:
                self.lost("tool response cut off in the source: kept as far as it goes")
            arguments, raw = arguments_from_text(record["arguments"])
            call = ToolCall(id=call_id, name=record["name"], arguments=arguments, raw_arguments=raw)
            return call, str(record.get("response", response if marker else ""))
        found = _CUT_OFF.fullmatch(text)
        if found is None:
            raise ValueError(f"no tool record: {text[:60]}")
        if found["name"] == "Finish":
            arguments, raw = arguments_from_text(final_answer)
            return ToolCall(id=call_id, name="Finish", arguments=arguments, raw_arguments=raw), ""
        self.lost("tool arguments cut off in the source: kept as text as far as they go, their call marked `truncated`")
        raw = found["arguments"] or ""
        return ToolCall(id=call_id, name=found["name"], raw_arguments=raw, extra={"truncated": True}), ""

    def _tree(self, data: Json, path: Path) -> Iterator[Run]:
        generation = data["answer_generation"]
        chains = generation.get("train_messages") or [[]]
        prompts = {message["role"]: message["content"] for message in reversed(chains[-1])}
        self.lost("compare_candidates, forward_args and io_state: of the search, not of a run")
        self.lost("train_messages: said again by the tree", len(chains) if chains[-1] else 0)
        self.lost("system prompt is not in the source", "system" not in prompts)
        root_hash, earlier = record_hash(data), None
        for attempt, leaf in enumerate(_leaves(data["tree"]["tree"], ()), 1):
            turns = list(_tree_turns(leaf))
            shared = 0 if earlier is None else _shared(earlier, leaf)
            outcome = _tree_outcome(leaf[-1], won=bool(data["win"]))
            if any(node["pruned"] for node in leaf):
                self.lost("pruned: the branch is a failed attempt")
            yield Run(
                id=f"{root_hash}-{attempt}",
                started=TrajectoryStarted(
                    task=Task(id=root_hash, family=path.parent.name, instruction=generation["query"]),
                    system_prompt=prompts.get("system"),
                    tools=_tools(generation["function"]),
                    attempt=attempt,
                    parent_trajectory=f"{self.name}-{root_hash}-{attempt - 1}" if earlier else None,
                    resume_step=shared if earlier else None,
                ),
                turns=[Turn(Message(role="user", content=prompts.get("user", generation["query"]))), *turns],
                model=path.stem.partition("_")[2].partition("_")[0],
                outcome=outcome,
                verifier="toolbench",
            )
            earlier = leaf


def _literal(text: str) -> Json | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, dict) and {"name", "arguments"} <= value.keys() else None


def _tools(functions: list[Json]) -> tuple[Json, ...]:
    return tuple({"type": "function", "function": function} for function in functions)


def _leaves(node: Json, above: tuple[Json, ...]) -> Iterator[tuple[Json, ...]]:
    """The path to each leaf, in the order of the search; the root says nothing."""
    path = (*above, node)
    if not node["children"]:
        yield path[1:]
    for child in node["children"]:
        yield from _leaves(child, path)


def _tree_turns(path: tuple[Json, ...]) -> Iterator[Turn]:
    thought, name = None, None
    for place, node in enumerate(path):
        kind, text = node["node_type"], node["description"]
        if kind == "Thought":
            thought = text if thought is None else f"{thought}\n{text}"
        elif kind == "Action":
            name = text
        elif kind == "Action Input":
            arguments, raw = arguments_from_text(text)
            call = ToolCall(id=f"call_{place}", name=name or "", arguments=arguments, raw_arguments=raw)
            code = node.get("observation_code")
            failed = {"error": f"observation code {code}"} if code not in (None, 0, _ANSWERED, _GAVE_UP) else {}
            yield Turn(Message(role="assistant", content=thought, tool_calls=(call,)), action=True, extra=failed)
            yield Turn(Message(role="tool", content=node.get("observation", ""), tool_call_id=call.id, name=call.name))
            thought, name = None, None
    if thought is not None or name is not None:
        calls = (ToolCall(id=f"call_{len(path)}", name=name),) if name else ()
        yield Turn(Message(role="assistant", content=thought, tool_calls=calls), action=True)


def _shared(first: tuple[Json, ...], second: tuple[Json, ...]) -> int:
    """How many steps two branches have in common."""
    common = 0
    while common < min(len(first), len(second)) and first[common] is second[common]:
        common += 1
    return sum(node["node_type"] == "Action Input" for node in first[:common])


def _tree_outcome(leaf: Json, won: bool) -> Outcome:
    if leaf.get("observation_code") == _ANSWERED:
        return Outcome.SUCCESS if won else Outcome.FAILURE
    return Outcome.ABORTED if leaf.get("observation_code") == _GAVE_UP else Outcome.FAILURE
