"""What the terminal shows at the end of a demo."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from stillhouse.trainer.evaluation.journal import Entry


def as_text(found: Mapping[str, Any], ratios: Mapping[str, float | None], failure: list[str], folder: Path) -> str:
    """Success, steps, format errors and cost of everybody; phases; one failure; where the rest is."""
    lines = ["", found["notice"], "" if found["claims"] else "tiny random model: these figures claim nothing", *_policies(found), ""]
    for kind, ratio in ratios.items():
        if ratio is not None:
            lines.append(f"a success of the last student costs 1/{ratio:,.0f} of the teacher's, {kind}")
    seconds = found["phases"]
    lines += [
        "",
        f"{sum(seconds.values()):.0f} s, {found['cpu_seconds']:.0f} CPU-seconds: " + ", ".join(f"{k} {v:.0f}" for k, v in seconds.items()),
    ]
    lines += ["", "One failure of the last student, drawn at random:", *failure, "", f"report: {folder / 'report.html'}"]
    return "\n".join(lines)


def _policies(found: Mapping[str, Any]) -> list[str]:
    parts = list(found["tasks"])
    head = f"{'':<22}" + "".join(f"{p:>12}" for p in parts) + f"{'steps':>8}{'format errors':>15}{'$ marginal':>12}{'$ loaded':>12}"
    return [head, *(_policy(p, parts) for p in (found["teacher"], found["base"], *found["students"]))]


def _policy(policy: Mapping[str, Any], parts: list[str]) -> str:
    cells = "".join(
        f"{policy['success'][p]['k']:>9}/{policy['success'][p]['n']:<2}" if p in policy["success"] else f"{'-':>12}" for p in parts
    )
    cost = policy["cost_per_success_usd"]
    return f"{policy['name']:<22}{cells}{_number(policy['steps_mean']):>8}{_share(policy['format_error_rate']):>15}" + "".join(
        f"{_number(cost[kind]):>12}" for kind in ("marginal", "loaded")
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def episode_lines(entry: Entry) -> list[str]:
    """An episode in full, one line a message or call."""
    episode = entry.outcome.episode
    assert episode is not None
    lines = [f"{episode.task_id} ({episode.part}, {episode.family}): {episode.outcome_reason}"]
    for message in episode.messages:
        if message.get("content"):
            lines.append(f"  {message['role']:<10} {message['content']}")
        for call in message.get("tool_calls") or ():
            function = call["function"]
            arguments = function["arguments"]
            shown = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
            lines.append(f"  {'calls':<10} {function['name']} {shown}")
    return lines
