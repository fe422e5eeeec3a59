"""What the gateway costs: requests a second and CPU a request beside a bare aiohttp pass-through, and the latency that it adds.

All three (upstream, pass-through, gateway) are processes on this machine, measured in turns within one run; capture is on, to the embedded
broker. LiteLLM's proxy is measured beside them when it is installed in an environment of its own, `.venv-litellm` or `--litellm PYTHON`.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiohttp import web

WORDS = 40
TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
LITELLM = ".venv-litellm/bin/python"
ASK = [{"role": "system", "content": "You are an order desk. " * 20}, {"role": "user", "content": "Where is order 4711? " * 5}]
BODY: dict[str, Any] = {"model": "bench", "messages": ASK, "temperature": 0}


async def _upstream(request: web.Request) -> web.StreamResponse:
    body = orjson.loads(await request.read())
    usage = {"prompt_tokens": 150, "completion_tokens": WORDS, "total_tokens": 150 + WORDS}
    head = {"id": "chatcmpl-1", "created": 1, "model": "bench"}
    if not body.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": "word " * WORDS}, "finish_reason": "stop"}
        return web.Response(
            body=orjson.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": usage}), content_type="application/json"
        )
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    head["object"] = "chat.completion.chunk"
    for n in range(WORDS + 1):
        delta, finish = ({"content": "word "}, None) if n < WORDS else ({}, "stop")
        await response.write(b"data: %b\n\n" % orjson.dumps({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}))
    if (body.get("stream_options") or {}).get("include_usage"):
        await response.write(b"data: %b\n\n" % orjson.dumps({**head, "choices": [], "usage": usage}))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _bare(url: str) -> Any:
    """A pass-through that does nothing else."""
    session: list[aiohttp.ClientSession] = []

    async def forward(request: web.Request) -> web.StreamResponse:
        if not session:
            session.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        data = await request.read()
        async with session[0].post(url + "/v1/chat/completions", data=data, headers={"Content-Type": "application/json"}) as upstream:
            if upstream.content_type != "text/event-stream":
                return web.Response(status=upstream.status, body=await upstream.read(), content_type="application/json")
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            async for part in upstream.content.iter_any():
                await response.write(part)
            await response.write_eof()
            return response

    return forward


async def _listen(handler: Any) -> None:
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(json.dumps({"url": f"http://127.0.0.1:{runner.addresses[0][1]}", "pid": os.getpid()}), flush=True)
    await asyncio.Event().wait()


def _start(command: list[str]) -> "tuple[subprocess.Popen[str], dict[str, Any]]":
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


async def _one(session: aiohttp.ClientSession, url: str, stream: bool) -> float:
    began = time.perf_counter()
    async with session.post(url + "/v1/chat/completions", json=BODY | {"stream": stream}) as response:
        data = await response.read()
        assert response.status == 200 and (not stream or b"[DONE]" in data), data[:300]
    return time.perf_counter() - began


@dataclass
class Target:
    """A server under test."""

    url: str
    pid: int

    def cpu_ms(self) -> float:
        """What its process has used, of user and system; the kernel counts in ticks of 10 ms."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_MS


async def _throughput(target: Target, stream: bool, clients: int, seconds: float) -> tuple[float, float]:
    """Requests a second, and milliseconds of CPU a request."""
    url = target.url
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(_one(session, url, stream) for _ in range(clients)))
        end, done = time.perf_counter() + seconds, 0

        async def loop() -> None:
            nonlocal done
            while time.perf_counter() < end:
                await _one(session, url, stream)
                done += 1

        began, used = time.perf_counter(), target.cpu_ms()
        await asyncio.gather(*(loop() for _ in range(clients)))
        return done / (time.perf_counter() - began), (target.cpu_ms() - used) / done


