"""One request, from the choice of who answers to the last byte."""

import asyncio
import math
from collections.abc import Iterable

import aiohttp
import structlog
from aiohttp import web

from stillhouse.schemas.events import Policy, PolicyRole, Usage
from stillhouse.sdk.prices import MICRO
from stillhouse.serving.gateway import student_wire
from stillhouse.serving.gateway.answers import Answer, Exchange, student_answer
from stillhouse.serving.gateway.assignment import TEACHER, Why
from stillhouse.serving.gateway.backend import ContextFullError, EngineError, Reply
from stillhouse.serving.gateway.books import settle
from stillhouse.serving.gateway.client import ClientGoneError, Outlet
from stillhouse.serving.gateway.desk import Desk, Route
from stillhouse.serving.gateway.failures import ApiError, UpstreamError
from stillhouse.serving.gateway.sse import DONE, Assembly, Splitter, payload

log = structlog.get_logger()


class Turn:
    """A chat request under way.

    Args:
        desk: the gateway's parts.
        route: what was asked for.
        exchange: the request.
        outlet: the way to the client.
        usage_wanted: the client asked for the usage in the stream.
    """

    def __init__(self, desk: Desk, route: Route, exchange: Exchange, outlet: Outlet, *, usage_wanted: bool) -> None:
        self._desk, self._route, self._exchange, self._outlet = desk, route, exchange, outlet
        self._call, self._usage_wanted = exchange.call, usage_wanted
        self.answers: list[Answer] = []
        self.variant = TEACHER
        self._settled = False
        self._top = student_wire.head(exchange.request_id, route.name, exchange.received_at // MICRO)

    async def serve(self) -> web.StreamResponse:
        """Answer.

        Raises:
            ApiError: nobody could, and the client has seen nothing yet.
        """
        chosen, why = self._desk.serve(self._route, self._exchange.run, self._call)
        if why is not Why.ASSIGNED:
            self._desk.instruments.count("diverted_total", self._route.name, why)
            self._outlet.headers["x-stillhouse-reason"] = why
        try:
            if chosen != TEACHER:
                done = await self._by_student(chosen)
                if done is not None:
                    return done
            return await self._by_teacher()
        except ClientGoneError as gone:
            if not self.answers:
                raise
            await self._settle()
            log.info("client_gone", reason=str(gone), route=self._route.name)
            return self._outlet.abandon()

    async def _by_student(self, student: str) -> web.StreamResponse | None:
        """The student's reply; None when the teacher must answer instead."""
        self._show(student)
        engine, mark = self._route.engine, self._route.busy.enter()
        assert engine is not None
        reply, reason = None, ""
        try:
            async with asyncio.timeout(self._route.settings.student_timeout_s):
                reply = await engine.reply(student, self._call, self._on_text if self._call.stream else None)
        except TimeoutError:
            reason = "timeout"
        except EngineError as error:
            reason = error.reason
        except ContextFullError:
            reason = "context_full"
        finally:
            seconds = self._route.busy.leave(mark)
        cost = math.ceil(seconds * self._route.settings.replica_usd_per_hour / 3600 * MICRO)
        self.answers.append(self._of_student(student, reply, reason, cost))
        if reply is not None and reply.format_error is None:
            return await self._send(reply)
        reason = reason or "format"
        self._desk.instruments.count("fallbacks_total", self._route.name, student, reason)
        if self._outlet.begun:  # its text is out already: nobody else can go on from it
            return await self._break_off(ApiError(502, f"The reply broke off: {reason}", code="student_broke_off"))
        self._outlet.headers["x-stillhouse-fallback"] = reason
        return None

    def _of_student(self, student: str, reply: Reply | None, reason: str, cost: int) -> Answer:
        if reply is not None:
            return student_answer(student, reply, cost)
        policy = Policy(role=PolicyRole.STUDENT, model=student)
        return Answer(policy=policy, message=None, usage=Usage(), cost_micro_usd=cost, error=reason)

    async def _on_text(self, text: str) -> None:
        if not self._outlet.begun:
            await self._outlet.write(student_wire.first_chunk(self._top))
        await self._outlet.write(student_wire.text_chunk(self._top, text))

    async def _send(self, reply: Reply) -> web.StreamResponse:
        if not self._call.stream:
            await self._settle()
            return self._outlet.whole(200, student_wire.completion(self._top, reply))
        chunks = [] if self._outlet.begun else [student_wire.first_chunk(self._top)]
        chunks += student_wire.last_chunks(self._top, reply, sent=self._outlet.begun, with_usage=self._usage_wanted)
        return await self._finish(chunks)

    async def _by_teacher(self) -> web.StreamResponse:
        self._show(TEACHER)
        teacher = self._route.teacher
        try:
            async with teacher.ask(self._call) as upstream:
                if self._call.stream and upstream.status == 200 and upstream.content_type == "text/event-stream":
                    return await self._relay(upstream)
                whole = await teacher.whole(upstream, self._call)
        except UpstreamError as error:
            await self._teacher_failed(error)
            raise
        self.answers.append(whole.answer)
        if whole.status != 200:
            self._desk.instruments.count("teacher_errors_total", self._route.name, f"http_{whole.status}")
        await self._settle(only_if_said=True)
        return self._outlet.whole(whole.status, whole.data)

    async def _relay(self, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
        """Pass a stream through, event by event, and hold back its end until it is remembered."""
        assembly, splitter, failed, gone = Assembly(), Splitter(), None, None
        try:
            ended = False
            async for data in upstream.content.iter_any():
                if ended := await self._pass(splitter.feed(data), assembly):
                    break
            if not ended:
                await self._pass(splitter.feed(b"\n\n"), assembly)
            if assembly.finish_reason is None:
                failed = UpstreamError(502, "The teacher's stream ended in the middle", code="upstream_broke_off")
        except (aiohttp.ClientError, TimeoutError) as error:
            failed = self._route.teacher.failure(error)
        except ValueError as error:
            failed = UpstreamError(502, f"The teacher's stream cannot be read: {error}", code="upstream_invalid")
        except ClientGoneError as error:
            gone = error
        if failed is not None and not self._outlet.begun:
            raise failed
        self.answers.append(self._route.teacher.streamed(self._call, assembly, str(failed or gone) if failed or gone else None))
        if gone is not None:
            raise gone
        if failed is not None:
            self._desk.instruments.count("teacher_errors_total", self._route.name, failed.code)
            return await self._break_off(failed)
        return await self._finish(())

    async def _pass(self, events: Iterable[bytes], assembly: Assembly) -> bool:
        """Write what the client may see; True after `[DONE]`."""
        shown, ended = [], False
        for event in events:
            data = payload(event)
            if data == b"[DONE]":
                ended = True
                break
            if not data or assembly.take(data) or self._usage_wanted:
                shown.append(event)
        if shown and assembly.begun:
            await self._outlet.write(b"".join(shown))
        return ended

    async def _finish(self, chunks: Iterable[bytes]) -> web.StreamResponse:
        await self._settle()
        return await self._outlet.end(b"".join([*chunks, DONE]))

    async def _break_off(self, error: ApiError) -> web.StreamResponse:
        await self._settle()
        return await self._outlet.end(error.event())

    async def _teacher_failed(self, error: UpstreamError) -> None:
        self._desk.instruments.count("teacher_errors_total", self._route.name, error.code)
        if self.answers:  # the student failed first, and that is a fact
            self.answers.append(self._route.teacher.answer(self._call, None, None, "", str(error)))
            await self._settle()

    async def _settle(self, *, only_if_said: bool = False) -> None:
        """Book the answers. A teacher's mere error, with no student before it, leaves nothing behind."""
        if self._settled or (only_if_said and len(self.answers) == 1 and self.answers[0].message is None):
            return
        self._settled = True
        await settle(self._desk, self._route, self._exchange, self.answers)

    def _show(self, variant: str) -> None:
        self.variant = variant
        self._outlet.headers["x-stillhouse-variant"] = variant
