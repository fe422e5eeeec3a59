"""The stand-in teacher's thinking aloud: 100-300 tokens a step, the way a reasoning model fills its hidden channel.

It speaks of the request, of the order and of the rules; never of what a needless look-up showed, for nobody thinks of that again.
"""

from stillhouse.examples.order_desk.habits import chance, pick
from stillhouse.examples.order_desk.reading import Call, Conversation, mentioned
from stillhouse.examples.order_desk.rules import Reply, Step

_OPENINGS = (
    "Let me think about what the customer needs here before I touch anything.",
    "I should be careful with this one and go through it step by step.",
    "First I will consider what was asked and what I already know.",
)
_DOUBTS = (
    "There may be several orders under the same name, so guessing would be wrong, and an act on the wrong one cannot be taken back.",
    "It would be tempting to act at once, but the rules depend on how far the order has come, and that has to be looked at.",
    "I could also ask the customer again, but everything that is needed has been said, and another question would only cost time.",
    "The desk's rules are clear about what may be done at which stage, so I will hold on to them and not promise anything else.",
)
_CLOSINGS = (
    "One call at a time is the rule here, so this is the one that I will make now, and its answer decides what follows.",
    "That is the smallest step that moves the case on; if it fails, nothing has changed and I can correct it.",
    "I am fairly confident in this, and it can be checked against the answer that the tool gives.",
)
_PURPOSE = {
    "find_orders": "Before anything else the orders of this customer have to be listed.",
    "get_payment": "I want to have the payment of this order in front of me.",
    "get_customer": "It does not hurt to know the customer a little better.",
    "get_rule": "Let me make sure which of the shop's rules this comes under.",
    "track": "I want to see where the parcel is.",
    "cancel": "The customer does not want this order any more, so cancelling is the step to take.",
    "refund": "The customer should have the whole amount back, neither more nor less.",
    "open_return": "What has left the house cannot be called back, but it can be returned.",
    "replace": "The customer wants the item itself, so it has to be sent once more.",
    "set_address": "The parcel should go elsewhere, so the order needs its new address.",
    "escalate": "This cannot be settled from the desk; the courier team has to take it over.",
}


def think(step: Step, case: Conversation) -> str:
    """What the teacher thinks before this step."""
    text = case.request.text
    turn = str(len(case.history))

    def one(of: tuple[str, ...], label: str) -> str:
        return of[pick(text, f"{label} {turn}", len(of))]

    parts = [one(_OPENINGS, "opening"), f"The customer wrote: '{text}'", _state(case)]
    if case.history and not case.history[-1].succeeded:
        parts.append("The last call failed. Let me look at what was wrong with it before I go on.")
    first = pick(text, f"doubt {turn}", len(_DOUBTS))
    parts.append(_DOUBTS[first])
    if chance(text, f"second doubt {turn}") < 0.5:
        parts.append(_DOUBTS[(first + 1) % len(_DOUBTS)])
    if isinstance(step, Reply):
        parts.append("There is nothing more to do with the tools, so it is time to tell the customer in one plain sentence how it stands.")
    else:
        parts += [_why(step), one(_CLOSINGS, "closing")]
    return " ".join(parts)


def _state(case: Conversation) -> str:
    orders = case.orders()
    if orders is None:
        return "I do not know their orders yet; the message gives me an address to look under and names what it is about."
    named = mentioned(orders, case.request.text)
    listing = " and ".join(f"the {o.item} is order {o.id}, which is {o.status}" for o in named)
    return f"Their orders are known: {listing or 'none of them is the one that was named'}."


def _why(call: Call) -> str:
    return f"{_PURPOSE.get(call.name, 'This tool fits.')} The tool for that is {call.name}."
