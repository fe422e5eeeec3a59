"""The handle of one run."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import quote
from uuid import UUID

from stillhouse.schemas.events import Outcome, Policy, Task, Usage
from stillhouse.sdk.handover import without_surrogates
from stillhouse.sdk.stats import Refusal

# Header values are printable ASCII; the percent sign is encoded too, so that decoding gives the id back.
_SAFE = "".join(chr(code) for code in range(33, 127) if chr(code) != "%")


class Take(Protocol):
    """Where a run hands its events over."""

    def __call__(self, kind: str, trajectory_id: str, fields: Any, policy: Policy | None, refuse: Refusal | None = None, /) -> str | None:
        """Gives the event id, or None when the event was refused."""
        ...


class Trajectory:
    """One run of an agent. Made by `Client.trajectory`; use it from one thread or task at a time.

    As a context manager (`with` and `async with`) it ends itself: aborted after an exception, which goes on, else with an unknown outcome.
    """

    def __init__(
        self,
        take: Take,
        trajectory_id: str,
        task: str | Mapping[str, Any] | Task | None,
        family: str | None,
        policy: Policy | None,
        traceparent: str | None,
    ) -> None:
        self.id = trajectory_id
        self._take, self._task, self._family, self._policy, self._traceparent = take, task, family, policy, traceparent
        self._steps = 0
        self._ended = self._by_gateway = False
        self._watch: Callable[[str, dict[str, Any]], None] = lambda kind, fields: None

    def watch(self, saw: Callable[[str, dict[str, Any]], None]) -> None:
        """Tell somebody the kind and the fields of each event that this run hands over from now on."""
        self._watch = saw

    def send(self, kind: str, fields: dict[str, Any], policy: Policy | None = None) -> str | None:
        """Hand over one event of this run."""
        if self._traceparent is not None:
            fields["traceparent"] = self._traceparent
        self._watch(kind, fields)
        return self._take(kind, self.id, fields, policy or self._policy)

    def step(
        self,
        action: Any,
        observation: Any = None,
        *,
        state: Any = None,
        usage: Usage | Mapping[str, Any] | Any = None,
        cost_micro_usd: int | None = None,
        latency_ms: float | None = None,
        error: str | BaseException | None = None,
        logprobs: Any = None,
        policy: Policy | None = None,
    ) -> str | None:
        """One step: what the policy did, and what answered.

        Args:
            action: the assistant's message: a `Message`, an OpenAI message (dict or object), a text, a `ToolCall` or several.
            observation: what answered: messages, `ToolResult`s, or the bare results of the action's calls in their order.
            state: the messages that were *new* to the policy before it acted; never the whole conversation.
            usage: token counts, ours or OpenAI's.
            cost_micro_usd: millionths of a dollar.
            latency_ms: of the model's answer.
            error: what went wrong in this step.
            logprobs: top-k log-probabilities as the upstream returned them.
            policy: who acted, when it is not the run's policy.

        Returns:
            The event id, or None when the event was refused (counted in `Client.stats`).
        """
        if self._by_gateway:
            return self._take("step", self.id, None, None, Refusal.GATEWAY_STEPS)
        index, self._steps = self._steps, self._steps + 1
        fields = {
            "index": index,
            "action": action,
            "observation": observation,
            "state": state,
            "usage": usage,
            "cost_micro_usd": cost_micro_usd,
            "latency_ms": latency_ms,
            "error": error,
            "logprobs": logprobs,
        }
        return self.send("step", fields, policy)

    def end(self, outcome: Outcome | str | bool | None = None, *, reward: float | None = None, verifier: str | None = None) -> str | None:
        """The run is over. A second call is refused and counted.

        Args:
            outcome: success, failure, aborted, unknown; or True and False for the first two.
            reward: any number; success is not `reward >= 1`.
            verifier: who says so.

        Returns:
            The event id, or None when the event was refused.
        """
        if self._ended:
            return self._take("end", self.id, None, None, Refusal.AFTER_END)
        self._ended = True
        steps = None if self._by_gateway else self._steps  # the gateway's steps are not counted here
        return self.send("end", {"steps": steps, "outcome": outcome, "reward": reward, "verifier": verifier})

    def feedback(self, **judgement: Any) -> str | None:
        """`Client.feedback` for this run."""
        fields = {"outcome": None, "reward": None, "source": None, **judgement}
        return self._take("feedback", self.id, fields, None)

    def openai_headers(self) -> dict[str, str]:
        """Headers for requests through the gateway, which then sends the steps; this client sends start, end and feedback.

        Values that are not printable ASCII are percent-encoded. What the task does not name, or names by
        neither text nor number, is left out.
        """
        self._by_gateway = True
        task = self._task
        names: Mapping[str, Any] = (
            {"id": task.id, "family": task.family} if isinstance(task, Task) else task if isinstance(task, Mapping) else {}
        )
        values = {"trajectory": self.id, "task": names.get("id"), "family": names.get("family") or self._family}
        # Surrogates become what they became in the events: both ways in must name one run.
        texts = {name: without_surrogates(str(value)) for name, value in values.items() if isinstance(value, str | int | UUID)}
        return {f"x-stillhouse-{name}": quote(text, safe=_SAFE) for name, text in texts.items()}

    def __enter__(self) -> Self:
        """The handle itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End, unless `end` was called."""
        if not self._ended:
            self.end(Outcome.UNKNOWN if kind is None else Outcome.ABORTED)

    async def __aenter__(self) -> Self:
        """The handle itself."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End, unless `end` was called. Nothing here waits."""
        self.__exit__(kind, error, trace)
