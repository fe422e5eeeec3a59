"""The server as a process, driven by the stock OpenAI client."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import openai
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from stillhouse.schemas.openai import from_openai
from stillhouse.schemas.render import Renderer, RenderSpec
from stillhouse.trainer.evaluation.engine import StudentEngine, student_engine
from stillhouse.trainer.evaluation.replica import busy_seconds
from stillhouse.trainer.models import tiny

pytestmark = pytest.mark.model
ASK: list[Any] = [{"role": "user", "content": "Cancel my blue lamp."}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "cancel", "parameters": {"properties": {"id": {"type": "string"}}}}}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("models") / "tiny", seed=1)


@pytest.fixture(scope="module")
def students(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students of the tiny model, with their own view."""
    folder = tmp_path_factory.mktemp("students")
    spec = RenderSpec(system="replace", system_prompt="Desk.", tools="drop", grammar="bare-json", context_limit=120).for_model(base)
    for name, seed in (("one", 1), ("two", 2)):
        model = AutoModelForCausalLM.from_pretrained(base)
        lora = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"))
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, parameter in lora.named_parameters():
                if "lora_" in key:
                    parameter.normal_(std=0.5)
        lora.save_pretrained(folder / name)
        spec.save(folder / name / "render.json")
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "student.log"


@pytest.fixture(scope="module")
def engine(base: Path, students: Path, log: Path) -> Iterator[StudentEngine]:
    with student_engine(
        base, students=students, log=log, threads=1, options=["--queue", "40", "--wait-ms", "5", "--dtype", "float32"]
    ) as running:
        running.load("one", students / "one")
        yield running


@pytest.fixture
def client(engine: StudentEngine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=engine.base_url, api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture
async def asynchronous(engine: StudentEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=engine.base_url, api_key="none", max_retries=0) as found:
        yield found


def test_models_are_listed_with_their_parent(client: openai.OpenAI, engine: StudentEngine) -> None:
    models = {m.id: m.model_dump() for m in client.models.list()}
    assert next(iter(models)) == engine.base
    assert models["one"]["parent"] == engine.base
    assert models["one"]["max_model_len"] == 120


def test_a_chat_is_rendered_by_the_students_own_spec(client: openai.OpenAI, base: Path, students: Path) -> None:
    answer = client.chat.completions.create(model="one", messages=ASK, tools=TOOLS, temperature=0, max_tokens=8)
    renderer = Renderer(RenderSpec.load(students / "one" / "render.json"), base)
    ids = renderer.encode(from_openai(ASK), TOOLS, add_generation_prompt=True).ids
    raw = client.completions.create(model="one", prompt=ids, temperature=0, max_tokens=8, extra_body={"return_token_ids": True})
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)
    assert raw.choices[0].model_dump()["prompt_token_ids"] == ids
    assert answer.choices[0].message.content == raw.choices[0].text
    assert raw.usage is not None
    assert raw.usage.prompt_tokens_details is not None
    assert raw.usage.prompt_tokens_details.cached_tokens == len(ids) - 1  # the chat before had the same prompt


