"""Teacher traffic through the gateway: bytes, events, money, and every way in which an upstream or a client goes wrong."""

import asyncio
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from stillhouse.schemas.events import PolicyRole, StepTaken, TrajectoryStarted
from stillhouse.schemas.fold import fold
from tests.serving.gateway.world import (
    ASK,
    CALL,
    DONE,
    TOOLS,
    USAGE_CHUNK,
    Desk,
    Upstream,
    busy_teacher,
    chunk,
    completion,
    running,
    settled,
    stream,
)


async def call_then_speak(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A call of a tool first, then a text; streamed when asked."""
    message: dict[str, Any] = (
        {"content": "Shipped."} if any(m["role"] == "tool" for m in body["messages"]) else {"content": None, "tool_calls": [CALL]}
    )
    if not body.get("stream"):
        return web.json_response(completion(message | {"reasoning_content": "hm"}))
    parts = [chunk({"role": "assistant", "content": None}), chunk({"reasoning_content": "hm"})]
    if message["content"]:
        parts += [chunk({"content": "Ship"}), chunk({"content": "ped."})]
    else:
        head = CALL | {"function": {"name": "find", "arguments": ""}}
        parts += [chunk({"tool_calls": [{"index": 0, **head}]})]
        parts += [chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in ('{"ord', 'er": 7}')]
    response = await stream(request, [*parts, chunk({}, "stop"), USAGE_CHUNK, DONE])
    await response.write_eof()
    return response


async def _converse(url: str, *, streamed: bool) -> list[Any]:
    """What the stock client's agent loop does: ask, answer the call, ask again."""
    messages: list[Any] = list(ASK)
    client: Any  # its types know no messages of plain dicts
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        while messages[-1]["role"] != "assistant" or messages[-1].get("tool_calls"):
            if streamed:
                async with client.chat.completions.stream(model="desk", messages=messages, tools=TOOLS) as events:
                    message = (await events.get_final_completion()).choices[0].message
            else:
                message = (await client.chat.completions.create(model="desk", messages=messages, tools=TOOLS)).choices[0].message
            messages.append(message.to_dict())
            for call in message.tool_calls or ():
                messages.append({"role": "tool", "tool_call_id": call.id, "content": "shipped"})
    return messages


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_stock_client_makes_one_trajectory_that_folds(desk: Desk, streamed: bool) -> None:
    desk.upstream.behave = call_then_speak
    messages = await _converse(desk.url, streamed=streamed)
    assert messages[-1]["content"] == "Shipped."
    assert len({event.key for event in desk.events.events}) == 1
    row = fold(desk.events.events)
    assert [step.index for step in row.steps] == [0, 1] and not row.headless
    assert row.system_prompt == "Help." and row.tools == tuple(TOOLS) and row.task.family == "desk"
    first, second = row.steps
    assert first.action.tool_calls[0].arguments == {"order": 7} and first.action.reasoning == "hm"
    assert [m.role for m in first.state] == ["user"] and [m.content for m in first.observation] == ["shipped"]
    assert second.action.content == "Shipped."
    assert (first.usage.input_tokens, first.usage.output_tokens, first.cost_micro_usd) == (100, 20, 100 * 2 + 20 * 8)
    assert row.assignment is not None and row.assignment.arm == "teacher"
    assert {policy.role for policy in row.policies} == {PolicyRole.TEACHER}


async def test_bytes_and_unknown_fields_go_through(desk: Desk) -> None:
    async def odd(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        odd_body = b'{"choices":[{"message":{"role":"assistant","content":"x","new":1}}],  "more":2}'
        return web.Response(body=odd_body, content_type="application/json")

    desk.upstream.behave = odd
    status, body, headers = await desk.chat(extra={"seed": 7, "someday": {"a": 1}})
    assert status == 200 and body["more"] == 2 and body["choices"][0]["message"]["new"] == 1
    assert headers["x-stillhouse-variant"] == "teacher" and headers["x-stillhouse-trajectory"]
    sent = desk.upstream.requests[0]
    assert sent["model"] == "big-1" and sent["seed"] == 7 and sent["someday"] == {"a": 1}


async def test_usage_is_asked_for_and_shown_only_to_who_asked(desk: Desk) -> None:
    _, hidden, _ = await desk.chat(stream=True)
    _, shown, _ = await desk.chat(stream=True, extra={"stream_options": {"include_usage": True}})
    assert b"usage" not in hidden and hidden.endswith(DONE) and b'"usage"' in shown
    assert all(request["stream_options"]["include_usage"] for request in desk.upstream.requests)
    (line,) = (await desk.show("/v1/routes"))["routes"]["desk"]["ledger"]
    assert line["requests"] == 2 and line["input"] == 200 and line["output"] == 40 and line["cost_micro_usd"] == 2 * 360


async def test_the_sdks_headers_name_the_trajectory_and_are_decoded(desk: Desk) -> None:
    _, _, headers = await desk.chat(x_stillhouse_trajectory="caf%C3%A9%2Fa%25", x_stillhouse_family="refunds")
    assert desk.events.bodies(TrajectoryStarted) == []  # the SDK sends it
    assert {event.trajectory_id for event in desk.events.events} == {"café/a%"}
    assert desk.events.bodies(StepTaken)[0].state[0].role == "system"
    await desk.chat(x_stillhouse_capture="off")
    assert len(desk.events.events) == 1 and headers["x-request-id"]


async def test_capture_that_refuses_fails_no_request(desk: Desk) -> None:
    desk.events.full = True
    status, _, _ = await desk.chat()
    assert status == 200
    assert "stillhouse_gateway_capture_refused_total 2.0" in await desk.show("/metrics")


async def hang(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def reset(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def half(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = await stream(request, [chunk({"role": "assistant", "content": "It is "}), chunk({"content": "on"})])
    assert request.transport is not None
    request.transport.close()
    return response


async def stall(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    await stream(request, [chunk({"role": "assistant", "content": "It is "})])
    await asyncio.Event().wait()
    raise AssertionError


async def garbage(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    if body.get("stream"):
        return await stream(request, [b"data: <html>\n\n"])
    return web.Response(body=b"<html>", content_type="text/html")


async def no_completion(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"choices": "none"})


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [(hang, 504, "upstream_timeout"), (reset, 502, "upstream_broke_off"), (garbage, 502, "upstream_invalid"),
     (no_completion, 502, "upstream_invalid"), (busy_teacher, 503, "upstream_error")],
)  # fmt: skip
async def test_an_upstream_that_fails_is_an_openai_error(
    tmp_path: Path, upstream: Upstream, behaviour: Any, status: int, code: str, streamed: bool
) -> None:
    async with running(tmp_path, upstream, teacher_timeout_s="0.3") as desk:
        upstream.behave = behaviour
        got, body, _ = await desk.chat(stream=streamed)
        assert (got, body["error"]["code"]) == (status, code), body
        assert body["error"]["type"] == "server_error" and body["error"]["message"]
        assert desk.events.bodies(StepTaken) == []
        upstream.behave = Upstream().behave
        assert (await desk.chat())[0] == 200


async def test_an_upstream_that_is_not_there(tmp_path: Path, upstream: Upstream) -> None:
    dead = Upstream()
    async with dead.running():
        pass
    async with running(tmp_path, dead) as desk:
        status, body, _ = await desk.chat()
        assert (status, body["error"]["code"]) == (502, "upstream_unreachable")


@pytest.mark.parametrize(("behaviour", "code"), [(half, "upstream_broke_off"), (stall, "upstream_timeout")])
async def test_half_a_stream_ends_in_an_error_event_and_is_paid_for(tmp_path: Path, upstream: Upstream, behaviour: Any, code: str) -> None:
    async with running(tmp_path, upstream, teacher_timeout_s="0.3") as desk:
        upstream.behave = behaviour
        client: Any
        async with openai.AsyncOpenAI(base_url=f"{desk.url}/v1", api_key="any", max_retries=0) as client:
            with pytest.raises(openai.APIError) as caught:
                async for _ in await client.chat.completions.create(model="desk", messages=ASK, stream=True):
                    pass
        assert caught.value.code == code
        (step,) = desk.events.bodies(StepTaken)
        assert step.error and step.action.content.startswith("It is") and step.cost_micro_usd > 0
        (line,) = (await desk.show("/v1/routes"))["routes"]["desk"]["ledger"]
        assert line["estimated"] == 1 and line["cost_micro_usd"] == step.cost_micro_usd


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{not json", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        ({"messages": ASK}, 400, "invalid_request"),
        ({"model": "desk"}, 400, "invalid_request"),
        ({"model": "desk", "messages": [{"role": "wizard"}]}, 400, "invalid_request"),
        ({"model": "desk", "messages": [7]}, 400, "invalid_request"),
        ({"model": "desk", "messages": ASK, "tools": "all"}, 400, "invalid_request"),
        ({"model": "desk", "messages": ASK, "stream": "yes"}, 400, "invalid_request"),
        ({"model": "desk", "messages": ASK, "max_tokens": "9"}, 400, "invalid_request"),
        ({"model": "nowhere", "messages": ASK}, 404, "model_not_found"),
    ],
)
async def test_a_bad_request_is_named(desk: Desk, body: Any, status: int, code: str) -> None:
    got, answer, _ = await desk.post(body)
    assert (got, answer["error"]["code"]) == (status, code), answer
    assert answer["error"]["type"] == "invalid_request_error"
    assert desk.upstream.requests == [] and desk.events.events == []


async def test_other_urls_and_methods(desk: Desk) -> None:
    status, body, _ = await desk.post({}, "/v1/nothing")
    assert (status, body["error"]["code"]) == (404, "unknown_url")
    async with desk.session.get(desk.url + "/v1/chat/completions") as response:
        assert response.status == 405 and (await response.json())["error"]["code"] == "method_not_allowed"
    async with desk.session.get(desk.url + "/metrics") as response:
        assert response.status == 404  # the admin port's


async def test_a_body_of_100_mb_is_refused_unread(desk: Desk) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b"x" * (1 << 20)

    url = desk.url + "/v1/chat/completions"
    for body, said in ((io.BytesIO(b"x" * (100 << 20)), True), (endless(), False)):
        async with aiohttp.ClientSession() as session:
            try:
                async with session.post(url, data=body) as response:
                    assert (response.status, (await response.json())["error"]["code"]) == (413, "request_too_large")
            except aiohttp.ClientError:  # the connection was closed while this client was still sending
                assert not said or desk.gateway.app._open == 0
    assert "request_too_large" in await desk.show("/metrics")
    assert (await desk.chat())[0] == 200


async def test_a_client_that_sends_slowly_is_told(desk: Desk) -> None:
    desk.gateway.app._read_s = 0.2
    reader, writer = await asyncio.open_connection("127.0.0.1", int(desk.url.rpartition(":")[2]))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    answer = await asyncio.wait_for(reader.readuntil(b"}}"), 10)
    assert b" 408 " in answer and b"request_timeout" in answer
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_reads_nothing_holds_nothing(desk: Desk) -> None:
    async def flood(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await stream(request, [chunk({"content": "x" * 60_000}) for _ in range(400)])

    desk.upstream.behave, desk.gateway.app._write_s = flood, 0.3
    _, writer = await asyncio.open_connection("127.0.0.1", int(desk.url.rpartition(":")[2]), limit=1024)
    body = json.dumps({"model": "desk", "messages": ASK, "stream": True}).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await settled(lambda: bool(desk.events.bodies(StepTaken)))
    (step,) = desk.events.bodies(StepTaken)
    assert "took nothing" in step.error
    await settled(lambda: desk.gateway.app._open == 0)
    writer.transport.abort()
    with suppress(ConnectionError):
        await writer.wait_closed()
    desk.upstream.behave = Upstream().behave
    assert (await desk.chat())[0] == 200


async def test_a_client_that_leaves_in_a_stream_is_paid_for(desk: Desk) -> None:
    more = asyncio.Event()

    async def patient(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request, [chunk({"content": "one "})])
        while not more.is_set() or request.transport is not None:
            await response.write(chunk({"content": "more "}))
            with suppress(TimeoutError):
                await asyncio.wait_for(more.wait(), 0.02)
        return response

    desk.upstream.behave = patient
    async with aiohttp.ClientSession() as session:
        response = await session.post(desk.url + "/v1/chat/completions", json={"model": "desk", "messages": ASK, "stream": True})
        await response.content.readany()
        response.close()
    await settled(lambda: bool(desk.events.bodies(StepTaken)))
    more.set()
    (step,) = desk.events.bodies(StepTaken)
    assert step.error == "the client left" and step.cost_micro_usd > 0
