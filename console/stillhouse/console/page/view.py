"""The status page as HTML: made here, readable without its script, which only keeps it fresh."""

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup, escape

_HERE = Path(__file__).parent
STYLE = Markup((_HERE / "style.css").read_text(encoding="utf-8"))
_SCRIPT = Markup((_HERE / "live.js").read_text(encoding="utf-8"))
INGEST = {"lag": "events not read yet", "replay_debt": "events that a crash would read again", "open": "trajectories open"}


def _commands(text: str) -> Markup:
    """A sentence with what stands in backticks shown as code."""
    pieces = re.split(r"`([^`]*)`", text)
    return Markup("").join(Markup("<code>{}</code>").format(piece) if place % 2 else escape(piece) for place, piece in enumerate(pieces))


_environment = Environment(autoescape=True)
_environment.filters["commands"] = _commands
_page = _environment.from_string((_HERE / "page.html.j2").read_text(encoding="utf-8"))


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


# Only this one script runs, whatever a task's name brings along.
POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_hash(_SCRIPT)}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def render(found: Mapping[str, Any]) -> str:
    """The page for what `status.gather` found."""
    trouble = not found["stack"] or "error" in found["ingest"] or not all(p["alive"] for p in found["stack"].values())
    return _page.render(found=found, trouble=trouble, ingest=INGEST, style=STYLE, script=_SCRIPT)
