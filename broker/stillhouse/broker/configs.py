"""Topic settings: the ones this broker obeys, with Kafka's names and defaults, and their checks. Anything else is refused."""

from collections.abc import Callable
from dataclasses import dataclass

from stillhouse.broker.batch import Batch
from stillhouse.broker.errors import Code, KafkaError

MIB = 1024 * 1024
FOREVER = 2**63 - 1


def _integer(low: int, high: int) -> Callable[[str], None]:
    def check(text: str) -> None:
        if not low <= int(text) <= high:
            raise ValueError(f"must be within {low}..{high}")

    return check


def _choice(*values: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        if text not in values:
            raise ValueError(f"must be one of: {', '.join(values)}")

    return check


@dataclass(frozen=True)
class Setting:
    """A topic setting: default, check (raises ValueError), Kafka's number for its type, one line about it."""

    default: str
    check: Callable[[str], None]
    kind: int
    about: str


_STRING, _INT, _LONG, _LIST = 2, 3, 5, 7
SETTINGS = {
    "cleanup.policy": Setting("delete", _choice("delete"), _LIST, "old segments are deleted; this broker does not compact"),
    "compression.type": Setting("producer", _choice("producer"), _STRING, "batches are stored as producers compressed them"),
    "max.message.bytes": Setting("1048588", _integer(0, 2**31 - 1), _INT, "largest record batch"),
    "message.timestamp.after.max.ms": Setting("3600000", _integer(0, FOREVER), _LONG, "how far ahead a record's time may be"),
    "message.timestamp.before.max.ms": Setting(str(FOREVER), _integer(0, FOREVER), _LONG, "how old a record's time may be"),
    "message.timestamp.type": Setting("CreateTime", _choice("CreateTime", "LogAppendTime"), _STRING, "whose clock stamps records"),
    "min.insync.replicas": Setting("1", _integer(1, 1), _INT, "there is one broker"),
    "retention.bytes": Setting("-1", _integer(-1, FOREVER), _LONG, "bytes to keep per partition, -1: all"),
    "retention.ms": Setting("604800000", _integer(-1, FOREVER), _LONG, "time to keep records, -1: for ever"),
    "segment.bytes": Setting(str(64 * MIB), _integer(MIB, 2**31 - 1), _INT, "size at which a new file begins"),
    "segment.ms": Setting("604800000", _integer(1, FOREVER), _LONG, "age at which a new file begins"),
}


def check_settings(configs: dict[str, str | None]) -> dict[str, str]:
    """The given settings, each known and valid; None values are left out. Raises KafkaError INVALID_CONFIG."""
    for name, value in configs.items():
        if name not in SETTINGS:
            raise KafkaError(Code.INVALID_CONFIG, f"{name} is unknown to this broker; it knows {', '.join(SETTINGS)}")
        if value is None:
            continue
        try:
            SETTINGS[name].check(value)
        except ValueError as error:
            raise KafkaError(Code.INVALID_CONFIG, f"{name}={value}: {error}") from error
    return {name: value for name, value in configs.items() if value is not None}


@dataclass(frozen=True)
class TopicConfig:
    """A topic's settings, parsed. Sizes in bytes, times in ms."""

    max_message_bytes: int
    timestamp_after_ms: int
    timestamp_before_ms: int
    log_append_time: bool
    retention_bytes: int
    retention_ms: int
    segment_bytes: int
    segment_ms: int

    @classmethod
    def of(cls, configs: dict[str, str]) -> "TopicConfig":
        """From checked settings; the rest are defaults."""
        value = {name: configs.get(name, setting.default) for name, setting in SETTINGS.items()}
        return cls(
            int(value["max.message.bytes"]),
            int(value["message.timestamp.after.max.ms"]),
            int(value["message.timestamp.before.max.ms"]),
            value["message.timestamp.type"] == "LogAppendTime",
            int(value["retention.bytes"]),
            int(value["retention.ms"]),
            int(value["segment.bytes"]),
            int(value["segment.ms"]),
        )

    def check_timestamp(self, batch: Batch, now_ms: int) -> None:
        """Raises KafkaError INVALID_TIMESTAMP for a batch whose own time is too far ahead or behind; LogAppendTime takes any."""
        if self.log_append_time or batch.max_timestamp < 0:
            return
        if batch.max_timestamp - now_ms > self.timestamp_after_ms or now_ms - batch.max_timestamp > self.timestamp_before_ms:
            raise KafkaError(Code.INVALID_TIMESTAMP, f"a record's time {batch.max_timestamp} is too far from the broker's {now_ms}")
