"""How large the log of events is and how fast it grows, from the broker itself."""

from dataclasses import dataclass

from stillhouse.schemas.errors import UnreachableError
from stillhouse.schemas.topics import EVENTS, TOPICS
from stillhouse.sdk.kafka import KafkaSettings, confluent_args, topic_name

SECONDS = 5.0
SAMPLE = 50  # records a partition whose mean size stands for all
DAY_MS = 86_400_000


@dataclass(frozen=True)
class LogSize:
    """Events in the log, missing topics, and the growth when there is a day's worth to measure it on."""

    events: int
    missing: tuple[str, ...]
    gib_a_day: float | None
    days: float


def measure(settings: KafkaSettings) -> LogSize:
    """Ask the broker.

    Raises:
        UnreachableError: it does not answer.
    """
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    group = {"group.id": "stillhouse-doctor", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    consumer = Consumer(confluent_args(settings, **group))
    try:
        topics = consumer.list_topics(timeout=SECONDS).topics
        missing = tuple(t.name for t in TOPICS if topic_name(settings, t.name) not in topics)
        name = topic_name(settings, EVENTS)
        partitions = list(topics[name].partitions) if name in topics else []
        events, sizes, times = 0, [], []
        for partition in partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=SECONDS)
            events += high - low
            if high > low:
                consumer.assign([TopicPartition(name, partition, low)])
                for message in consumer.consume(min(SAMPLE, high - low), timeout=SECONDS):
                    sizes.append(len(message.value() or b"") + len(message.key() or b""))
                    times.append(message.timestamp()[1])
                consumer.assign([TopicPartition(name, partition, high - 1)])
                times += [m.timestamp()[1] for m in consumer.consume(1, timeout=SECONDS)]
    except KafkaException as error:
        fix = "Start it, or set [kafka] bootstrap_servers."
        raise UnreachableError(f"no Kafka broker answers: {error.args[0].str()}", where=settings.bootstrap_servers, fix=fix) from error
    finally:
        consumer.close()
    span = max(times) - min(times) if times else 0
    growth = events * (sum(sizes) / len(sizes)) / 2**30 * DAY_MS / span if span > DAY_MS / 24 else None
    days = next(int(t.config["retention.ms"]) for t in TOPICS if t.name == EVENTS) / DAY_MS
    return LogSize(events, missing, growth, days)