def test_a_stream_says_what_the_whole_says(client: openai.OpenAI, engine: StudentEngine) -> None:
    asked: dict[str, Any] = {"model": engine.base, "messages": ASK, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    with client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    with client.completions.create(model="one", prompt="hello", temperature=0, max_tokens=6, stream=True) as pieces:
        streamed = "".join(p.choices[0].text for p in pieces)
    assert streamed == client.completions.create(model="one", prompt="hello", temperature=0, max_tokens=6).choices[0].text


def test_a_stream_of_a_completion_tells_tokens_and_usage_when_asked(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "one", "prompt": [5, 6], "temperature": 0, "max_tokens": 6, "extra_body": {"return_token_ids": True}}
    whole: Any = client.completions.create(**asked)
    with client.completions.create(**asked, stream=True, stream_options={"include_usage": True}) as stream:
        *pieces, last = stream
    said: Any = [piece.choices[0] for piece in pieces]
    assert [token for choice in said for token in choice.token_ids] == whole.choices[0].token_ids
    assert said[0].prompt_token_ids == [5, 6] and said[-1].finish_reason == whole.choices[0].finish_reason
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens == len(whole.choices[0].token_ids)


def test_metrics_say_when_the_process_began(engine: StudentEngine) -> None:
    lines = httpx.get(f"{engine.url}/metrics").text.splitlines()
    began = next(float(line.split()[1]) for line in lines if line.startswith("process_start_time_seconds "))
    assert 0 < time.time() - began < 3600


async def test_many_at_once_say_what_each_says_alone(asynchronous: openai.AsyncOpenAI, engine: StudentEngine) -> None:
    async def ask(i: int, model: str) -> str | None:
        messages: list[Any] = [{"role": "user", "content": f"Order {i} " * (i + 1)}]
        answer = await asynchronous.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=8)
        return answer.choices[0].message.content

    asked = [(i, model) for i in range(6) for model in ("one", engine.base)]
    together = await asyncio.gather(*(ask(i, m) for i, m in asked))
    assert together == [await ask(i, m) for i, m in asked]
    assert len(set(together)) > 2


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "one", "prompt": [5, 6, 7], "temperature": 0, "max_tokens": 20}
    text = client.completions.create(**asked).choices[0].text
    stop = text[4:6]
    cut = client.completions.create(**asked, stop=stop).choices[0]
    assert cut.text == text[: text.index(stop)]
    assert cut.finish_reason == "stop"


def test_attestation_scores_a_sequence_and_generates_nothing(client: openai.OpenAI, base: Path) -> None:
    ids = [5, 6, 7, 8, 9, 10]
    answer = client.completions.create(
        model="one", prompt=ids, max_tokens=0, echo=True, logprobs=0, extra_body={"return_tokens_as_token_ids": True}
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.tokens == [f"token_id:{i}" for i in ids]
    assert found.token_logprobs is not None
    assert found.token_logprobs[0] is None
    other = client.completions.create(model=client.models.list().data[0].id, prompt=ids, max_tokens=0, echo=True, logprobs=0)
    assert other.choices[0].logprobs is not None
    assert other.choices[0].logprobs.token_logprobs != found.token_logprobs
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.inference_mode():
        scores = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    expected = [scores[i, t].item() for i, t in enumerate(ids[1:])]
    assert other.choices[0].logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)


def test_bfloat16_scores_a_sequence_nearly_as_float32_does(client: openai.OpenAI, base: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"prompt": [5, 6, 7, 8, 9, 10], "max_tokens": 0, "echo": True, "logprobs": 0}
    exact = client.completions.create(model=client.models.list().data[0].id, **asked).choices[0].logprobs
    with (
        student_engine(base, log=tmp_path / "log", threads=1, options=["--dtype", "bfloat16"]) as engine,
        openai.OpenAI(base_url=engine.base_url, api_key="x") as other,
    ):
        rounded = other.completions.create(model=engine.base, **asked).choices[0].logprobs
    assert exact is not None and exact.token_logprobs and rounded is not None and rounded.token_logprobs
    assert rounded.token_logprobs != exact.token_logprobs
    assert rounded.token_logprobs[1:] == pytest.approx(exact.token_logprobs[1:], abs=0.1)


def test_generated_tokens_have_log_probabilities(client: openai.OpenAI) -> None:
    choice = client.completions.create(model="one", prompt=[5, 6], temperature=0, max_tokens=3, logprobs=2).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.top_logprobs is not None
    for own, top in zip(choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True):
        assert own == pytest.approx(max(top.values()))  # greedy took the likeliest
    chat = client.chat.completions.create(model="one", messages=ASK, temperature=0, max_tokens=3, logprobs=True, top_logprobs=1)
    assert chat.choices[0].logprobs is not None
    assert chat.choices[0].logprobs.content is not None
    assert len(chat.choices[0].logprobs.content) == 3


def test_a_malformed_action_is_content_and_flagged(client: openai.OpenAI) -> None:
    # Every token ends the turn: the reply is empty.
    raw = client.chat.completions.with_raw_response.create(
        model="one", messages=ASK, temperature=0, max_tokens=4, extra_body={"stop_token_ids": list(range(512))}
    )
    choice = raw.parse().choices[0]
    assert choice.message.content == ""
    assert "empty" in raw.headers["x-stillhouse-format-error"]
    assert choice.model_dump()["x_stillhouse_format_error"] == raw.headers["x-stillhouse-format-error"]


