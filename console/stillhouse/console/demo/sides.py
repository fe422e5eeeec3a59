"""One request to the teacher and to the student, side by side, as anybody can send them with curl."""

import json
import shlex
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.console.demo.teacher import Teacher
from stillhouse.examples.order_desk.agent import WIRE_TOOLS
from stillhouse.examples.order_desk.tools import SYSTEM_PROMPT

HTTP_S = 60.0
CUSTOMER = "Please cancel my order of the green lamp. My email is mary.jones@mailbox.eu"


@dataclass(frozen=True)
class Side:
    """A command, and what came back."""

    command: str
    reply: str


@dataclass(frozen=True)
class Sides:
    """Both, for one request."""

    teacher: Side
    student: Side


def side_by_side(teacher: Teacher, student_url: str, student: str, state: Path) -> Sides:
    """Ask both."""
    return Sides(
        _ask(teacher.url, teacher.model, state / "report" / "request-teacher.json"),
        _ask(f"{student_url}/v1", student, state / "report" / "request-student.json"),
    )


def _ask(url: str, model: str, file: Path) -> Side:
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": CUSTOMER}]
    body = json.dumps({"model": model, "messages": messages, "tools": list(WIRE_TOOLS), "temperature": 0, "max_tokens": 256}, indent=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(body)
    address = f"{url}/chat/completions"
    request = urllib.request.Request(address, data=body.encode(), headers={"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=HTTP_S) as reply:
        found: dict[str, Any] = json.loads(reply.read())
    command = f"curl {shlex.quote(address)} -H 'content-type: application/json' -d @report/{file.name}"
    return Side(command, json.dumps({"message": found["choices"][0]["message"], "usage": found.get("usage")}, indent=1))
