"""A server of students over HTTP: `stillhouse-student`, vLLM, or another of vLLM's form. The gateway renders; the engine sees token ids."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.openai import message_to_openai
from stillhouse.schemas.student_folder import ChangedError
from stillhouse.serving.gateway.backend import Attestation, Call, ContextFullError, EngineError, OnText, Reply, Verdict
from stillhouse.serving.gateway.engine_proof import prove
from stillhouse.serving.gateway.engine_reply import Written, request_body, written
from stillhouse.serving.gateway.engine_students import Student, read_student
from stillhouse.serving.gateway.engine_wire import EngineRefusedError, EngineWire, Listed, NotServedError

ATTEST_EVERY_S, WATCH_EVERY_S, WARM_S = 3600.0, 2.0, 300.0
RENDERED_HERE = 20_000
"""Characters of a request that are rendered on the event loop, in a millisecond or two; more go to a thread."""
log = structlog.get_logger()


@dataclass
class _Held:
    """A student that the engine was asked to load. `attested_at` is None while what is served under its name is not known."""

    student: Student
    context: int
    attested_at: float | None = None


class HttpEngine:
    """Students of one engine. It is watched from the first `load` on: after a restart nothing is ready until it was attested again.

    Args:
        url: the engine's address, with or without `/v1`.
        students: the folder of students; the engine must see it under the same path.
        clock: seconds.
        attest_every_s: between two attestations of a student that is served.
        watch_every_s: between two looks at whether the engine is still the same.
    """

    def __init__(
        self,
        url: str,
        students: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        attest_every_s: float = ATTEST_EVERY_S,
        watch_every_s: float = WATCH_EVERY_S,
    ) -> None:
        self.url = url
        self.attestations: dict[str, Attestation] = {}
        self._students, self._clock = students, clock
        self._attest_every_s, self._watch_every_s = attest_every_s, watch_every_s
        self._wire = EngineWire(url)
        self._held: dict[str, _Held] = {}
        self._moving = asyncio.Lock()
        self._refused: set[str] = set()
        self._started = ""
        self._look_now = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    def covers(self, student: str, call: Call) -> bool:
        """See `StudentEngine`."""
        held = self._held.get(student)
        return held is not None and _only_text(call) and held.student.spec.covers(call.system_prompt, call.tools)

    def ready(self, student: str) -> bool:
        """See `StudentEngine`."""
        held = self._held.get(student)
        return held is not None and held.attested_at is not None

    def refusal(self, student: str) -> Attestation | None:
        """See `StudentEngine`."""
        found = self.attestations.get(student)
        return found if found is not None and found.verdict is Verdict.REFUSED else None

    async def reply(self, student: str, call: Call, on_text: OnText | None) -> Reply:
        """See `StudentEngine`."""
        began, held = self._clock(), self._held.get(student)
        if held is None:
            raise EngineError(f"{student} is not loaded", reason="away", where=self.url)
        spec, ids = held.student.spec, await _render(held.student, call)
        room = held.context - len(ids)
        if room < 1:
            raise ContextFullError(f"{len(ids)} tokens do not leave room for a reply in {held.context}", where=student)
        limit = room if call.max_tokens is None else min(room, call.max_tokens)
        try:
            found = await written(self._wire, request_body(student, call, spec, ids, limit), spec.grammar, on_text)
        except NotServedError:
            held.attested_at = None
            raise
        except EngineRefusedError as error:
            raise EngineError(f"the engine refuses the request: {error.what}", reason="upstream", where=self.url) from error
        except EngineError as error:
            if error.reason == "away":  # until a look confirms it every request would be tried, and count as the student's error
                self._look_now.set()
            raise
        if student in self._refused:  # while it wrote: nobody knows whose words these are
            raise EngineError(f"{student} was refused", reason="refused", where=self.url)
        if found.finish == "length" and limit == room and not found.shown:
            raise ContextFullError(f"the reply does not fit into the {room} tokens that are left of {held.context}", where=student)
        if found.finish not in ("stop", "length"):
            raise EngineError(f"the engine ended the reply: {found.finish}", reason="upstream", where=self.url)
        reply = _reply(held.student, call, found, len(ids), (self._clock() - began) * 1000)
        if found.shown and reply.format_error is None and on_text is not None and (left := found.rest(reply.message["content"] or "")):
            await on_text(left)
        return reply

    async def load(self, student: str) -> None:
        """See `StudentEngine`."""
        async with self._moving:
            self._same(await self._wire.started())
            if student in self._refused:
                fix = "Restart the engine: what it cached under this name may be another's."
                raise PermanentError(f"{student} was refused at this engine", where=self.url, fix=fix)
            listed = await self._wire.models()
            tokenizers = [Path(m.root) for m in listed if m.root and not m.parent]
            try:
                found = await asyncio.to_thread(read_student, self._students, student, tokenizers)
            except ChangedError as error:
                self.attestations[student] = Attestation(verdict=Verdict.REFUSED, reason=error.what)
                raise
            await self._wire.load(student, found.folder)
            await self._check_listed(found)
            await self._warm(found)
            self._held[student] = _Held(found, _context(found, listed))
            if self._watching is None:
                self._watching = asyncio.create_task(self._watch())

    async def unload(self, student: str) -> None:
        """See `StudentEngine`."""
        async with self._moving:
            held = self._held.get(student)
            if held is not None:
                held.attested_at = None
            await self._wire.unload(student)
            self._held.pop(student, None)
            self.attestations.pop(student, None)

    async def attest(self, student: str) -> Attestation:
        """See `StudentEngine`. One that is refused is unloaded: a name that means something else must not stay."""
        async with self._moving:
            held = self._held.get(student)
            if held is None:
                raise EngineError(f"{student} is not loaded", reason="away", where=self.url)
            try:
                found = await prove(self._wire, held.student)
            except NotServedError:
                held.attested_at = None
                raise
            self.attestations[student] = found
            held.attested_at = None if found.verdict is Verdict.REFUSED else self._clock()
            if found.verdict is Verdict.REFUSED:
                log.error("attestation_refused", student=student, reason=found.reason, engine=self.url, numbers=found.numbers)
                self._refused.add(student)
                await self._wire.unload(student)
            return found

    async def close(self) -> None:
        """See `StudentEngine`."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        await self._wire.close()

    async def look(self) -> None:
        """One look at the engine: whether it is the same as before, and whether an attestation is due."""
        try:
            started, listed = await self._wire.started(), {m.id for m in await self._wire.models()}
        except (EngineError, EngineRefusedError) as error:
            if isinstance(error, EngineError) and error.reason == "away":
                self._doubt(list(self._held), f"the engine is away: {error.what}")
            return
        self._same(started)
        self._doubt([name for name in self._held if name not in listed], "the engine does not list it")
        for name, held in list(self._held.items()):
            if held.attested_at is not None and self._clock() - held.attested_at >= self._attest_every_s:
                await self._attest_again(name)

    async def _watch(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._watch_every_s):  # wait_for loses a cancellation that comes as the event is set
                    await self._look_now.wait()
            self._look_now.clear()
            try:
                await self.look()
            except Exception as error:
                log.error("look_failed", engine=self.url, exc_info=error)

    async def _attest_again(self, student: str) -> None:
        try:
            found = await self.attest(student)
        except EngineError as error:  # busy or away: the next look tries again
            log.warning("attestation_postponed", student=student, error=str(error))
            return
        log.info("attested_again", student=student, verdict=found.verdict, reason=found.reason)

    async def _check_listed(self, student: Student) -> None:
        name = student.card.name
        listed = next((m for m in await self._wire.models() if m.id == name), None)
        if listed is None:
            raise EngineError(f"the engine loaded {name} and does not list it", reason="upstream", where=self.url)
        if listed.root and Path(listed.root).resolve() != student.folder:
            what = f"the engine serves another folder as {name}"
            self._refused.add(name)
            self.attestations[name] = Attestation(verdict=Verdict.REFUSED, reason=what)
            await self._wire.unload(name)
            raise PermanentError(what, where=listed.root, fix="Restart the engine.")

    async def _warm(self, student: Student) -> None:
        body = {"model": student.card.name, "prompt": list(student.probes[0].ids), "max_tokens": 1, "temperature": 0.0}
        try:
            await self._wire.complete(body, WARM_S)
        except EngineRefusedError as error:
            raise PermanentError(f"the engine cannot run {student.card.name}: {error.what}", where=self.url) from error

    def _same(self, started: str) -> None:
        """Whether the engine's process is the one that was known: another one knows nothing of what was refused or attested."""
        if started != self._started:
            self._started = started
            self._refused.clear()
            self._doubt(list(self._held), "the engine was restarted")

    def _doubt(self, names: Sequence[str], why: str) -> None:
        for name in names:
            held = self._held[name]
            if held.attested_at is not None:
                held.attested_at = None
                log.warning("student_not_trusted", student=name, reason=why, engine=self.url)


