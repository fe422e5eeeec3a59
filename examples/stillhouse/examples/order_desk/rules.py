"""The shop's rules as the stand-in teacher follows them: from what is known so far to the next call, or to the reply."""

from dataclasses import dataclass

from stillhouse.examples.order_desk.reading import Call, Conversation, KnownOrder, mentioned

GIVE_UP_AFTER = 2  # the same call, failed so often, is not tried again


@dataclass(frozen=True)
class Goal:
    """One thing to settle for one order: cancel, address, refund, replace or lost."""

    intent: str
    order: KnownOrder


@dataclass(frozen=True)
class Reply:
    """Words to the customer; they end the case."""

    text: str


Step = Call | Reply


def first_look(case: Conversation) -> Step | None:
    """The look-up that everything starts with; None when the orders are known."""
    if case.orders() is not None:
        return None
    if case.request.email is None:
        return Reply("Please tell me the e-mail address of your order.")
    call = Call("find_orders", {"email": case.request.email})
    if len(case.made(call)) >= GIVE_UP_AFTER:
        return Reply("I am sorry, I cannot find orders under that address.")
    return call


def goals(case: Conversation) -> list[Goal]:
    """What the customer asked for, tied to the orders that they named. Empty when the words or the items are not understood."""
    request, named = case.request, mentioned(case.orders() or (), case.request.text)
    if not named or request.intent is None:
        return []
    if request.intent != "combo":
        return [Goal(request.intent, named[0])]
    if len(named) < 2:
        return []
    # The order that is to be sent is named right before its new address; the other one is to be cancelled.
    before = mentioned(named, request.text[: request.text.find(request.address or "")])
    sent = before[-1] if before else named[-1]
    return [Goal("cancel", next(o for o in named if o != sent)), Goal("address", sent)]


def act_for(goal: Goal, case: Conversation) -> Call:
    """The next call that the rules name for a goal: a look-up that the act depends on, or the act."""
    by_id = {"id": goal.order.id}
    processing = goal.order.status == "processing"
    match goal.intent:
        case "cancel":
            return Call("cancel" if processing else "open_return", by_id)
        case "address":
            return Call("set_address", {**by_id, "address": case.request.address}) if processing else Call("escalate", by_id)
        case "replace":
            return Call("replace", by_id)
        case "lost":
            location = case.known("track", goal.order.id, "location")
            if location is None:
                return Call("track", by_id)
            if location != "lost":
                return Call("escalate", by_id)
    total = case.known("get_payment", goal.order.id, "total")
    return Call("get_payment", by_id) if total is None else Call("refund", {**by_id, "amount": total})


def next_step(wanted: list[Goal], case: Conversation) -> Step:
    """The first goal's next call that has not succeeded yet; the reply when there is none left."""
    done: list[tuple[Goal, Call]] = []
    for goal in wanted:
        act = act_for(goal, case)
        made = case.made(act)
        if any(a.succeeded for a in made):
            done.append((goal, act))
        elif len(made) >= GIVE_UP_AFTER:
            return Reply(f"I am sorry, I could not settle order {goal.order.id}.")
        else:
            return act
    return Reply(_closing(done))


def _closing(done: list[tuple[Goal, Call]]) -> str:
    if not done:
        return "I am sorry, I do not understand which order this is about."
    if len(done) > 1:
        return "Both changes are done."
    goal, act = done[0]
    return _CLOSINGS[goal.intent, act.name].format(id=goal.order.id)


_CLOSINGS = {
    ("cancel", "cancel"): "Order {id} is cancelled.",
    ("cancel", "open_return"): "Order {id} already shipped, so I opened a return.",
    ("address", "set_address"): "Order {id} will go to the new address.",
    ("address", "escalate"): "Order {id} already shipped, the courier team will call you.",
    ("refund", "refund"): "Order {id} is refunded.",
    ("replace", "replace"): "A new item for order {id} is on its way.",
    ("lost", "refund"): "Order {id} was lost, so I refunded it.",
    ("lost", "escalate"): "Order {id} is on a van, the courier team will call you.",
}
