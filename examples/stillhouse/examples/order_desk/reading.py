"""How the stand-in teacher reads: a customer's wording and the tools' results, out of chat messages and nothing else."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillhouse.schemas.errors import UsageError

_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.\w+)+")
_ADDRESS = re.compile(r"\d+ \w+ Street, \w+")
_ORDER = re.compile(r"(?P<item>.+): (?P<status>\w+), id (?P<id>\d+)")
# The first intent with one of its phrases in the text is meant.
_PHRASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("refund", ("refund", "money back", "reimburse", "pay me back", "what i paid")),
    ("replace", ("send a new one", "replace", "swap it", "exchange it", "fresh one")),
    ("lost", ("never arrived", "where is my", "still waiting", "no sign of", "no parcel yet", "nobody brought")),
    ("cancel", ("cancel", "call off", "called off", "changed my mind", "withdraw", "drop the")),
)


@dataclass(frozen=True)
class Call:
    """One tool call, made or to be made."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Answered:
    """A call of the conversation with what the tool said (None: not answered, or no JSON object)."""

    call: Call
    result: Mapping[str, Any] | None

    @property
    def succeeded(self) -> bool:
        """The tool answered, and not with an error."""
        return self.result is not None and "error" not in self.result


@dataclass(frozen=True)
class KnownOrder:
    """An order as a look-up showed it."""

    id: str
    item: str
    status: str


@dataclass(frozen=True)
class Request:
    """What a customer wants, by their own words."""

    text: str
    email: str | None
    address: str | None
    intent: str | None


@dataclass(frozen=True)
class Conversation:
    """The current case: the last customer message and all that was called since."""

    request: Request
    history: tuple[Answered, ...] = field(default=())

    def made(self, call: Call) -> list[Answered]:
        """Every time this very call was made."""
        return [a for a in self.history if a.call == call]

    def successes(self, name: str) -> Iterator[Answered]:
        """The calls of a tool that succeeded, oldest first."""
        return (a for a in self.history if a.call.name == name and a.succeeded)

    def orders(self) -> tuple[KnownOrder, ...] | None:
        """The customer's orders as the *first* successful look-up showed them; None before it."""
        for answered in self.successes("find_orders"):
            listed = (answered.result or {}).get("orders")
            lines = listed if isinstance(listed, list) else []
            found = (_ORDER.fullmatch(str(line)) for line in lines)
            return tuple(KnownOrder(m["id"], m["item"], m["status"]) for m in found if m)
        return None

    def known(self, tool: str, order_id: str, key: str) -> Any:
        """A fact that a look-up gave for an order, or None."""
        for answered in self.successes(tool):
            if answered.call.arguments.get("id") == order_id:
                return (answered.result or {}).get(key)
        return None


def read_request(text: str) -> Request:
    """Understand a customer by rules: address, e-mail, and the first phrase that is known."""
    email, address = _EMAIL.search(text), _ADDRESS.search(text)
    lowered = text.lower()
    intent = next((name for name, phrases in _PHRASES if any(phrase in lowered for phrase in phrases)), None)
    if address:
        intent = "combo" if intent == "cancel" else "address"
    return Request(text=text, email=email[0] if email else None, address=address[0] if address else None, intent=intent)


def read_conversation(messages: object) -> Conversation:
    """The current case of a chat: everything from the last user message on (worked examples may stand before it).

    Raises:
        UsageError: not a list of chat messages with a user message among them.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not all(isinstance(m, Mapping) for m in messages):
        raise UsageError("messages must be a list of objects", where="messages", fix="Send OpenAI chat messages.")
    starts = [i for i, m in enumerate(messages) if m.get("role") == "user"]
    if not starts:
        raise UsageError("there is no user message", where="messages", fix="Send the customer's words with role user.")
    case = messages[starts[-1] :]
    results = {str(m.get("tool_call_id")): _text(m) for m in case if m.get("role") == "tool"}
    calls = [call for m in case if m.get("role") == "assistant" for call in _calls(m)]
    history = tuple(Answered(call, _object(results.get(call_id, ""))) for call_id, call in calls)
    return Conversation(read_request(_text(case[0])), history)


def mentioned(orders: Sequence[KnownOrder], text: str) -> list[KnownOrder]:
    """The orders whose item the text names, in the order of the text."""
    lowered = text.lower()
    named = [(lowered.find(order.item.lower()), order) for order in orders]
    return [order for place, order in sorted(named, key=lambda pair: pair[0]) if place >= 0]


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _calls(message: Mapping[str, Any]) -> Iterator[tuple[str, Call]]:
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, Sequence) or not all(isinstance(c, Mapping) and isinstance(c.get("function"), Mapping) for c in calls):
        raise UsageError("tool_calls must be a list of function calls", where="messages", fix="Send OpenAI tool calls.")
    for call in calls:
        function = call["function"]
        arguments = function.get("arguments")
        yield str(call.get("id")), Call(str(function.get("name")), _object(arguments if isinstance(arguments, str) else "") or {})


def _object(text: str) -> Mapping[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
