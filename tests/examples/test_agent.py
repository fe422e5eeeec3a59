"""The agent's loop: what it sends, when it stops, and what it does when its model is away or talks nonsense."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from stillhouse.examples.order_desk.agent import FORMAT_ERROR_HEADER, MAX_TURNS, ChatSettings, Turn, connect, run_episode
from stillhouse.examples.order_desk.benchmark import OrderDeskBenchmark
from stillhouse.examples.order_desk.gold import gold_calls, gold_reply
from stillhouse.examples.order_desk.pricing import STAND_IN
from stillhouse.examples.order_desk.tasks import make_tasks
from stillhouse.examples.order_desk.teacher import make_app
from stillhouse.examples.order_desk.tools import SYSTEM_PROMPT
from stillhouse.schemas.errors import PermanentError, RetryableError, UsageError
from stillhouse.trainer.evaluation.benchmark import Benchmark, BenchTask, ChatPolicy, ListPrice

TASK = make_tasks("train", 1, seed=1, families=["refund"])[0]
FAST = ChatSettings(model="m", backoff_s=0.001)
Answer = Callable[[int, dict[str, Any]], Awaitable[web.StreamResponse]]
Serve = Callable[[Answer], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve chat completions from `answer(number of the request, body)`; returns the address."""
    servers: list[TestServer] = []

    async def start(answer: Answer) -> str:
        count = iter(range(1000))

        async def handle(request: web.Request) -> web.StreamResponse:
            return await answer(next(count), await request.json())

        app = web.Application()
        app.router.add_post("/v1/chat/completions", handle)
        servers.append(TestServer(app))
        await servers[-1].start_server()
        return str(servers[-1].make_url("/v1"))

    yield start
    for server in servers:
        await server.close()


def said(message: dict[str, Any], headers: dict[str, str] | None = None) -> web.Response:
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    return web.json_response({"choices": [{"index": 0, "message": {"role": "assistant", **message}}], "usage": usage}, headers=headers)


def calling(name: str, arguments: str, number: int = 0) -> dict[str, Any]:
    return {"content": None, "tool_calls": [{"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": arguments}}]}


def gold_message(number: int) -> dict[str, Any]:
    calls = gold_calls(TASK)
    return calling(calls[number][0], json.dumps(calls[number][1]), number) if number < len(calls) else {"content": gold_reply(TASK)}


async def test_it_sends_the_words_of_the_customer_and_nothing_else_of_the_task(serve: Serve) -> None:
    bodies: list[dict[str, Any]] = []

    async def answer(number: int, body: dict[str, Any]) -> web.StreamResponse:
        bodies.append(body)
        return said(gold_message(number) | {"reasoning_content": "hm"})

    turns: list[Turn] = []
    async with connect(await serve(answer)) as chat:
        result = await run_episode(TASK, chat, FAST, turns.append)
    assert result.verdict.success and result.reply == gold_reply(TASK)
    assert bodies[0]["messages"] == [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": TASK.instruction}]
    assert [m["role"] for m in bodies[-1]["messages"]] == ["system", "user"] + 3 * ["assistant", "tool"]
    assert all("annotations" not in tool for tool in bodies[0]["tools"])
    assert "reasoning_content" not in json.dumps(bodies) and result.messages[2]["reasoning_content"] == "hm"
    assert turns == result.turns and result.usage.input_tokens == 40


async def test_headers_go_with_every_request() -> None:
    app = web.Application()
    seen: list[str | None] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("x-stillhouse-trajectory"))
        return said(gold_message(len(seen) - 1))

    app.router.add_post("/v1/chat/completions", handle)
    async with TestServer(app) as server, connect(str(server.make_url("/v1"))) as chat:
        await run_episode(TASK, chat, FAST, headers={"x-stillhouse-trajectory": "t1"})
    assert seen == ["t1"] * 4


async def test_it_gives_up_after_three_failing_calls_in_a_row(serve: Serve) -> None:
    async def answer(number: int, _: dict[str, Any]) -> web.StreamResponse:
        good = calling("find_orders", json.dumps({"email": TASK.email}), number)
        return said(good if number == 2 else calling("cancel", '{"id": "1"}', number))

    async with connect(await serve(answer)) as chat:
        result = await run_episode(TASK, chat, FAST)
    assert len(result.turns) == 6 and result.verdict.reason.startswith("gave up after 3 failing calls in a row")


async def test_it_stops_at_the_last_turn(serve: Serve) -> None:
    async def answer(number: int, _: dict[str, Any]) -> web.StreamResponse:
        return said(calling("find_orders", json.dumps({"email": TASK.email}), number))

    async with connect(await serve(answer)) as chat:
        result = await run_episode(TASK, chat, FAST)
    assert len(result.turns) == MAX_TURNS and not result.verdict.success


@pytest.mark.parametrize(
    ("message", "headers"),
    [({"content": '{"name": "find_orders", "argu'}, {}), ({"content": ""}, {}), ({"content": "Order is"}, {FORMAT_ERROR_HEADER: "torn"})],
)
async def test_a_malformed_answer_ends_the_episode_as_a_format_error(
    serve: Serve, message: dict[str, Any], headers: dict[str, str]
) -> None:
    async def answer(_: int, __: dict[str, Any]) -> web.StreamResponse:
        return said(message, headers)

    async with connect(await serve(answer)) as chat:
        result = await run_episode(TASK, chat, FAST)
    assert [t.malformed for t in result.turns] == [True]
    assert result.reply == "" and result.verdict.reason.startswith("a malformed answer")


