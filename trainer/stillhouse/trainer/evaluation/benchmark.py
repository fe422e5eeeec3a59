"""What a benchmark is: tasks, and a way to run one of them with a policy that answers over HTTP.

A benchmark never knows which model it talks to; a policy never knows which task it is given.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from stillhouse.schemas.events import Usage
from stillhouse.schemas.messages import Message


class TokenPrice(msgspec.Struct, frozen=True, kw_only=True, tag="tokens"):
    """US dollars for a million tokens, as a provider bills them. Cached input costs as other input when no price is given."""

    input_usd_per_mtok: float
    output_usd_per_mtok: float
    cached_usd_per_mtok: float | None = None


class ListPrice(msgspec.Struct, frozen=True, kw_only=True, tag="list"):
    """The published price of `model` as the package genai-prices lists it."""

    model: str
    provider: str | None = None


class ReplicaPrice(msgspec.Struct, frozen=True, kw_only=True, tag="replica"):
    """US dollars for an hour of one replica: a server of one's own, paid by time and not by token."""

    usd_per_hour: float
    replicas: int = 1


Price = TokenPrice | ListPrice | ReplicaPrice


class ChatPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A model behind an OpenAI-compatible address.

    Attributes:
        name: what reports call it (`teacher`, `base`, a student's name).
        base_url: the address up to and with `/v1`.
        model: the model name to send.
        shots: messages that a benchmark puts between the system prompt and the first user message.
    """

    name: str
    base_url: str
    model: str
    api_key: str = "none"
    price: Price
    temperature: float = 0.0
    max_tokens: int = 256
    shots: tuple[Message, ...] = ()


class BenchTask(msgspec.Struct, frozen=True, kw_only=True):
    """One task. `payload` is the benchmark's own and is read by nobody else."""

    id: str
    family: str
    part: str
    payload: object


class Episode(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one task, verified by the environment.

    Attributes:
        reply: the policy's last words to the user; empty when it gave none.
        steps: assistant messages.
        format_errors: assistant messages that were neither a call nor a reply (`x-stillhouse-format-error`).
        error_calls: calls that the environment answered with an error.
        usage: tokens of all requests of the episode.
        latency_s: one figure a request, in seconds.
        messages: the whole conversation in OpenAI's form.
        outcome_reason: why it counts as it does, in words.
    """

    task_id: str
    family: str
    part: str
    success: bool
    reply: str
    steps: int
    format_errors: int
    error_calls: int
    usage: Usage
    latency_s: list[float]
    messages: list[dict[str, Any]]
    outcome_reason: str


class Benchmark(Protocol):
    """Tasks and an environment that verifies what a policy did with them."""

    name: str

    def tasks(self, part: str) -> Sequence[BenchTask]:
        """The tasks of one part (for example `seen`), the same at every call.

        Raises:
            UsageError: there is no such part.
        """
        ...

    async def run(self, task: BenchTask, policy: ChatPolicy) -> Episode:
        """One episode in a fresh environment. Safe to call again for the same task, and at the same time as others.

        Errors of the policy's server (`openai.APIError`, `RetryableError`, `OSError`) are raised, not counted: whoever runs the
        benchmark retries those that may pass.
        """
        ...
