"""The stand-in's endpoint, by the stock `openai` client, in a process that could not import the environment if it tried."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from stillhouse.examples.order_desk.agent import WIRE_TOOLS
from stillhouse.examples.order_desk.expert import answer
from stillhouse.examples.order_desk.pricing import NOTICE, STAND_IN, cost_micro_usd
from stillhouse.examples.order_desk.tasks import make_tasks
from stillhouse.examples.order_desk.tools import SYSTEM_PROMPT
from stillhouse.schemas.events import Usage

LATENCY_MS = 40
# The task generator and the environment are made unimportable before the server starts: what it knows it has from requests.
WITHOUT_THE_DESK = """
import sys
for name in ("environment", "tasks", "gold", "entities", "wordings", "tools", "agent", "benchmark", "fleet"):
    sys.modules["stillhouse.examples.order_desk." + name] = None
from stillhouse.examples.order_desk.teacher import main
raise SystemExit(main(sys.argv[1:]))
"""
MESSAGES: Any = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": make_tasks("train", 1, seed=1)[0].instruction}]
TOOLS: Any = WIRE_TOOLS


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, "-c", WITHOUT_THE_DESK, "--port", "0", "--latency-ms", str(LATENCY_MS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert ready["notice"] == NOTICE and ready["model"] == STAND_IN
    yield ready["url"]
    process.terminate()
    assert process.wait(20) == 0  # SIGTERM stops it cleanly
    process.stdout.close()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_it_answers_as_the_pure_function_does_and_counts_tokens(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model=STAND_IN, messages=MESSAGES, tools=TOOLS)
    message = done.choices[0].message
    expected = answer(MESSAGES, TOOLS)
    assert message.tool_calls and message.tool_calls[0].model_dump() == expected["tool_calls"][0]
    assert message.model_extra == {"reasoning_content": expected["reasoning_content"]}
    assert done.choices[0].finish_reason == "tool_calls"
    assert done.usage and done.usage.completion_tokens_details
    assert done.usage.completion_tokens > (done.usage.completion_tokens_details.reasoning_tokens or 0) >= 80
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done.usage.prompt_tokens == -(-len(json.dumps([MESSAGES, TOOLS])) // 4)


def test_a_stream_adds_up_to_the_whole_answer(client: openai.OpenAI) -> None:
    reply: Any = [{"role": "user", "content": "no address"}]
    for messages in (MESSAGES, reply):
        whole = client.chat.completions.create(model=STAND_IN, messages=messages, tools=TOOLS)
        with client.chat.completions.stream(
            model=STAND_IN, messages=messages, tools=TOOLS, stream_options={"include_usage": True}
        ) as stream:
            final = stream.get_final_completion()
        said, streamed = whole.choices[0], final.choices[0]
        assert (streamed.message.content, streamed.finish_reason) == (said.message.content, said.finish_reason)
        calls = [(c.id, c.function.name, c.function.arguments) for c in streamed.message.tool_calls or ()]
        assert calls == [(c.id, c.function.name, c.function.arguments) for c in said.message.tool_calls or () if c.type == "function"]
        assert final.usage and whole.usage and final.usage.total_tokens == whole.usage.total_tokens


def test_the_latency_is_really_slept(client: openai.OpenAI) -> None:
    began = time.perf_counter()
    for _ in range(3):
        client.chat.completions.create(model=STAND_IN, messages=MESSAGES, tools=TOOLS)
    assert time.perf_counter() - began >= 3 * 0.7 * LATENCY_MS / 1000


def test_models_say_whose_price_is_charged(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == STAND_IN
    assert (model.model_extra or {})["notice"] == "stand-in teacher (scripted), priced as gpt-4o by genai-prices"


def test_bad_requests_get_openai_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-none", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as empty:
        client.chat.completions.create(model=STAND_IN, messages=[])
    assert empty.value.param == "messages"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b'{"model": 1}', b'{"model": "order-desk-expert", "messages": 5}'])
def test_garbage_gets_an_openai_error(url: str, body: bytes) -> None:
    request = urllib.request.Request(f"{url}/chat/completions", data=body, headers={"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    with refused.value as response:
        error = json.loads(response.read())["error"]
    assert response.status in (400, 404) and error["type"] == "invalid_request_error" and error["message"]


def test_unknown_paths_get_an_openai_error(url: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{url}/embeddings", timeout=20)
    with refused.value as response:
        assert response.status == 404 and json.loads(response.read())["error"]["message"] == "Not Found"


def test_a_port_in_use_is_said(url: str) -> None:
    port = url.rsplit(":", 1)[1].removesuffix("/v1")
    ended = subprocess.run([sys.executable, "-c", WITHOUT_THE_DESK, "--port", port], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and f"cannot listen on 127.0.0.1:{port}" in ended.stderr and "--port" in ended.stderr


def test_costs_are_list_prices() -> None:
    usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000)
    assert cost_micro_usd(usage, STAND_IN) == cost_micro_usd(usage, "gpt-4o") == 12_500_000
    assert cost_micro_usd(Usage(input_tokens=1_000_000, output_tokens=0, cached_tokens=1_000_000), STAND_IN) == 1_250_000
    assert cost_micro_usd(usage, "no-such-model") is None
