"""Which run a request belongs to, when no header says so: its messages begin with those of an earlier request and the reply to it.

Pure. What is hashed is what every client sends back: role, text, and each call's id, name and arguments. Reasoning, unknown fields and
the spelling of JSON may differ between the reply as it was sent and as it returns.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import msgspec

from stillhouse.schemas.messages import Message

_encode = msgspec.json.Encoder(order="deterministic").encode
DIGEST = 16


def step_of(messages: Sequence[Message]) -> int:
    """The index of the step that answers these messages: how many of them are the assistant's."""
    return sum(message.role == "assistant" for message in messages)


def new_messages(messages: Sequence[Message]) -> tuple[Message, ...]:
    """What follows the last assistant message: what is new to the policy."""
    last = max((place for place, message in enumerate(messages) if message.role == "assistant"), default=-1)
    return tuple(messages[last + 1 :])


def prefix(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages up to the last reply, and with it; nothing in a first request."""
    return messages[: len(messages) - len(new_messages(messages))]


def chain_hash(route: str, tenant: str, messages: Iterable[Message]) -> bytes:
    """What a conversation so far is found by."""
    digest = blake2b(f"{tenant}\0{route}\0".encode(), digest_size=DIGEST)
    for message in messages:
        digest.update(_encode(_essence(message)))
    return digest.digest()


def _essence(message: Message) -> tuple[object, ...]:
    calls = [(call.id, call.name, call.raw_arguments if call.raw_arguments is not None else call.arguments) for call in message.tool_calls]
    return (message.role, message.text, calls, message.tool_call_id)
