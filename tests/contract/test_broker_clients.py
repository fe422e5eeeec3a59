"""Clients that are programs of their own: Faust on both brokers, and Kafka's own Java tools on ours."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

MakeTopic = Callable[..., str]


def produce(bootstrap: str, topic: str, values: list[str]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap})
    for value in values:
        producer.produce(topic, value.encode(), key=value.encode())
    assert producer.flush(20) == 0


def wait_committed(bootstrap: str, group: str, topic: str, expected: int) -> None:
    """Until a group's committed offsets in the topic's 4 partitions add up to `expected`."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group})
    places, found, deadline = [TopicPartition(topic, index) for index in range(4)], 0, time.monotonic() + 30
    while found != expected:
        assert time.monotonic() < deadline, f"{found} committed of {expected}"
        consumer.poll(0.05)  # subscribed to nothing: it only lets the broker breathe
        found = sum(max(place.offset, 0) for place in consumer.committed(places, timeout=10))
    consumer.close()


@pytest.mark.timeout(90)
def test_a_faust_worker_reads_commits_and_goes_on_where_it_was(bootstrap: str, make_topic: MakeTopic, tmp_path: Path) -> None:
    topic, app = make_topic(4), f"app-{uuid4().hex[:8]}"
    command = [sys.executable, str(Path(__file__).with_name("faust_app.py")), bootstrap, app, topic, str(tmp_path / "faust")]
    for first in (0, 200):
        values = [str(number) for number in range(first, first + 200)]
        produce(bootstrap, topic, values)
        with (tmp_path / "faust.log").open("ab") as log:
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
        assert worker.stdout is not None
        got: list[str] = []
        for line in worker.stdout:  # first Faust's banner, then the values; at last the end of its output
            got += [line.split()[1]] if line.startswith("value ") else []
            if len(got) == len(values):
                wait_committed(bootstrap, app, topic, first + 200)
                worker.send_signal(signal.SIGTERM)
        worker.wait(30)
        worker.stdout.close()
        assert sorted(got, key=int) == values, (tmp_path / "faust.log").read_text()[-2000:]


@pytest.mark.kafka
def test_kafkas_own_tools(embedded: str, kafka_folder: Path) -> None:
    """Java's client 4.3.1 is a third opinion on what the embedded broker speaks."""
    topic = f"java-{uuid4().hex[:8]}"
    quick_jvm = os.environ | {"JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1"}

    def tool(name: str, *arguments: str, text: str | None = None) -> str:
        command = [str(kafka_folder / "kafka-tool"), name, "--bootstrap-server", embedded, *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, env=quick_jvm)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "Created topic" in tool("topics", "--create", "--topic", topic, "--partitions", "3", "--config", "retention.ms=86400000")
    tool("configs", "--entity-type", "topics", "--entity-name", topic, "--alter", "--add-config", "max.message.bytes=2000000")
    described = tool("topics", "--describe", "--topic", topic)
    assert "PartitionCount: 3" in described and "max.message.bytes=2000000" in described and "retention.ms=86400000" in described
    assert "max.message.bytes=2000000" in tool("configs", "--entity-type", "topics", "--entity-name", topic, "--describe")
    load = ("--topic", topic, "--num-records", "5000")
    assert "5000 records sent" in tool("perf-producer", *load, "--record-size", "500", "--throughput", "-1")
    assert ", 5000, " in tool("perf-consumer", *load)
    tool("console-producer", "--topic", topic, text="a\nb\nc\n")
    read = ("--topic", topic, "--group", topic, "--from-beginning", "--max-messages", "5003", "--timeout-ms", "30000")
    assert {"a", "b", "c"} <= set(tool("console-consumer", *read).split("\n"))
    rows = [line.split() for line in tool("groups", "--describe", "--group", topic).splitlines() if line.startswith(topic)]
    assert sum(int(row[3]) for row in rows) == 5003 and all(row[5] == "0" for row in rows)
    assert "was successful" in tool("groups", "--delete", "--group", topic)
    tool("topics", "--delete", "--topic", topic)
