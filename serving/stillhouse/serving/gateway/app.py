"""The client port: OpenAI's endpoints, and outcomes."""

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable

import msgspec
import orjson
import structlog
import uuid_utils
from aiohttp import web

from stillhouse.schemas.errors import StillhouseError
from stillhouse.schemas.keys import trajectory_key
from stillhouse.serving.gateway.answers import Exchange, OutcomeRequest, feedback_event
from stillhouse.serving.gateway.backend import Call
from stillhouse.serving.gateway.client import WRITE_S, ClientGoneError, Outlet
from stillhouse.serving.gateway.desk import Desk
from stillhouse.serving.gateway.failures import ApiError, UpstreamError
from stillhouse.serving.gateway.identity import step_of
from stillhouse.serving.gateway.requests import asked, given, read_object
from stillhouse.serving.gateway.turn import Turn

MAX_BODY = 32 << 20
READ_S = 60.0
log = structlog.get_logger()
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class GatewayApp:
    """Handlers over a desk.

    Args:
        desk: the gateway's parts.
        max_body: bytes of a request.
        read_s: how long a client may take to send a request.
        write_s: how long it may take nothing.
    """

    def __init__(self, desk: Desk, *, max_body: int = MAX_BODY, read_s: float = READ_S, write_s: float = WRITE_S) -> None:
        self.desk = desk
        self._max_body, self._read_s, self._write_s = max_body, read_s, write_s
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=self._max_body, middlewares=[self._guard])
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/stillhouse/outcomes", self.outcome)
        return app

    async def drain(self, timeout: float) -> None:
        """Let open requests end."""
        self.desk.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            log.warning("drain_timed_out", open=self._open)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`."""
        began, received = time.perf_counter(), self.desk.now()
        tenant = self.desk.keys.tenant(request.headers.get("Authorization"))
        body = read_object(await self._read(request))
        fields, headers = asked(body), given(request.headers)
        route = self.desk.route(fields.model, tenant)
        user = body.get("user")
        run, trajectory, first = self.desk.run(route, tenant, fields, headers, user if isinstance(user, str) else None)
        if first and fields.stream:  # an arm is stored before anybody sees what it gives; a whole reply commits before it is sent
            await self.desk.memory.committed()
        call = Call(
            route=route.name,
            tenant=tenant,
            trajectory=trajectory,
            step=step_of(fields.messages),
            body=body,
            messages=fields.messages,
            tools=fields.tools,
            stream=fields.stream,
            max_tokens=fields.max_tokens,
            temperature=fields.temperature,
        )
        exchange = Exchange(
            request_id=str(uuid_utils.uuid7()),
            call=call,
            given=headers,
            run=run,
            first=first,
            received_at=received,
            traceparent=request.headers.get("traceparent"),
        )
        outlet = Outlet(request, self._write_s)
        outlet.headers = {"x-stillhouse-trajectory": trajectory.encode("utf-8").decode("latin-1"), "x-request-id": exchange.request_id}
        turn = Turn(self.desk, route, exchange, outlet, usage_wanted=fields.usage_wanted)
        code = "500"
        try:
            response = await turn.serve()
            code = str(response.status)
            return response
        except ApiError as error:
            code = str(error.status)
            raise
        finally:
            self.desk.instruments.count("requests_total", route.name, turn.variant, code)
            self.desk.instruments.observe("request_seconds", time.perf_counter() - began, route.name, turn.variant)

    async def models(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models`: the caller's routes."""
        tenant = self.desk.keys.tenant(request.headers.get("Authorization"))
        mine = [route for route in self.desk.routes.values() if not route.settings.tenants or tenant in route.settings.tenants]
        cards = [{"id": route.name, "object": "model", "created": 0, "owned_by": "stillhouse"} for route in mine]
        return web.json_response({"object": "list", "data": cards})

    async def outcome(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/stillhouse/outcomes`."""
        desk = self.desk
        tenant = desk.keys.tenant(request.headers.get("Authorization"))
        data = await self._read(request)
        try:
            told = msgspec.json.decode(data, type=OutcomeRequest)
        except msgspec.MsgspecError as error:
            raise ApiError(400, f"The outcome cannot be read: {error}", code="invalid_request") from error
        run = desk.memory.run(trajectory_key(tenant, told.trajectory))
        if run is None:
            fix = "Send the id of the header x-stillhouse-trajectory of one of its replies."
            raise ApiError(404, f"No trajectory `{told.trajectory}`", code="trajectory_not_found", param="trajectory", fix=fix)
        before = desk.memory.outcome(run.key, told.source, told.step)
        if before is not None and told.revises != before:
            what = f"The {told.source} has judged this trajectory already"
            raise ApiError(409, what, code="outcome_exists", param="trajectory", fix=f'To replace it send "revises": "{before}".')
        if before is None and told.revises is not None:
            what = f"There is no outcome `{told.revises}` of the {told.source} to revise"
            raise ApiError(404, what, code="outcome_not_found", param="revises")
        event = feedback_event(told, run, desk.now())
        desk.memory.add_outcome(run.key, told.source, told.step, event.event_id)
        events = desk.capture.redact([event])
        desk.capture.keep(events)
        await desk.memory.committed()
        desk.capture.send(events)
        desk.instruments.count("outcomes_total", told.source)
        answer = {"id": event.event_id, "object": "stillhouse.outcome", "trajectory": told.trajectory}
        return web.json_response(answer, status=201)

    async def _read(self, request: web.Request) -> bytes:
        """The body.

        Raises:
            ApiError: it is too large, or does not come.
        """
        length = request.content_length or 0
        try:
            if length > self._max_body:
                raise web.HTTPRequestEntityTooLarge(self._max_body, length)
            async with asyncio.timeout(self._read_s):
                return await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            what = f"The request body is larger than {self._max_body} bytes"
            raise ApiError(413, what, code="request_too_large") from error
        except TimeoutError as error:
            raise ApiError(408, f"The request body did not come within {self._read_s:g} s", code="request_timeout") from error
        except (ConnectionError, web.HTTPException, asyncio.IncompleteReadError, ValueError) as error:
            raise ApiError(400, f"The request body cannot be read: {type(error).__name__}", code="invalid_request") from error

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count what is open, and answer every failure in OpenAI's form."""
        self._open += 1
        self._idle.clear()
        self.desk.instruments.set("open_requests", self._open)
        try:
            response = await self._answered(request, handler)
        finally:
            self._open -= 1
            self.desk.instruments.set("open_requests", self._open)
            if self._open == 0:
                self._idle.set()
        if self.desk.draining and not response.prepared:
            response.force_close()
        return response

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApiError as error:
            return self._error(error)
        except web.HTTPNotFound:
            return self._error(ApiError(404, f"Unknown request URL: {request.method} {request.path}", code="unknown_url"))
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            what = f"{request.method} is not offered at {request.path}"
            return self._error(ApiError(405, what, code="method_not_allowed", fix=f"Use {allowed}."))
        except web.HTTPException:
            raise
        except ClientGoneError:
            return Outlet(request).abandon()
        except StillhouseError as error:
            log.error("request_failed", error=self.desk.redactor.text(str(error)), kind=type(error).__name__)
            return self._error(ApiError(500, str(error), code="internal_error"))
        except Exception as error:  # noqa: BLE001 - logged whole
            trace = "".join(traceback.format_exception(error))  # its last line may quote the request
            log.error("request_crashed", exception=self.desk.redactor.text(trace))
            return self._error(ApiError(500, "The gateway failed on this request", code="internal_error"))

    def _error(self, error: ApiError) -> web.Response:
        if not isinstance(error, UpstreamError):
            self.desk.instruments.count("rejected_total", error.code)
        headers = {"Content-Type": "application/json"}
        response = web.Response(status=error.status, body=orjson.dumps(error.body()), headers=headers)
        if error.status in (408, 413):  # the rest of the body is not worth reading
            response.force_close()
        return response
