"""What customers write. `USUAL` is what training sees; `OTHER` says the same in ways that occur nowhere in training.

`{item}`, `{other}` and `{address}` are filled in by the task; `{ask}` and `{email}` by the frame around it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wordings:
    """Templates of one part: what is asked, and how the customer says who they are."""

    asks: dict[str, tuple[str, ...]]
    frames: tuple[str, ...]


USUAL = Wordings(
    asks={
        "cancel": (
            "Please cancel my {item}.",
            "I want to cancel the {item}.",
            "I no longer need the {item}, cancel it.",
            "Cancel the {item} order please.",
        ),
        "address": (
            "Send my {item} to {address} instead.",
            "Please change the address of the {item} to {address}.",
            "I moved, ship the {item} to {address}.",
        ),
        "refund": (
            "The {item} came broken, refund me.",
            "My {item} is faulty, I want my money back.",
            "I want a refund for the {item}, it is damaged.",
        ),
        "replace": (
            "The {item} came broken, send a new one.",
            "My {item} is faulty, please replace it.",
            "I need a replacement for the {item}, it is damaged.",
        ),
        "lost": (
            "My {item} never arrived.",
            "Where is my {item}? It is very late.",
            "I am still waiting for the {item}.",
        ),
        "combo": (
            "Cancel the {item} and send the {other} to {address}.",
            "Please cancel my {item}. Also ship the {other} to {address}.",
        ),
    },
    # in angle brackets, as mail clients write an address: it then has the same tokens here and in a call's argument
    frames=("{ask} <{email}>", "Hi, <{email}> here. {ask}", "{ask} My email is <{email}>"),
)

OTHER = Wordings(
    asks={
        "cancel": (
            "Could you call off my purchase of the {item}?",
            "Changed my mind about that {item}; stop it before it goes out.",
            "Kindly withdraw whatever I bought under {item}.",
        ),
        "address": (
            "New home: {address}. Redirect the {item} there.",
            "Reroute that {item}, its destination should now be {address}.",
            "We relocated, so the {item} has to go to {address}.",
        ),
        "refund": (
            "Got the {item} today with cracks everywhere. Reimburse me.",
            "That {item} does not work at all; pay me back.",
            "Unhappy: the {item} turned up smashed. Return what I paid.",
        ),
        "replace": (
            "Got the {item} today with cracks everywhere. Swap it for another.",
            "That {item} does not work at all; exchange it.",
            "The {item} turned up smashed, could I have a fresh one?",
        ),
        "lost": (
            "Weeks, and no sign of the {item}.",
            "No parcel yet, what happened to that {item}?",
            "Nobody brought the {item} so far.",
        ),
        "combo": (
            "Two things: redirect the {other} towards {address}, while the {item} should be called off.",
            "Drop the {item} entirely; that {other}, however, belongs at {address}.",
        ),
    },
    frames=("<{email}> writes: {ask}", "Hello! {ask} Reach me at <{email}>", "{ask} (account <{email}>)"),
)
