"""The desk itself: eleven tools over one customer's orders.

Every call is answered, a wrong one with an error; success is verified by state and effects.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from stillhouse.examples.order_desk.tasks import DeskTask, Effect, Order
from stillhouse.examples.order_desk.tools import TOOLS
from stillhouse.schemas.errors import PermanentError

ENVIRONMENT = "order-desk/1"  # of TrajectoryStarted: a snapshot belongs to this version
_PARAMETERS: dict[str, frozenset[str]] = {t["function"]["name"]: frozenset(t["function"]["parameters"]["properties"]) for t in TOOLS}
_RULES = {"processing": "R-12", "shipped": "R-23", "delivered": "R-34", "cancelled": "R-45"}


class OrderState(msgspec.Struct, kw_only=True):
    """An order as it stands now."""

    id: str
    item: str
    status: str
    total: int
    location: str
    address: str | None = None
    refunded: bool = False
    return_open: bool = False
    replaced: bool = False
    escalated: bool = False


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that a desk has to remember between two calls. Restored only for the task it was taken of."""

    environment: str
    task_id: str
    orders: tuple[OrderState, ...]
    effects: tuple[Effect, ...]
    calls: int
    errors: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the task was solved, and in words why (not)."""

    success: bool
    reason: str


class Desk:
    """The shop for one task. Not shared between episodes."""

    def __init__(self, task: DeskTask) -> None:
        self._task = task
        self._orders = {order.id: _fresh(order) for order in task.orders}
        self._effects: list[Effect] = []
        self.calls = 0
        self.errors = 0

    def call(self, name: str, arguments: object) -> dict[str, Any]:
        """Answer one tool call.

        Nothing that a policy can send raises: an unknown tool, wrong arguments and a forbidden act give `{"error": …}`.
        """
        self.calls += 1
        result = self._answer(name, arguments)
        self.errors += "error" in result
        return result

    def snapshot(self) -> bytes:
        """The state as JSON; `resume` makes an equal desk of it."""
        state = Snapshot(
            environment=ENVIRONMENT,
            task_id=self._task.id,
            orders=tuple(self._orders.values()),
            effects=tuple(self._effects),
            calls=self.calls,
            errors=self.errors,
        )
        return msgspec.json.encode(state)

    @classmethod
    def resume(cls, task: DeskTask, data: bytes) -> "Desk":
        """The desk that `snapshot` was taken of.

        Raises:
            PermanentError: not a snapshot, of another task, or of another version of the desk.
        """
        try:
            state = msgspec.json.decode(data, type=Snapshot)
        except msgspec.MsgspecError as error:
            raise PermanentError(
                f"not a snapshot of an order desk: {error}", where=task.id, fix="Pass what Desk.snapshot() gave."
            ) from error
        if (state.environment, state.task_id) != (ENVIRONMENT, task.id):
            raise PermanentError(
                f"the snapshot is of {state.task_id} on {state.environment}",
                where=f"{task.id} on {ENVIRONMENT}",
                fix="Resume it with its own task.",
            )
        desk = cls(task)
        desk._orders = {order.id: order for order in state.orders}
        desk._effects = list(state.effects)
        desk.calls, desk.errors = state.calls, state.errors
        return desk

    def verify(self, replied: bool) -> Verdict:
        """Compare what happened with what was wanted: the effects (each once, in any order), the state that they lead to, and a reply."""
        done, want = sorted(self._effects), sorted(self._task.want)
        if missing := _minus(want, done):
            return Verdict(success=False, reason=f"not done: {_say(missing)}" + (f"; done: {_say(done)}" if done else ""))
        if surplus := _minus(done, want):
            return Verdict(success=False, reason=f"done unasked: {_say(surplus)}")
        if self._orders != _state_after(self._task):
            return Verdict(success=False, reason="the orders are not in the wanted state")
        if not replied:
            return Verdict(success=False, reason="no reply to the customer")
        return Verdict(success=True, reason="every wanted effect and no other")

    def _answer(self, name: str, arguments: object) -> dict[str, Any]:
        if name not in _PARAMETERS:
            return {"error": "unknown tool"}
        if not isinstance(arguments, Mapping) or frozenset(arguments) != _PARAMETERS[name]:
            return {"error": "bad arguments"}
        if "email" in arguments:
            return self._about_customer(name, str(arguments["email"]))
        order = self._orders.get(str(arguments["id"]))
        if order is None:
            return {"error": "no such order"}
        if name in _LOOK_UPS:
            return _LOOK_UPS[name](order)
        detail = str(arguments.get("amount", arguments.get("address", "")))
        if refusal := _ACTS[name](order, detail):
            return {"error": refusal}
        self._effects.append(Effect(tool=name, order_id=order.id, detail=detail))
        return {"ok": True}

    def _about_customer(self, name: str, email: str) -> dict[str, Any]:
        if email.lower() != self._task.email:
            return {"error": "no customer"}
        if name == "get_customer":
            return {"member_since": self._task.member_since}
        return {"orders": [f"{order.item}: {order.status}, id {order.id}" for order in self._orders.values()]}


def _fresh(order: Order) -> OrderState:
    return OrderState(id=order.id, item=order.item, status=order.status, total=order.total, location=order.location)


def _track(order: OrderState) -> dict[str, Any]:
    return {"location": order.location if order.status == "shipped" else "home" if order.status == "delivered" else "warehouse"}


def _get_payment(order: OrderState) -> dict[str, Any]:
    return {"total": order.total}


def _get_rule(order: OrderState) -> dict[str, Any]:
    return {"rule": _RULES[order.status]}


# An act changes the order and returns None, or changes nothing and returns why not.


def _cancel(order: OrderState, _: str) -> str | None:
    if order.status != "processing":
        return f"order is {order.status}"
    order.status = "cancelled"
    return None


def _set_address(order: OrderState, address: str) -> str | None:
    if order.status != "processing":
        return f"order is {order.status}"
    order.address = address
    return None


def _refund(order: OrderState, amount: str) -> str | None:
    if order.status not in ("shipped", "delivered") or order.refunded or amount != str(order.total):
        return "refund not allowed"
    order.refunded = True
    return None


def _open_return(order: OrderState, _: str) -> str | None:
    if order.status not in ("shipped", "delivered"):
        return "not shipped yet" if order.status == "processing" else f"order is {order.status}"
    if order.return_open:
        return "already open"
    order.return_open = True
    return None


def _replace(order: OrderState, _: str) -> str | None:
    if order.status != "delivered":
        return f"order is {order.status}"
    if order.replaced:
        return "already replaced"
    order.replaced = True
    return None


def _escalate(order: OrderState, _: str) -> str | None:
    if order.escalated:
        return "already escalated"
    order.escalated = True
    return None


_LOOK_UPS: dict[str, Callable[[OrderState], dict[str, Any]]] = {"track": _track, "get_payment": _get_payment, "get_rule": _get_rule}
_ACTS: dict[str, Callable[[OrderState, str], str | None]] = {
    "cancel": _cancel,
    "set_address": _set_address,
    "refund": _refund,
    "open_return": _open_return,
    "replace": _replace,
    "escalate": _escalate,
}


def _state_after(task: DeskTask) -> dict[str, OrderState]:
    orders = {order.id: _fresh(order) for order in task.orders}
    for effect in task.want:
        refusal = _ACTS[effect.tool](orders[effect.order_id], effect.detail)
        if refusal:
            raise PermanentError(f"the wanted effect {effect.tool} is not possible: {refusal}", where=task.id, fix="Make the task anew.")
    return orders


def _minus(left: list[Effect], right: list[Effect]) -> list[Effect]:
    rest = list(right)
    missing = []
    for effect in left:
        if effect in rest:
            rest.remove(effect)
        else:
            missing.append(effect)
    return missing


def _say(effects: list[Effect]) -> str:
    return ", ".join(" ".join(part for part in (e.tool, e.order_id, e.detail) if part) for e in effects)
