"""What the terminal shows at the end of a demo. It fits 80 columns, but for what models and customers said."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from stillhouse.console.demo.figures import dollars, number, share, solved
from stillhouse.trainer.evaluation.journal import Entry

WIDTH, INDENT = 80, 13


def as_text(found: Mapping[str, Any], ratios: Mapping[str, float | None], failure: list[str], folder: Path) -> str:
    """Success, steps, format errors and cost of everybody; phases; one failure; where the rest is."""
    lines = ["", f"teacher: {found['notice']}"]
    if not found["claims"]:
        lines.append("student: a tiny random model; these figures claim nothing")
    lines += ["", *_policies(found), "", "$/1,000: US dollars for a thousand successes"]
    for kind, ratio in ratios.items():
        if ratio is not None:
            lines.append(f"a success of the last student costs 1/{ratio:,.0f} of the teacher's, {kind}")
    lines += ["", f"champion: {found['champion'] or 'none'}", *_canaries(found)]
    cost, events = found["cost"], found["events"]
    lines += [
        f"spent ${cost['spent_usd']:,.2f}; the teacher alone would have cost ${cost['teacher_only_usd']:,.2f}",
        *textwrap.wrap(f"distillation: {found['break_even']['why']}", WIDTH, subsequent_indent="  "),
        f"events: {events['emitted']:,} emitted, {events['stored']:,} stored, {events['dlq']:,} in the DLQ",
    ]
    for window in found["rejected"]:
        lines += textwrap.wrap(f"window {window['window']} made no student: {window['reason']}", WIDTH)
    seconds = found["phases"]
    times = ", ".join(f"{name} {took:.0f}".replace(" ", "\xa0") for name, took in seconds.items())  # no line ends within one
    spent = f"{sum(seconds.values()):.0f} s, {found['cpu_seconds']:.0f} CPU-seconds: {times}"
    lines += ["", *(line.replace("\xa0", " ") for line in textwrap.wrap(spent, WIDTH, break_on_hyphens=False))]
    lines += ["", "One failure of the last student, drawn at random:", *failure, "", f"report: {folder / 'report.html'}"]
    return "\n".join(lines)


def _canaries(found: Mapping[str, Any]) -> list[str]:
    """A line for each canary: who, how it ended, and on how much evidence."""
    lines = []
    for trial in found["canaries"]:
        units, interval = trial["units"], trial["interval"]
        span = f", success {100 * interval[0]:+.0f} … {100 * interval[1]:+.0f} points" if interval else ""
        late = trial["seconds_from_verdict_to_last_request"]
        after = f", last answer {late:.1f} s after the verdict" if late is not None else ""
        told = (
            f"canary of {trial['student']} ({trial['what']}): {trial['verdict']}, {units['canary']} : {units['control']} units{span}{after}"
        )
        lines += textwrap.wrap(told, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return lines


def _policies(found: Mapping[str, Any]) -> list[str]:
    parts = list(found["tasks"])
    rows = [_policy(p, parts) for p in (found["teacher"], found["base"], *found["students"])]
    over = [""] * (len(parts) + 1) + ["", "format", "$/1,000", "$/1,000"]
    head = ["", *parts, "steps", "errors", "marginal", "loaded"]
    widths = [max(len(row[column]) for row in (over, head, *rows)) for column in range(len(head))]
    return [
        "  ".join((str.rjust if n else str.ljust)(cell, widths[n]) for n, cell in enumerate(row)).rstrip() for row in (over, head, *rows)
    ]


def _policy(policy: Mapping[str, Any], parts: list[str]) -> list[str]:
    cost = policy["cost_per_success_usd"]
    cells = [solved(policy["success"].get(part)) for part in parts]
    figures = [number(policy["steps_mean"]), share(policy["format_error_rate"]), dollars(cost["marginal"]), dollars(cost["loaded"])]
    return [policy["name"], *cells, *figures]


def episode_lines(entry: Entry) -> list[str]:
    """An episode in full: who, and beside it what was said or called, line by line."""
    episode = entry.outcome.episode
    assert episode is not None
    lines = [f"{episode.task_id} ({episode.part}, {episode.family}): {episode.outcome_reason}"]
    for message in episode.messages:
        if message.get("content"):
            lines += _said(message["role"], str(message["content"]))
        for call in message.get("tool_calls") or ():
            function = call["function"]
            arguments = function["arguments"]
            shown = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
            lines += _said("calls", f"{function['name']} {shown}")
    return lines


def _said(who: str, text: str) -> list[str]:
    first, *more = text.splitlines() or [""]
    return [f"  {who:<{INDENT - 2}}{first}", *(f"{'':<{INDENT}}{line}" for line in more)]