async def _latencies(url: str, stream: bool, rate: float, seconds: float) -> list[float]:
    """Milliseconds of each request at an even rate."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(_one(session, url, stream) for _ in range(8)))
        began, tasks = time.perf_counter(), []
        for n in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + n / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(_one(session, url, stream)))
        return [1000 * one for one in await asyncio.gather(*tasks)]


def _litellm(python: str, upstream: str, folder: Path) -> "tuple[subprocess.Popen[str], str]":
    config = folder / "litellm.yaml"
    parameters = {"model": "openai/bench", "api_base": f"{upstream}/v1", "api_key": "none"}
    # Like the gateway it asks for no key, on loopback.
    general = {"dangerously_permit_weak_or_unset_master_key": True}
    config.write_text(json.dumps({"model_list": [{"model_name": "bench", "litellm_params": parameters}], "general_settings": general}))
    command = [str(Path(python).parent / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", "4123"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    return process, "http://127.0.0.1:4123"


async def _until_it_answers(process: "subprocess.Popen[str]", url: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                await _one(session, url, False)
                return
            except (aiohttp.ClientError, AssertionError):
                if process.poll() is not None or time.monotonic() > end:
                    raise
                await asyncio.sleep(0.5)


async def _measure(targets: dict[str, Target], seconds: float, rounds: int) -> None:
    for stream in (False, True):
        for clients in (1, 32):
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in targets}
            for _ in range(rounds):  # in turns, so that a busy moment of the machine meets all of them
                for name, target in targets.items():
                    found[name].append(await _throughput(target, stream, clients, seconds))
            medians = {name: statistics.median(rate for rate, _ in values) for name, values in found.items()}
            used = {name: statistics.median(cpu for _, cpu in values) for name, values in found.items()}
            rates = ", ".join(f"{name} {rate:,.0f}/s ({used[name]:.2f} ms CPU)" for name, rate in medians.items())
            ratios = ", ".join(f"{medians['gateway'] / medians[name]:.2f}x {name}" for name in targets if name != "gateway")
            print(f"stream={stream} c={clients}: {rates}; gateway is {ratios}", flush=True)
        late = {
            name: sorted(await _latencies(target.url, stream, 100, 3 * seconds)) for name, target in targets.items() if name != "litellm"
        }
        quantiles = {name: (values[len(values) // 2], values[int(len(values) * 0.99)]) for name, values in late.items()}
        for name in ("bare", "gateway"):
            p50, p99 = (quantiles[name][i] - quantiles["upstream"][i] for i in (0, 1))
            print(f"stream={stream} 100/s: {name} adds p50 {p50:.2f} ms, p99 {p99:.2f} ms", flush=True)


async def main(options: argparse.Namespace) -> None:
    started: list[subprocess.Popen[str]] = []

    def start(*command: str) -> dict[str, Any]:
        process, ready = _start([sys.executable, *command])
        started.append(process)
        return ready

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            broker = start("-m", "stillhouse.broker", "--dir", str(folder / "broker"), "--port", "0")["bootstrap_servers"]
            from stillhouse.sdk.kafka import KafkaSettings, apply_topics

            apply_topics(KafkaSettings(bootstrap_servers=broker, partitions=6))
            ready = {"upstream": start(__file__, "--serve", "upstream")}
            upstream = ready["upstream"]["url"]
            ready["bare"] = start(__file__, "--serve", upstream)
            route = f'[routes.bench]\nteacher_url = "{upstream}/v1"\nteacher_model = "bench"\ninput_usd_per_mtok = 1.0\n'
            (folder / "stillhouse.toml").write_text(route)
            arguments = ["--state", str(folder / "state"), "--config", str(folder / "stillhouse.toml"), "--bootstrap-servers", broker]
            ready["gateway"] = start("-m", "stillhouse.serving.gateway", *arguments)
            targets = {name: Target(one["url"], one["pid"]) for name, one in ready.items()}
            if options.litellm:
                process, url = _litellm(options.litellm, upstream, folder)
                started.append(process)
                await _until_it_answers(process, url)
                targets["litellm"] = Target(url, process.pid)
            await _measure(targets, options.seconds, options.rounds)
            async with aiohttp.ClientSession() as session, session.get(ready["gateway"]["admin"] + "/metrics") as response:
                refused = [
                    line for line in (await response.text()).splitlines() if line.startswith("stillhouse_gateway_capture_refused_total")
                ]
                print(f"load average {os.getloadavg()[0]:.1f}; {refused[0]}")
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    default = LITELLM if Path(LITELLM).exists() else None
    parser.add_argument(
        "--litellm", default=default, help=f"the python of an environment with litellm[proxy] (default: {LITELLM} if it exists)"
    )
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        asyncio.run(_listen(_upstream if chosen.serve == "upstream" else _bare(chosen.serve)))
    else:
        asyncio.run(main(chosen))
