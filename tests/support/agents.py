"""Agents as processes of their own, and what arrived on `agent.events`."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

from stillhouse.schemas.codec import decode
from stillhouse.schemas.events import AgentEvent
from stillhouse.schemas.topics import EVENTS
from stillhouse.sdk.kafka import KafkaSettings, apply_topics, topic_name

NO_BROKER = "127.0.0.1:1"
DEADLINE_S = 30.0


def make_topics(bootstrap: str, prefix: str = "") -> KafkaSettings:
    settings = KafkaSettings(bootstrap_servers=bootstrap, prefix=prefix)
    apply_topics(settings, partitions=3, replication=1)
    return settings


def arrived(settings: KafkaSettings) -> list[AgentEvent]:
    """Every event on the topic, each partition read to its end."""
    return [decode(value, AgentEvent) for value in values(settings, EVENTS)]


def values(settings: KafkaSettings, name: str) -> list[bytes]:
    topic = topic_name(settings, name)
    consumer = Consumer({"bootstrap.servers": settings.bootstrap_servers, "group.id": "tests", "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics(topic, timeout=DEADLINE_S).topics[topic].partitions
        ends = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=DEADLINE_S) for p in partitions}
        missing = sum(high - low for low, high in ends.values())
        consumer.assign([TopicPartition(topic, p, low) for p, (low, _) in ends.items()])
        found: list[bytes] = []
        deadline = time.monotonic() + DEADLINE_S
        while len(found) < missing and time.monotonic() < deadline:
            message = consumer.poll(0.5)
            if message is not None and message.error() is None:
                found.append(message.value() or b"")
        assert len(found) == missing
        return found
    finally:
        consumer.close()


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, looking every few milliseconds, at most `DEADLINE_S`."""
    deadline, pause = time.monotonic() + DEADLINE_S, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        pause.wait(0.01)


def agent(script: str, *arguments: str | Path) -> "subprocess.Popen[str]":
    """A Python process that runs `script` with `arguments` in sys.argv; its output is read by the test."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> str:
    """What the process printed; it must have ended well."""
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    return out
