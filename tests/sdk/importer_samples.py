"""Small files in every format that an importer reads, made here: name -> (path, text)."""

import json
from typing import Any

Json = dict[str, Any]


def _call(call_id: str, name: str, arguments: Any) -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def _tau_bench() -> list[Json]:
    task = {"user_id": "user_1", "instruction": "You want a refund.", "actions": [{"name": "refund"}], "outputs": []}
    talk = [
        {"role": "system", "content": "Policy."},
        {"role": "user", "content": "Refund me"},
        {"role": "assistant", "content": None, "tool_calls": [_call("c1", "get_user", {"user_id": "user_1"})]},
        {"role": "tool", "tool_call_id": "c1", "name": "get_user", "content": "Error: no such user"},
        {"role": "assistant", "content": "Who are you?"},
        {"role": "user", "content": "###STOP###"},
    ]
    info = {"task": task, "source": "user", "user_cost": 0.1, "reward_info": {"reward": 1.0, "info": {}, "actions": []}}
    won = {"task_id": 7, "reward": 1.0, "info": info, "traj": talk, "trial": 0}
    cut = {"task_id": 7, "reward": 0.0, "info": info | {"reward_info": None}, "traj": talk[:5], "trial": 1, "later": True}
    return [won, cut]


def _tau2() -> Json:
    def message(role: str, second: int, **more: Any) -> Json:
        return {"role": role, "tool_calls": None, "timestamp": f"2025-10-31T07:35:{second:02d}.331176", "cost": 0.0, "usage": None} | more

    raw = {
        "usage": {"cache_read_input_tokens": 60},
        "thinking_blocks": [{"type": "thinking", "thinking": "Look first."}, {"type": "redacted_thinking", "data": "x"}],
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 5}
    order = [{"id": "t1", "name": "get_order", "arguments": {"id": 5}, "requestor": "assistant"}]
    messages = [
        message("assistant", 1, content="Hi!", raw_data=None),
        message("user", 2, content="Refund me"),
        message("assistant", 7, content=None, tool_calls=order, cost=0.0015, usage=usage, raw_data=raw),
        message("tool", 8, id="t1", content="not found", requestor="assistant", error=True),
        message("assistant", 9, content="Toggle it, please.", usage=usage, errors=["You sent an empty message."]),
        message("user", 10, content=None, tool_calls=[{"id": "u1", "name": "toggle", "arguments": {}, "requestor": "user"}]),
        message("tool", 11, id="u1", content="done", requestor="user", error=False),
        message("user", 12, content="Done."),
        message("assistant", 13, content="Thanks.", usage=usage),
    ]
    agent = {"implementation": "llm_agent", "llm": "ft:gpt-4.1:me", "llm_args": {"api_key": "sk-not-for-you"}}
    info = {
        "git_commit": "8d005b0e5b9e4af0",
        "num_trials": 1,
        "user_info": {"llm": "gpt-4.1"},
        "agent_info": agent,
        "environment_info": {"domain_name": "retail", "policy": "Policy.", "tool_defs": None},
    }
    instructions = {"domain": "retail", "reason_for_call": "You want a refund.", "known_info": "You are Ann.", "unknown_info": None}
    simulation = {
        "id": "sim-1",
        "task_id": "3",
        "start_time": "2025-10-31T07:35:00",
        "end_time": "2025-10-31T07:35:20",
        "termination_reason": "max_steps",
        "reward_info": {"reward": 1.0},
        "messages": messages,
        "trial": 0,
    }
    task = {"id": "3", "user_scenario": {"instructions": instructions}, "evaluation_criteria": {"actions": []}}
    return {"timestamp": "2025-10-31T07:34:54", "info": info, "tasks": [task], "simulations": [simulation]}


def _mini_swe() -> Json:
    usage = {"prompt_tokens": 50, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 32}}
    extra = {"timestamp": 1775715329.5, "cost": 0.0004, "response": {"usage": usage}, "actions": []}
    config = {"environment": {"image": "images/lib"}, "model": {"model_name": "deepseek-chat"}}
    return {
        "info": {
            "model_stats": {"api_calls": 1},
            "config": config,
            "mini_version": "2.2.7",
            "exit_status": "Submitted",
            "submission": "diff",
        },
        "messages": [
            {"role": "system", "content": "You fix code."},
            {"role": "user", "content": "Fix it."},
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [_call("c1", "bash", {"command": "ls"})],
                "function_call": None,
                "extra": extra,
            },
            {
                "role": "tool",
                "content": "no",
                "tool_call_id": "c1",
                "extra": {"returncode": 2, "timestamp": 1775715330.5, "raw_output": "no"},
            },
            {"role": "exit", "content": "diff", "extra": {}},
        ],
        "trajectory_format": "mini-swe-agent-1.1",
        "instance_id": "lib__lib-12",
    }