async def test_arguments_that_are_no_json_are_a_format_error_and_a_failed_call(serve: Serve) -> None:
    async def answer(number: int, _: dict[str, Any]) -> web.StreamResponse:
        return said(calling("cancel", "{id") if number == 0 else {"content": "Sorry."})

    async with connect(await serve(answer)) as chat:
        result = await run_episode(TASK, chat, FAST)
    assert (result.turns[0].malformed, result.turns[0].failed) == (True, 1)
    assert json.loads(result.turns[0].observation[0]["content"]) == {"error": "bad arguments"}


async def test_passing_faults_are_retried_and_leave_no_trace(serve: Serve) -> None:
    faults = [web.Response(status=500), web.Response(text="<html>"), web.json_response({"choices": []})]
    good = iter(range(100))

    async def answer(number: int, _: dict[str, Any]) -> web.StreamResponse:
        return faults[number] if number < len(faults) else said(gold_message(next(good)))

    async with connect(await serve(answer)) as chat:
        result = await run_episode(TASK, chat, FAST)
    assert result.verdict.success and len(result.turns) == 4


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda: web.Response(status=500), "answered 500"),
        (lambda: web.Response(text="hello"), "no chat completion"),
        (lambda: web.json_response({"choices": [{"message": {"content": None}}]}), "neither content nor tool calls"),
    ],
)
async def test_lasting_faults_end_with_what_where_and_how_often(serve: Serve, fault: Callable[[], web.Response], says: str) -> None:
    async def answer(_: int, __: dict[str, Any]) -> web.StreamResponse:
        return fault()

    address = await serve(answer)
    async with connect(address) as chat:
        with pytest.raises(RetryableError) as ended:
            await run_episode(TASK, chat, FAST)
    assert says in str(ended.value) and address in str(ended.value) and "attempt 4 of 4" in str(ended.value)


async def test_no_answer_in_time_and_nobody_there_are_told_apart(serve: Serve) -> None:
    released = asyncio.Event()

    async def answer(_: int, __: dict[str, Any]) -> web.StreamResponse:
        await released.wait()
        return said({"content": "late"})

    address = await serve(answer)
    once = ChatSettings(model="m", attempts=1)
    async with connect(address, timeout_s=0.05) as chat:
        with pytest.raises(RetryableError, match="no answer in time"):
            await run_episode(TASK, chat, once)
    released.set()
    async with connect("http://127.0.0.1:1/v1") as chat:
        with pytest.raises(RetryableError, match="cannot be reached"):
            await run_episode(TASK, chat, once)


async def test_a_conversation_that_outgrew_the_context_is_a_failed_run_and_no_error(serve: Serve) -> None:
    async def full(_number: int, _: dict[str, Any]) -> web.StreamResponse:
        message = "This model's maximum context length is 255 tokens, but the request has 264."
        return web.json_response({"error": {"message": message}}, status=400)

    async with connect(await serve(full)) as chat:
        result = await run_episode(TASK, chat, FAST)
    assert not result.verdict.success and "outgrew the model's context" in result.verdict.reason


async def test_a_refused_request_is_not_repeated(serve: Serve) -> None:
    asked: list[int] = []

    async def answer(number: int, _: dict[str, Any]) -> web.StreamResponse:
        asked.append(number)
        return web.json_response({"error": {"message": "no such model"}}, status=404)

    async with connect(await serve(answer)) as chat:
        with pytest.raises(PermanentError, match="no such model"):
            await run_episode(TASK, chat, FAST)
    assert asked == [0]


async def test_the_benchmark_plays_the_same_tasks_each_time_and_fills_in_an_episode() -> None:
    desk: Benchmark = OrderDeskBenchmark({"seen": 8, "unseen": 8}, seed=1)
    assert [t.id for t in desk.tasks("seen")] == [t.id for t in OrderDeskBenchmark({"seen": 16}, seed=1).tasks("seen")[:8]]
    async with TestServer(make_app(latency_ms=1)) as server:
        policy = ChatPolicy(name="teacher", base_url=str(server.make_url("/v1")), model=STAND_IN, price=ListPrice(model="gpt-4o"))
        episodes = await asyncio.gather(*(desk.run(task, policy) for task in (*desk.tasks("seen"), *desk.tasks("unseen"))))
        with_shots = ChatPolicy(
            name="base", base_url=policy.base_url, model=STAND_IN, price=policy.price, shots=OrderDeskBenchmark({}, seed=1).shots()
        )
        shown = await desk.run(desk.tasks("seen")[0], with_shots)
    assert sum(e.success for e in episodes) >= 13
    for episode in episodes:
        assert len(episode.latency_s) == episode.steps and (episode.usage.output_tokens or 0) > 0
        assert episode.format_errors == 0 and episode.reply and episode.outcome_reason
    assert [m["role"] for m in shown.messages].count("user") == 4
    assert shown.success == episodes[0].success and (shown.usage.input_tokens or 0) > (episodes[0].usage.input_tokens or 0)


async def test_the_benchmark_refuses_what_it_has_not() -> None:
    desk = OrderDeskBenchmark({"seen": 1}, seed=1)
    with pytest.raises(UsageError, match="no such part"):
        OrderDeskBenchmark({"test": 1}, seed=1)
    with pytest.raises(UsageError, match="no tasks of the part"):
        desk.tasks("unseen")
    policy = ChatPolicy(name="x", base_url="http://127.0.0.1:1/v1", model="m", price=ListPrice(model="gpt-4o"))
    with pytest.raises(UsageError, match="not a task of the order desk"):
        await desk.run(BenchTask(id="x", family="x", part="seen", payload=None), policy)
    with pytest.raises(RetryableError, match="cannot be reached"):
        await desk.run(desk.tasks("seen")[0], policy)
