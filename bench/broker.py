"""The embedded broker under load: events a second and CPU seconds for 120,000 events of 1 KB, in and out.

    python bench/broker.py [--events 120000] [--size 1000] [--fsync on|off]

One confluent-kafka producer (idempotent, acks=all) and one consumer, both in this process; the broker is a process of its own.
Prints one line of JSON.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import psutil
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.support.brokers import RunningBroker, start_embedded

PARTITIONS = 6


def cpu_seconds(broker: RunningBroker) -> float:
    times = psutil.Process(broker.pid).cpu_times()
    return float(times.user + times.system)


def produce(bootstrap: str, events: int, size: int) -> float:
    producer = Producer(
        {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5, "queue.buffering.max.messages": events}
    )
    value, started = bytes(size), time.perf_counter()
    for number in range(events):
        producer.produce("bench", value, key=b"%d" % (number % 1000))
        producer.poll(0)
    if producer.flush(120):
        raise RuntimeError("not everything was acknowledged within 120 s")
    return time.perf_counter() - started


def consume(bootstrap: str, events: int) -> float:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False})
    consumer.assign([TopicPartition("bench", index, 0) for index in range(PARTITIONS)])
    started, read = time.perf_counter(), 0
    while read < events:
        read += len(consumer.consume(10_000, timeout=1))
    seconds = time.perf_counter() - started
    consumer.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=120_000)
    parser.add_argument("--size", type=int, default=1000, help="bytes of each value")
    parser.add_argument("--fsync", choices=("on", "off"), default="on")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        broker = start_embedded(Path(folder) / "state", fsync=args.fsync == "on")
        admin = AdminClient({"bootstrap.servers": broker.bootstrap})
        admin.create_topics([NewTopic("bench", PARTITIONS, 1)])["bench"].result(20)
        idle = cpu_seconds(broker)
        produced = produce(broker.bootstrap, args.events, args.size)
        after_produce = cpu_seconds(broker)
        consumed = consume(broker.bootstrap, args.events)
        after_consume = cpu_seconds(broker)
        memory = psutil.Process(broker.pid).memory_info().rss
        broker.stop()
    report = {
        "events": args.events,
        "bytes": args.size,
        "fsync": args.fsync,
        "produced_per_s": round(args.events / produced),
        "consumed_per_s": round(args.events / consumed),
        "broker_cpu_s_produce": round(after_produce - idle, 2),
        "broker_cpu_s_consume": round(after_consume - after_produce, 2),
        "broker_rss_mb": round(memory / 1e6),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