def refused(code: int, call: Any, **kw: Any) -> str:
    with pytest.raises(openai.APIStatusError) as caught:
        call(**kw)
    assert caught.value.status_code == code
    assert isinstance(caught.value.body, dict)
    assert {"message", "type", "param", "code"} <= set(caught.value.body)
    return str(caught.value.body["message"])


def test_bad_requests_say_what_is_wrong(client: openai.OpenAI) -> None:
    chat, text = client.chat.completions.create, client.completions.create
    good: dict[str, Any] = {"model": "one", "messages": ASK}
    assert "`nobody` does not exist" in refused(404, chat, **(good | {"model": "nobody"}))
    assert "n=1" in refused(400, chat, **good, n=2)
    assert "temperature" in refused(400, chat, **good, temperature=3)
    assert "role" in refused(400, chat, **(good | {"messages": [{"role": "wizard", "content": "x"}]}))
    assert "empty" in refused(400, chat, **(good | {"messages": []}))
    assert "forced" in refused(400, chat, **good, tools=TOOLS, tool_choice="required")
    assert "function" in refused(400, chat, **good, tools=[{"type": "function"}])
    assert "cannot be read" in refused(400, chat, **(good | {"messages": "hello"}))
    assert "context length is 120" in refused(400, text, model="one", prompt=[5] * 121)
    assert "token ids" in refused(400, text, model="one", prompt=[5, 10**6])
    assert "prompt" in refused(400, text, model="one", prompt=[])
    assert "prompt" in refused(400, text, model="one", prompt=[{"a": 1}])
    assert "larger than" in refused(413, text, model="one", prompt="x" * (9 << 20))


def test_adapters_come_and_go_by_vllms_calls(client: openai.OpenAI, students: Path) -> None:
    def post(action: str, **body: Any) -> str:
        return client.post(f"/{action}_lora_adapter", body=body, cast_to=str)

    load, unload = partial(post, "load"), partial(post, "unload")
    assert load(lora_name="two", lora_path="two") == "Success: LoRA adapter 'two' added successfully."
    assert "Success" in load(lora_name="two", lora_path=str(students / "two"))  # the very same changes nothing
    said = client.completions.create(model="two", prompt=[5, 6], temperature=0, max_tokens=8).choices[0].text
    assert said != client.completions.create(model="one", prompt=[5, 6], temperature=0, max_tokens=8).choices[0].text
    assert "other content" in refused(400, load, lora_name="two", lora_path="one")
    assert "students folder" in refused(400, load, lora_name="three", lora_path="/")
    assert "must be provided" in refused(400, load, lora_name="three")
    assert "No adapter found" in refused(404, load, lora_name="three", lora_path="three")
    assert unload(lora_name="two") == "Success: LoRA adapter 'two' removed successfully."
    assert "cannot be found" in refused(404, unload, lora_name="two")
    assert "must be provided" in refused(400, unload)
    refused(404, client.completions.create, model="two", prompt=[5])
    load(lora_name="two", lora_path="two")
    assert client.completions.create(model="two", prompt=[5, 6], temperature=0, max_tokens=8).choices[0].text == said
    unload(lora_name="two")


async def test_a_full_queue_is_503_with_retry_after(engine: StudentEngine) -> None:
    async with aiohttp.ClientSession() as session:

        async def ask() -> tuple[int, str | None]:
            body = {"model": engine.base, "prompt": [5, 6], "max_tokens": 60, "ignore_eos": True}
            async with session.post(f"{engine.base_url}/completions", json=body) as response:
                await response.read()
                return response.status, response.headers.get("retry-after")

        answers = await asyncio.gather(*(ask() for _ in range(100)))
    assert {status for status, _ in answers} == {200, 503}
    assert {after for status, after in answers if status == 503} == {"1"}


async def test_a_client_that_leaves_frees_its_place(engine: StudentEngine) -> None:
    async with aiohttp.ClientSession() as session:

        async def running() -> float:
            async with session.get(f"{engine.url}/metrics") as response:
                return value(await response.text(), "stillhouse_student_running_requests")

        body = {"model": engine.base, "prompt": [5, 6], "max_tokens": 2000, "ignore_eos": True, "stream": True}
        response = await session.post(f"{engine.base_url}/completions", json=body)
        await response.content.readany()
        assert await running() == 1
        response.close()
        async with asyncio.timeout(20):
            while await running():
                await asyncio.sleep(0)