def _intercode() -> Json:
    def run(number: int, history: Json) -> Json:
        head = {"environment": "ic_bash", "dataset": "./data/nl2bash/nl2bash_fs_1.json", "task_id": number, "query": "List all."}
        return head | {"turn_history": history, "summary": {"max_reward": max(history["rewards"])}}

    history = {
        "thoughts": ["look", "again", "good"],
        "actions": ["execute[ls ]]", "ls -l", "submit"],
        "observations": ["a", "no", "a"],
        "rewards": [0, 0.5, 1.0],
        "valid_action": [True, False, True],
    }
    uneven = {
        "thoughts": ["x", "y"],
        "actions": ["execute[ls]", "submit"],
        "observations": ["a"],
        "rewards": [0, 0.5],
        "valid_action": [True],
    }
    return {"0": run(0, history), "1": run(1, uneven)}


def _toolbench() -> Json:
    def node(role: str, message: str, *after: Json) -> Json:
        return {"role": role, "message": message, "next": list(after)}

    whole = str({"name": "weather", "arguments": '{"city": "Rome"}', "response": "sunny"})
    cut = "{'name': 'wind', 'arguments': '{\\n \"ci"
    finish = str({"name": "Finish", "arguments": "{}", "response": ""})[:30]
    chain = node("user", "Weather?", node("assistant", "I look it up.", node("tool", whole, node("tool", cut, node("tool", finish)))))
    final = json.dumps({"return_type": "give_answer", "final_answer": "Sunny."})
    answer = {"method": "chatgpt_CoT", "total_steps": 3, "final_answer": final, "answer_details": [node("system", "", chain)]}
    return {"17": {"query": "Weather?", "available_tools": [{"name": "weather", "parameters": {}}], "answer": answer}}


def _tree_node(kind: str, text: str, *children: Json, **more: Any) -> Json:
    return {"node_type": kind, "description": text, "pruned": False, "io_state": {}, "children": list(children)} | more


TOOLBENCH_TREE: Json = {
    "win": True,
    "tree": {
        "tree": _tree_node(
            "Action Input",
            "",
            _tree_node(
                "Action",
                "weather",
                _tree_node(
                    "Action Input",
                    '{"city": "Rome"}',
                    _tree_node(
                        "Thought",
                        "Try the wind.",
                        _tree_node("Action", "wind", _tree_node("Action Input", "{}", observation_code=12, pruned=True)),
                    ),
                    _tree_node(
                        "Action", "Finish", _tree_node("Action Input", '{"final_answer": "Sunny."}', observation="", observation_code=3)
                    ),
                    observation="sunny",
                    observation_code=0,
                ),
            ),
        )
    },
    "compare_candidates": [],
    "answer_generation": {
        "query": "Weather?",
        "function": [{"name": "weather"}],
        "train_messages": [[{"role": "system", "content": "You are AutoGPT."}, {"role": "user", "content": "Weather? Begin!"}]],
    },
}

_FIREACT = [
    [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Thought: I search.\nAction: search[Badr [Hari]]"},
        {"role": "user", "content": "Observation: A kickboxer."},
        {"role": "assistant", "content": "Thought: Found.\nAction: finish[Badr Hari]"},
        {"role": "user", "content": "Observation: Episode finished, reward = True"},
    ],
    [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Thought: no action"},
        {"role": "user", "content": "Observation: Episode finished, reward = 0"},
    ],
]

FIREACT_ALPACA: Json = {
    "instruction": "Who?",
    "input": "",
    "output": "A. Hari\nB. Nobody\nThought: I search.\nAction: search[x]\nObservation: A kickboxer.\n"
    "Thought: Found.\nAction: finish[A]\nObservation: Episode finished, reward = 1\n",
}


