"""What a policy is told about the desk: the tools as OpenAI definitions and the shop's rules as a system prompt."""

from typing import Any

EMAIL_PATTERN = r"^[^@\s]+@[^@\s]+\.[^@\s]+$"

_EMAIL = {"type": "string", "pattern": EMAIL_PATTERN, "description": "The customer's e-mail address, as they wrote it."}
_ID = {"type": "string", "pattern": "^[0-9]{4}$", "description": "The four digits of an order, as find_orders shows them."}
_ADDRESS = {"type": "string", "minLength": 8, "description": "Number, street and city, as the customer wrote them."}
_AMOUNT = {"type": "integer", "minimum": 1, "description": "Whole dollars; must be the order's total."}


def _tool(name: str, description: str, read_only: bool, **properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
        "annotations": {"readOnlyHint": read_only},
    }


TOOLS: tuple[dict[str, Any], ...] = (
    _tool("find_orders", "All orders of a customer: item, status, id.", True, email=_EMAIL),
    _tool("get_customer", "The year since when the customer has an account.", True, email=_EMAIL),
    _tool("get_payment", "What was paid for an order.", True, id=_ID),
    _tool("track", "Where the parcel of an order is.", True, id=_ID),
    _tool("get_rule", "Number of the shop's rule for an order as it stands.", True, id=_ID),
    _tool("cancel", "Cancel an order that is processing.", False, id=_ID),
    _tool("refund", "Pay the whole amount of a shipped or delivered order back.", False, id=_ID, amount=_AMOUNT),
    _tool("open_return", "Let the customer send a shipped or delivered order back.", False, id=_ID),
    _tool("replace", "Send the item of a delivered order once more.", False, id=_ID),
    _tool("set_address", "Change where a processing order goes.", False, id=_ID, address=_ADDRESS),
    _tool("escalate", "Hand an order to the courier team, who will call the customer.", False, id=_ID),
)
READ_ONLY: frozenset[str] = frozenset(t["function"]["name"] for t in TOOLS if t["annotations"]["readOnlyHint"])

SYSTEM_PROMPT = """You work at the order desk of a shop. Call one tool at a time.
When the customer's case is settled, reply in one sentence.
Rules:
1. Look the customer's orders up by e-mail first. Act on the item that the customer names, and on no other.
2. Cancel: a processing order is cancelled. A shipped or delivered one cannot be: open a return.
3. New address: a processing order gets it. A shipped one cannot be redirected: escalate.
4. Broken or faulty, and the customer wants money: look the payment up, then refund exactly that amount.
5. Broken or faulty, and the customer wants the item: replace it.
6. Not arrived: track it. A lost parcel is refunded (look the payment up first); one on a van is escalated.
7. A customer may ask for two things: do both.
8. A call that fails changed nothing: correct it or take the step that the rules name instead. Never do anything that nobody asked for."""