def value(text: str, name: str) -> float:
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(name + " ")))


async def test_health_and_metrics(engine: StudentEngine, asynchronous: openai.AsyncOpenAI) -> None:
    before = await busy_seconds(engine.base_url)
    await asynchronous.completions.create(model="one", prompt=[5, 6, 9], max_tokens=5)
    after = await busy_seconds(engine.base_url)
    assert before is not None
    assert after is not None
    assert after > before
    async with aiohttp.ClientSession() as session:
        for path in ("/healthz", "/readyz"):
            async with session.get(engine.url + path) as response:
                assert (response.status, (await response.json())["ok"]) == (200, True)
        async with session.get(engine.url + "/metrics") as response:
            text = await response.text()
    assert value(text, "stillhouse_student_adapters") == 1
    assert value(text, 'stillhouse_student_tokens_total{kind="generated"}') > 0
    assert 'stillhouse_student_requests_total{code="200",endpoint="/v1/completions"}' in text


def test_sigterm_lets_open_requests_end_and_no_new_ones_begin(base: Path, tmp_path: Path) -> None:
    with student_engine(base, log=tmp_path / "log", threads=1) as engine, openai.OpenAI(base_url=engine.base_url, api_key="x") as client:
        asked: dict[str, Any] = {"model": engine.base, "prompt": [5], "max_tokens": 300, "extra_body": {"ignore_eos": True}}
        with client.completions.create(**asked, stream=True) as stream:
            pieces = iter(stream)
            next(pieces)
            os.kill(engine.pid, signal.SIGTERM)
            finish = [p.choices[0].finish_reason for p in pieces][-1]
        assert finish == "length"
        engine.stop()
        with pytest.raises(openai.APIConnectionError):
            client.with_options(max_retries=0).models.list()


async def test_a_killed_server_leaves_no_half_answer_and_nothing_stale(base: Path, students: Path, tmp_path: Path) -> None:
    """kill -9 with requests open: each ends in a connection error; a new process knows no adapter until it is loaded again."""
    asked: dict[str, Any] = {"prompt": [5, 6, 9], "temperature": 0, "max_tokens": 40, "extra_body": {"ignore_eos": True}}
    answers = []
    for crash in (True, False):
        with student_engine(base, students=students, log=tmp_path / "log", threads=1) as engine:
            async with openai.AsyncOpenAI(base_url=engine.base_url, api_key="x", max_retries=0) as client:
                with pytest.raises(openai.NotFoundError):
                    await client.completions.create(model="one", **asked)
                engine.load("one", students / "one")
                answers.append((await client.completions.create(model="one", **asked)).choices[0].text)
                if not crash:
                    engine.load("two", students / "two")
                    assert (await client.completions.create(model="two", **asked)).choices[0].text != answers[0]
                    continue
                long = {**asked, "max_tokens": 1500}
                stream = await client.completions.create(model="one", **long, stream=True)
                await anext(stream)  # it is in the middle of its answer
                whole = [asyncio.create_task(client.completions.create(model="one", **long)) for _ in range(3)]
                await _until_running(engine, 1)
                os.kill(engine.pid, signal.SIGKILL)
                ends = await asyncio.gather(*whole, return_exceptions=True)
                assert all(isinstance(end, openai.APIConnectionError) for end in ends), ends
                with pytest.raises((openai.APIConnectionError, httpx.HTTPError)):
                    async for _ in stream:
                        pass
    assert answers[0] == answers[1]


async def _until_running(engine: StudentEngine, more_than: int) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(20):
        while True:
            async with session.get(f"{engine.url}/metrics") as response:
                if value(await response.text(), "stillhouse_student_running_requests") > more_than:
                    return


@pytest.mark.parametrize("options", [["--model", "nowhere"], ["--model", "nowhere", "--threads", "0"]])
def test_a_wrong_start_says_why(options: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "stillhouse.serving.student", *options], capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert "no model" in done.stderr or "at least 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_logs_are_json(engine: StudentEngine, log: Path) -> None:
    events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert any(e["event"] == "adapter_loaded" and e["name"] == "one" for e in events)
