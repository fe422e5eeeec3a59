"""Topics by name and shape (docs/architecture.md, Topics). Names take a configurable prefix."""

from dataclasses import dataclass

MIB = 1024 * 1024
EVENT_MAX_BYTES = MIB
DLQ_MAX_BYTES = MIB + 64 * 1024
DAY_MS = 24 * 3600 * 1000
FOREVER = -1


@dataclass(frozen=True)
class Topic:
    """One topic. `partitions` of None means the deployment's count (64; embedded 6)."""

    name: str
    partitions: int | None
    config: dict[str, str]


def _config(retention_ms: int, max_bytes: int = EVENT_MAX_BYTES) -> dict[str, str]:
    # LogAppendTime: retention counts record timestamps, and an import of old runs would be deleted at once.
    return {
        "message.timestamp.type": "LogAppendTime",
        "cleanup.policy": "delete",
        "retention.ms": str(retention_ms),
        "retention.bytes": "-1",
        "max.message.bytes": str(max_bytes),
    }


EVENTS, DLQ, TRAJECTORIES, TEACHER_TASKS = "agent.events", "agent.events.dlq", "trajectories", "teacher.tasks"
STUDENTS, VERDICTS, ERASURES, SCHEMAS = "students", "canary.verdicts", "erasures", "schemas"

TOPICS: tuple[Topic, ...] = (
    Topic(EVENTS, None, _config(30 * DAY_MS)),
    Topic(DLQ, None, _config(30 * DAY_MS, DLQ_MAX_BYTES)),
    Topic(TRAJECTORIES, None, _config(30 * DAY_MS)),
    Topic(TEACHER_TASKS, 4, _config(30 * DAY_MS)),
    Topic(STUDENTS, 1, _config(FOREVER)),
    Topic(VERDICTS, 1, _config(FOREVER)),
    Topic(ERASURES, 1, _config(FOREVER)),
    Topic(SCHEMAS, 1, _config(FOREVER)),
)
EMBEDDED_PARTITIONS, DEFAULT_PARTITIONS = 6, 64