async def _render(student: Student, call: Call) -> list[int]:
    """The token ids of the conversation, up to where the student goes on."""

    def encode() -> list[int]:
        return student.renderer.encode(call.messages, call.tools, add_generation_prompt=True).ids

    long = sum(len(m.text) for m in call.messages) > RENDERED_HERE
    return await asyncio.to_thread(encode) if long else encode()


def _only_text(call: Call) -> bool:
    """A student reads text: what else a message holds it would not see."""
    return all(part.get("type") == "text" for m in call.messages if isinstance(m.content, list) for part in m.content)


def _context(student: Student, listed: Sequence[Listed]) -> int:
    """Tokens of a conversation with its reply: what the student was trained for, and the engine can hold."""
    return min([student.spec.context_limit, *(m.max_model_len for m in listed if not m.parent and m.max_model_len)])


def _reply(student: Student, call: Call, found: Written, prompt: int, latency_ms: float) -> Reply:
    action = student.renderer.parse(found.text, f"{call.trajectory}/{call.step}")
    if action.message.tool_calls:
        finish = "tool_calls"
    else:
        finish = "length" if found.finish == "length" else "stop"
    return Reply(
        message=message_to_openai(action.message),
        finish_reason=finish,
        input_tokens=prompt,
        output_tokens=found.output_tokens,
        cached_tokens=found.cached_tokens,
        format_error=action.error,
        latency_ms=latency_ms,
        model=student.card.name,
    )
