"""What makes the stand-in teacher like a real one: it errs on some tasks and takes detours on many, by a hash of the customer's words.

Rates are per task unless said otherwise. The same words give the same habits: the teacher has no memory and no clock.
"""

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from stillhouse.examples.order_desk.reading import Call, Conversation, KnownOrder
from stillhouse.examples.order_desk.rules import Goal, Reply, Step

MISTAKE_RATE = 0.06
FLAW_RATE = 0.12  # per call: wrong arguments at first, corrected after the tool's error
LOOK_UP_RATE = 0.32
REPEAT_RATE = 0.04
DEAD_END_RATE = 0.04  # of tasks whose order has shipped: the forbidden act is tried before the allowed one

_ACTS = frozenset({"cancel", "refund", "open_return", "replace", "set_address", "escalate"})
_OTHER_ACT = {"open_return": "cancel", "escalate": "set_address"}


def chance(text: str, label: str) -> float:
    """A number in [0, 1) that belongs to these words and this label."""
    return int.from_bytes(hashlib.sha256(f"{label}\0{text}".encode()).digest()[:7], "big") / 2**56


def pick(text: str, label: str, count: int) -> int:
    """A number in [0, count) that belongs to these words and this label."""
    return int(chance(text, label) * count)


@dataclass(frozen=True)
class Mistake:
    """What goes wrong on a task, if anything: `swap`, `other_item`, `half` or `early`."""

    kind: str | None

    @classmethod
    def of(cls, case: Conversation) -> "Mistake":
        """The mistake that belongs to these words. Each kind is one that the request leaves room for."""
        text, intent = case.request.text, case.request.intent
        if chance(text, "mistake") >= MISTAKE_RATE:
            return cls(None)
        kinds = ["other_item", "early"]
        if intent in ("refund", "replace"):
            kinds = ["swap", "swap", *kinds]
        elif intent == "combo":
            kinds = ["half"]
        return cls(kinds[pick(text, "kind of mistake", len(kinds))])

    def bend(self, wanted: list[Goal], case: Conversation) -> list[Goal]:
        """The goals as they were (mis)understood."""
        if self.kind == "half":
            return wanted[:1]
        if self.kind == "swap":
            return [replace(g, intent={"refund": "replace", "replace": "refund"}.get(g.intent, g.intent)) for g in wanted]
        if self.kind == "other_item":
            return [replace(g, order=_look_alike(g.order, case.orders() or ())) for g in wanted]
        return wanted

    def stop(self, step: Step, wanted: list[Goal], case: Conversation) -> Step:
        """`early`: the reply comes where the act should; an order that has shipped is first run into."""
        if self.kind != "early" or not isinstance(step, Call) or step.name not in _ACTS:
            return step
        blocked = _blocked(step, case)
        if blocked and not case.made(blocked):
            return blocked
        return Reply(f"I am sorry, nothing can be changed on order {wanted[0].order.id} now.")


def _look_alike(order: KnownOrder, orders: Collection[KnownOrder]) -> KnownOrder:
    """Another order, one that shares a word of the item's name before all others."""
    words = set(order.item.split())
    others = sorted((o for o in orders if o != order), key=lambda o: (-len(words & set(o.item.split())), o.id))
    return others[0] if others else order


def detour(step: Step, case: Conversation, offered: Collection[str]) -> Step:
    """The step itself, or what this teacher does before it: a look-up that nobody needs, a repeat, a dead end, a flawed first try."""
    if not isinstance(step, Call):
        return step
    text = case.request.text
    if step.name in _ACTS and not any(a.call.name in _ACTS for a in case.history):
        for extra in (_needless_look_up(step, case), _repeat(case), _dead_end(step, case)):
            if extra is not None and extra.name in offered:
                return extra
    if chance(text, f"flaw {step.name}") < FLAW_RATE and not any(a.call.name == step.name for a in case.history):
        return _flawed(step, text)
    return step


def _needless_look_up(step: Call, case: Conversation) -> Call | None:
    text, intent = case.request.text, case.request.intent
    if chance(text, "look-up") >= LOOK_UP_RATE:
        return None
    by_id = {"id": step.arguments.get("id")}
    calls = [Call("get_customer", {"email": case.request.email}), Call("get_rule", by_id)]
    if intent != "lost":
        calls.append(Call("track", by_id))
        if intent != "refund":
            calls += [Call("get_payment", by_id)] * 2
    call = calls[pick(text, "kind of look-up", len(calls))]
    return None if case.made(call) else call


def _repeat(case: Conversation) -> Call | None:
    looks = list(case.successes("find_orders"))
    return looks[0].call if chance(case.request.text, "repeat") < REPEAT_RATE and len(looks) == 1 else None


def _dead_end(step: Call, case: Conversation) -> Call | None:
    blocked = _blocked(step, case)
    return blocked if blocked and chance(case.request.text, "dead end") < DEAD_END_RATE and not case.made(blocked) else None


def _blocked(step: Call, case: Conversation) -> Call | None:
    """The act that the customer named and the rules forbid here, if `step` is what the rules put in its place."""
    name = _OTHER_ACT.get(step.name)
    if name is None or case.request.intent not in ("cancel", "address"):
        return None
    return Call(name, {**step.arguments, "address": case.request.address} if name == "set_address" else dict(step.arguments))


def _flawed(step: Call, text: str) -> Call:
    """The call with one thing wrong: a misspelt value, a wrong key, a missing argument, a wrong type."""
    first = next(iter(step.arguments))
    value, rest = str(step.arguments[first]), {k: v for k, v in step.arguments.items() if k != first}
    spoilt: list[Callable[[], dict[str, Any]]] = [lambda: {f"order_{first}": value, **rest}]
    if first == "email":
        spoilt += [lambda: {first: value.replace(".", "", 1), **rest}, lambda: {first: value[0] + value[2:], **rest}]
    else:
        spoilt += [lambda: {first: value[:-1], **rest}, lambda: {first: f"#{value}", **rest}]
    if "address" in rest:
        spoilt.append(lambda: {first: value})
    if "amount" in rest:
        spoilt.append(lambda: {first: value, "amount": f"{rest['amount']}.00"})
    return Call(step.name, spoilt[pick(text, f"kind of flaw {step.name}", len(spoilt))]())
