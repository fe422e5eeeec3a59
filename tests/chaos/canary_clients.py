"""Agents that talk through the gateway with the stock OpenAI client, and remember every answer they got."""

import asyncio
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import msgspec
from openai import APIConnectionError, AsyncOpenAI, ConflictError

from tests.chaos.canary_parts import breath
from tests.serving.canary_process.world import ROUTE
from tests.support.engines import SYSTEM

_EVENTS = uuid.uuid5(uuid.NAMESPACE_URL, "stillhouse:gateway")
STEPS = 2


class Answer(msgspec.Struct, frozen=True):
    """One complete reply as its client got it. Times are seconds since the epoch."""

    run: str
    index: int
    began: float
    variant: str
    reason: str
    text: str
    request_id: str

    @property
    def event_id(self) -> str:
        """The id that the step of this reply must have."""
        return str(uuid.uuid5(_EVENTS, f"{self.request_id}/step"))


class Failure(msgspec.Struct, frozen=True):
    """A request that nobody answered."""

    began: float
    ended: float
    error: str


@dataclass
class Talk:
    """A run of its own: the conversation so far, and who took part."""

    run: str
    messages: list[Any] = field(default_factory=lambda: [{"role": "system", "content": SYSTEM}])
    variants: list[str] = field(default_factory=list)

    @property
    def index(self) -> int:
        """Of the step that is next."""
        return len(self.variants)


class Clients:
    """Callers of one gateway.

    Attributes:
        answers: every complete reply.
        failures: every request without one. Its step is asked for again.
        outcomes: what each judged run was told to be.
        spoilt: from when on what a student had a part in is judged a failure.
    """

    def __init__(self, url: str) -> None:
        self._api = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60.0)
        self._names, self._stop = count(), asyncio.Event()
        self.answers: list[Answer] = []
        self.failures: list[Failure] = []
        self.outcomes: dict[str, str] = {}
        self.spoilt = False

    async def work(self) -> None:
        """Run after run, until stopped."""
        while not self._stop.is_set():
            talk = self.talk()
            while talk.index < STEPS:
                await self.ask(talk)
                await breath()
            await self.judge(talk)

    def talk(self) -> Talk:
        """A new run."""
        return Talk(f"run-{next(self._names)}")

    async def ask(self, talk: Talk) -> Answer:
        """One step, asked for until it is answered."""
        talk.messages.append({"role": "user", "content": f"Where is {20 + (len(talk.run) + talk.index) % 12}?"})
        headers = {"x-stillhouse-trajectory": talk.run}
        completions = self._api.chat.completions.with_raw_response
        while True:
            began = time.time()
            try:
                reply = await completions.create(model=ROUTE, messages=talk.messages, max_tokens=16, extra_headers=headers)
            except APIConnectionError as error:
                await self._failed(began, error)
                continue
            break
        text, told = reply.parse().choices[0].message.content or "", reply.headers
        found = Answer(
            talk.run, talk.index, began, told["x-stillhouse-variant"], told.get("x-stillhouse-reason", ""), text, told["x-request-id"]
        )
        self.answers.append(found)
        talk.messages.append({"role": "assistant", "content": text})
        talk.variants.append(found.variant)
        return found

    async def judge(self, talk: Talk) -> None:
        """Tell the outcome until somebody takes it. A reply that got lost may have been the one that took it."""
        outcome = "failure" if self.spoilt and set(talk.variants) != {"teacher"} else "success"
        body, lost = {"trajectory": talk.run, "outcome": outcome, "source": "verifier"}, False
        while True:
            began = time.time()
            try:
                await self._api.post("/stillhouse/outcomes", body=body, cast_to=object)
            except APIConnectionError as error:
                lost = True
                await self._failed(began, error)
                continue
            except ConflictError:
                assert lost, f"nobody had judged {talk.run}"
            self.outcomes[talk.run] = outcome
            return

    def by_variant(self) -> Counter[str]:
        """How many replies each variant gave."""
        return Counter(answer.variant for answer in self.answers)

    def stop(self) -> None:
        """Begin no further run."""
        self._stop.set()

    async def close(self) -> None:
        """Hang up."""
        await self._api.close()

    async def _failed(self, began: float, error: APIConnectionError) -> None:
        self.failures.append(Failure(began, time.time(), f"{type(error).__name__}: {error.__cause__!r}"))
        await breath()
