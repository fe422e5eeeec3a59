"""The topic `teacher.tasks` as a runner reads it: whole, from its beginning, without a group.

The claims say what is done, so there is no position to keep, and a run that takes an hour holds up no rebalance.
"""

import heapq
import logging
from collections.abc import Collection
from typing import Any

from stillhouse.schemas import codec
from stillhouse.schemas.errors import PermanentError, UnreachableError
from stillhouse.schemas.facts import TeacherTask, TeacherTaskKind
from stillhouse.schemas.topics import TEACHER_TASKS
from stillhouse.sdk.kafka import KafkaSettings, confluent_args, topic_name

_log = logging.getLogger("stillhouse.sdk")
_TIMEOUT_S = 10.0
_AT_ONCE = 500


class TaskReader:
    """Reads tasks; those that wait are kept by priority.

    Args:
        settings: the section `[kafka]`.
        families: only these.
        tenant: only of this one.
        relabel: tasks of that kind, else all others.

    Raises:
        UnreachableError: no broker answers.
        PermanentError: there is no such topic.
    """

    def __init__(self, settings: KafkaSettings, families: Collection[str] | None, tenant: str | None, *, relabel: bool = False) -> None:
        from confluent_kafka import Consumer, KafkaException, TopicPartition

        self._families, self._tenant, self._relabel, self._where = families, tenant, relabel, settings.bootstrap_servers
        self._heap: list[tuple[float, int, str]] = []
        self._tasks: dict[str, TeacherTask] = {}
        ours = {"group.id": "stillhouse-runner-reader", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
        self._consumer: Any = Consumer(confluent_args(settings, **ours))
        topic = topic_name(settings, TEACHER_TASKS)
        try:
            partitions = self._consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic].partitions
        except KafkaException as error:
            self._consumer.close()
            raise UnreachableError(f"no Kafka broker answers: {error.args[0].str()}", where=self._where) from error
        if not partitions:
            self._consumer.close()
            raise PermanentError(f"no topic {topic}", where=self._where, fix="Run `stillhouse topics apply`.")
        self._consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])

    def poll(self, timeout: float) -> None:
        """Take what has come; wait for at most `timeout` seconds."""
        for message in self._consumer.consume(_AT_ONCE, timeout):
            if message.error():
                _log.warning("teacher.tasks: %s", message.error().str())
                continue
            try:
                task = codec.decode(message.value() or b"", TeacherTask)
            except codec.UndecodableError as error:
                _log.warning("a record of teacher.tasks at offset %s is no task: %s", message.offset(), error)
                continue
            if self._wanted(task) and task.task_id not in self._tasks:
                self._tasks[task.task_id] = task
                heapq.heappush(self._heap, (-task.priority, task.issued_at, task.task_id))

    def take(self, most: int) -> list[TeacherTask]:
        """The tasks that wait, the most wanted first; they wait no longer."""
        return [self._tasks.pop(heapq.heappop(self._heap)[2]) for _ in range(min(most, len(self._heap)))]

    def put_back(self, tasks: Collection[TeacherTask]) -> None:
        """Let tasks wait again."""
        for task in tasks:
            self._tasks[task.task_id] = task
            heapq.heappush(self._heap, (-task.priority, task.issued_at, task.task_id))

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def _wanted(self, task: TeacherTask) -> bool:
        fits = (task.kind is TeacherTaskKind.RELABEL) is self._relabel and (self._tenant is None or task.tenant == self._tenant)
        return fits and (self._families is None or (task.family or "") in self._families)
