"""Tells the topic `students` what became of a student."""

from typing import Any

from stillhouse.schemas.codec import encode
from stillhouse.schemas.errors import UnreachableError
from stillhouse.schemas.facts import StudentState
from stillhouse.schemas.topics import STUDENTS
from stillhouse.sdk.kafka import KafkaSettings, confluent_producer_args, topic_name

TIMEOUT_S = 30.0


def publish(settings: KafkaSettings, state: StudentState) -> None:
    """Publish one state and wait until the broker has it. The same state told twice says nothing new: readers go by `prev`.

    Raises:
        UnreachableError: the broker did not acknowledge it.
    """
    from confluent_kafka import Producer

    refused: list[str] = []

    def delivered(error: Any, _message: Any) -> None:
        if error is not None:
            refused.append(error.str())

    producer = Producer(confluent_producer_args(settings))
    producer.produce(topic_name(settings, STUDENTS), key=state.student.encode(), value=encode(state), on_delivery=delivered)
    left = producer.flush(TIMEOUT_S)
    if left or refused:
        why = refused[0] if refused else f"no answer in {TIMEOUT_S:g} s"
        fix = "The student is registered; run the window again to tell the topic."
        raise UnreachableError(f"the topic {STUDENTS} was not told: {why}", where=settings.bootstrap_servers, fix=fix)
