"""Events a second through the whole of ingest, beside two yardsticks on the same topic in the same run. JSON on standard output.

    python bench/ingest.py                                  Apache Kafka, started for it (STILLHOUSE_TEST_KAFKA)
    python bench/ingest.py --bootstrap-servers HOST:PORT    any broker that runs

`bare` is aiokafka's getmany and fastavro, and nothing else; `faust` a stock Faust agent that only decodes; `ingest` is one process
from the topic to committed offsets: decoded, folded, scored, in LanceDB, facts published. Each is a process of its own, timed
from its first record to its last (ingest: to the commit of the last), in turns, and the median of its turns counts.
"""

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
PARTITIONS, STEPS, OPEN = 6, 10, 300
TEXT = "The order was found and its address is as the customer wrote it; nothing else is to be changed before it leaves today. "


def events(count: int) -> "list[tuple[str, bytes, list[tuple[str, bytes]]]]":
    """Key, value and headers of about `count` events of 1 KB, many trajectories interleaved."""
    from stillhouse.schemas import codec
    from stillhouse.schemas.events import StepTaken
    from stillhouse.schemas.messages import Message
    from tests.support.events import step, trajectory

    found = []
    per_run = STEPS + 2
    for block in range(count // (per_run * OPEN) + 1):
        runs = [trajectory(block * OPEN + n, steps=STEPS, name="bench") for n in range(OPEN)]
        for place in range(per_run):
            for run in runs:
                event = run[place]
                if isinstance(event.body, StepTaken):
                    answer = Message(role="tool", tool_call_id=event.body.action.tool_calls[0].id, content=TEXT * 6)
                    body = step(event.body.index, block, observation=(answer,), state=(Message(role="user", content=TEXT),))
                    event = msgspec.structs.replace(event, body=body)
                found.append((event.key, codec.encode(event), codec.headers_for(event, "sdk")))
    return found[:count]


def produce(settings: "object", topic: str, count: int) -> float:
    """Fill the topic; returns the mean size of a value."""
    from confluent_kafka import Producer

    from stillhouse.sdk.kafka import KafkaSettings, confluent_producer_args

    assert isinstance(settings, KafkaSettings)
    producer: Any = Producer(confluent_producer_args(settings, **{"linger.ms": 50, "queue.buffering.max.messages": 1_000_000}))
    found = events(count)
    for key, value, headers in found:
        producer.produce(topic, value, key=key, headers=headers)
    if producer.flush(120):
        raise SystemExit("the broker did not take the events")
    return statistics.fmean(len(value) for _, value, _ in found)


async def bare(bootstrap: str, topic: str, count: int) -> float:
    """Seconds of getmany and fastavro for all events."""
    from io import BytesIO

    import fastavro
    from aiokafka import AIOKafkaConsumer, TopicPartition

    from stillhouse.schemas.codec_schemas import newest

    schema = newest("AgentEvent").parsed
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest", check_crcs=False)
    await consumer.start()
    consumer.assign([TopicPartition(topic, n) for n in range(PARTITIONS)])
    seen, started = 0, 0.0
    while seen < count:
        for records in (await consumer.getmany(timeout_ms=1000, max_records=2000)).values():
            started = started or time.perf_counter()
            for record in records:
                stream = BytesIO(record.value)
                stream.seek(10)
                fastavro.schemaless_reader(stream, schema)
            seen += len(records)
    seconds = time.perf_counter() - started
    await consumer.stop()
    return seconds


def faust_agent(bootstrap: str, topic: str, count: int, folder: Path) -> None:
    """A stock Faust app with one agent; prints its seconds and ends."""
    from io import BytesIO

    import fastavro
    import faust

    from stillhouse.schemas.codec_schemas import newest

    schema = newest("AgentEvent").parsed
    app = faust.App(
        f"bench-{time.time_ns()}",
        broker=f"kafka://{bootstrap}",
        topic_disable_leader=True,
        stream_wait_empty=False,
        web_enabled=False,
        datadir=str(folder),
    )
    source = app.topic(topic, key_type=bytes, value_type=bytes, value_serializer="raw")
    seen, started = 0, 0.0

    @app.agent(source)
    async def decode(stream: "object") -> None:
        nonlocal seen, started
        async for value in stream:  # type: ignore[attr-defined]
            started = started or time.perf_counter()
            reader = BytesIO(value)
            reader.seek(10)
            fastavro.schemaless_reader(reader, schema)
            seen += 1
            if seen == count:
                print(json.dumps({"seconds": time.perf_counter() - started, "cpu": _cpu()}), flush=True)
                os._exit(0)

    faust.Worker(app, loglevel="ERROR", redirect_stdouts=False).execute_from_commandline()


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def ingest(bootstrap: str, prefix: str, topic: str, count: int) -> dict[str, float]:
    """Seconds of one ingest process from its first record to the commit of the last."""
    import psutil
    from confluent_kafka import Consumer, TopicPartition

    from stillhouse.sdk.store import Store

    group = f"bench-{time.time_ns()}"
    with tempfile.TemporaryDirectory() as state:
        environment = os.environ | {
            "STILLHOUSE_KAFKA__PREFIX": prefix,
            "STILLHOUSE_INGEST__GROUP": group,
            "STILLHOUSE_INGEST__FLUSH_EVERY": "0.5",
        }
        command = [sys.executable, "-m", "stillhouse.streams.ingest", "--state", state, "--bootstrap-servers", bootstrap]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline(), "ingest did not start"
        started, before = time.perf_counter(), _cpu_of(psutil.Process(process.pid))
        reader = Consumer({"bootstrap.servers": bootstrap, "group.id": f"{prefix}.{group}"})
        places = [TopicPartition(topic, n) for n in range(PARTITIONS)]
        while sum(max(0, place.offset) for place in reader.committed(places, timeout=10)) < count:
            time.sleep(0.05)
            if process.poll() is not None:
                raise SystemExit("ingest ended")
        seconds, cpu = time.perf_counter() - started, _cpu_of(psutil.Process(process.pid)) - before
        reader.close()
        process.terminate()
        process.wait(30)
        rows = len(Store.open(Path(state) / "lance").trajectories(columns=["key"]))
    return {"seconds": seconds, "cpu": cpu, "rows": rows}


def _cpu_of(process: "object") -> float:
    used = process.cpu_times()  # type: ignore[attr-defined]
    return float(used.user + used.system)


def _child(kind: str, bootstrap: str, topic: str, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", kind, "--bootstrap-servers", bootstrap, "--topic", topic, "--events", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(bootstrap: str, count: int, turns: int) -> dict[str, object]:
    """All three, in turns."""
    from stillhouse.sdk.kafka import KafkaSettings, apply_topics, topic_name

    settings = KafkaSettings(bootstrap_servers=bootstrap, prefix=f"bench{time.time_ns()}", partitions=PARTITIONS)
    apply_topics(settings)
    topic = topic_name(settings, "agent.events")
    size = produce(settings, topic, count)
    seconds: dict[str, list[float]] = {"bare": [], "faust": [], "ingest": []}
    cpu: dict[str, list[float]] = {"bare": [], "faust": [], "ingest": []}
    rows = 0.0
    for _ in range(turns):
        for kind in seconds:
            got = ingest(bootstrap, settings.prefix, topic, count) if kind == "ingest" else _child(kind, bootstrap, topic, count)
            rows = got.get("rows", rows)
            seconds[kind].append(got["seconds"])
            cpu[kind].append(got["cpu"])
    rate = {kind: count / statistics.median(found) for kind, found in seconds.items()}
    return {
        "events": count,
        "event_bytes": round(size),
        "partitions": PARTITIONS,
        "rows": int(rows),
        "turns": turns,
        "events_per_second": {kind: round(found) for kind, found in rate.items()},
        "cpu_microseconds_per_event": {kind: round(1e6 * statistics.median(found) / count, 1) for kind, found in cpu.items()},
        "ratio_to_bare": round(rate["ingest"] / rate["bare"], 2),
        "ratio_to_faust": round(rate["ingest"] / rate["faust"], 2),
        "goal": {"ratio_to_bare": 0.5, "ratio_to_faust": 5},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap-servers")
    parser.add_argument("--events", type=int, default=302_400)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--child", choices=["bare", "faust"], help=argparse.SUPPRESS)
    parser.add_argument("--topic", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child == "bare":
        seconds = asyncio.run(bare(args.bootstrap_servers, args.topic, args.events))
        print(json.dumps({"seconds": seconds, "cpu": _cpu()}))
    elif args.child == "faust":
        with tempfile.TemporaryDirectory() as folder:
            sys.argv = [sys.argv[0], "worker", "--without-web"]
            faust_agent(args.bootstrap_servers, args.topic, args.events, Path(folder))
    elif args.bootstrap_servers:
        print(json.dumps(run(args.bootstrap_servers, args.events, args.turns), indent=1))
    else:
        kafka_folder = Path(os.environ.get("STILLHOUSE_TEST_KAFKA", ROOT.parent / "shared" / "kafka"))
        with subprocess.Popen([kafka_folder / "run-kafka"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as kafka:
            assert kafka.stdout is not None
            try:
                print(json.dumps(run(json.loads(kafka.stdout.readline())["bootstrap_servers"], args.events, args.turns), indent=1))
            finally:
                kafka.terminate()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