def _langfuse() -> Json:
    def observation(number: int, kind: str, **more: Any) -> Json:
        times = {"startTime": f"2026-01-01T00:00:0{number}.000Z", "endTime": f"2026-01-01T00:00:0{number}.500Z"}
        base = {
            "id": f"o{number}",
            "type": kind,
            "parentObservationId": None,
            "level": "DEFAULT",
            "statusMessage": None,
            "name": kind,
            "model": None,
        }
        return base | times | {"input": None, "output": None, "metadata": "{}", "usageDetails": {}, "totalCost": 0.0} | more

    flat = {
        "llm.input_messages.0.message.role": "system",
        "llm.input_messages.0.message.content": "Be brief.",
        "llm.input_messages.1.message.role": "user",
        "llm.input_messages.1.message.content": "Weather in Rome and Oslo?",
        "llm.tools.0.tool.json_schema": '{"type": "function", "function": {"name": "weather"}}',
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.tool_calls.0.tool_call.id": "c1",
        "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "weather",
        "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"city": "Rome"}',
        "llm.output_messages.0.message.tool_calls.1.tool_call.id": "c2",
        "llm.output_messages.0.message.tool_calls.1.tool_call.function.name": "weather",
        "llm.output_messages.0.message.tool_calls.1.tool_call.function.arguments": '{"city": "Oslo"}',
    }
    asked = [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
        {"role": "user", "parts": [{"type": "text", "content": "Weather in Rome and Oslo?"}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"city": "Rome"}}]},
        {"role": "user", "parts": [{"type": "tool_call_response", "id": "c1", "result": "sunny"}]},
    ]
    answer = {
        "usageDetails": {"input": 70, "output": 9},
        "totalCost": 0.00025,
        "level": "ERROR",
        "statusMessage": "slow",
        "endTime": "2026-01-01T00:00:06.500Z",
    }
    observations = [
        observation(0, "SPAN"),
        observation(1, "GENERATION", model="gpt-4o", metadata=json.dumps({"attributes": flat})),
        observation(2, "GENERATION", parentObservationId="o1", output="said twice"),
        observation(3, "TOOL", name="weather", input={"city": "Oslo"}, output="cold"),
        observation(
            5,
            "GENERATION",
            input=json.dumps(asked),
            output=json.dumps({"message": {"role": "assistant", "content": "Sunny and cold."}}),
            **answer,
        ),
        observation(7, "GENERATION", input=[{"role": "system", "content": "Judge."}, {"role": "user", "content": "Good?"}], output="Yes."),
        observation(8, "GENERATION"),
    ]
    score = {"name": "helpful", "value": 0.5, "source": "EVAL", "stringValue": None}
    trace = {
        "id": "trace-1",
        "projectId": "p",
        "name": "desk",
        "userId": "user_9",
        "observations": [],
        "scores": [score],
        "corrections": [],
    }
    return {"trace": trace, "observations": observations}


def _chat() -> list[Json]:
    talk = [{"role": "system", "content": "Desk."}, {"role": "user", "content": "Refund"}, {"role": "assistant", "content": "Done."}]
    known = {"id": "run-1", "model": "gpt-4o", "task_id": 41, "family": "refund", "subject": "c-7", "success": True, "reward": 0.9}
    times = {"started_at": "2026-01-02T03:04:05Z", "ended_at": "2026-01-02T03:05:05Z"}
    bare = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    return [{"messages": talk} | known | times, {"messages": bare, "mood": "good"}]


def _lines(rows: list[Json]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


FILES: dict[str, tuple[str, str]] = {
    "tau-bench": ("gpt-4o-airline.json", json.dumps(_tau_bench())),
    "tau2": ("results.json", json.dumps(_tau2(), indent=1)),
    "mini-swe": ("run_1/lib__lib-12/lib__lib-12.traj.json", json.dumps(_mini_swe())),
    "intercode": ("gpt-4/ic_bash_react_10_turns_fs_1.json", json.dumps(_intercode())),
    "toolbench": ("gpt-3.5-turbo_CoT/G1_category.json", json.dumps(_toolbench())),
    "fireact": ("hotpotqa.jsonl", _lines([{"messages": messages} for messages in _FIREACT])),
    "langfuse": ("desk.trace.json", json.dumps(_langfuse())),
    "chat": ("logs.jsonl", _lines(_chat())),
}
