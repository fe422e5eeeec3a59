"""The topics: a folder each, named by the topic's id, with topic.json and a folder for each partition's log."""

import logging
import re
import shutil
import uuid
from pathlib import Path

from stillhouse.broker.configs import TopicConfig, check_settings
from stillhouse.broker.errors import Code, KafkaError
from stillhouse.broker.files import read_json, replace_json, sync_directory
from stillhouse.broker.log import PartitionLog

log = logging.getLogger("stillhouse.broker")
_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
MAX_PARTITIONS = 1000  # of one topic; each is an open file


class Topic:
    """A topic and its partitions' logs."""

    def __init__(self, folder: Path, name: str, configs: dict[str, str], partitions: list[PartitionLog]) -> None:
        """Of an existing folder."""
        self.folder, self.name, self.partitions = folder, name, partitions
        self.configs = configs
        self.config = TopicConfig.of(configs)

    def set_configs(self, configs: dict[str, str]) -> None:
        """Replace the settings that differ from the defaults, durably. Raises OSError."""
        _save(self.folder, self.name, len(self.partitions), configs)
        self.configs, self.config = configs, TopicConfig.of(configs)


def _save(folder: Path, name: str, partitions: int, configs: dict[str, str]) -> None:
    replace_json(folder / "topic.json", {"name": name, "partitions": partitions, "configs": configs})


def check_name(name: str) -> None:
    """Raises KafkaError INVALID_TOPIC_EXCEPTION for what Kafka does not take as a topic's name."""
    if name in (".", "..") or not _NAME.fullmatch(name):
        raise KafkaError(Code.INVALID_TOPIC_EXCEPTION, "a topic's name has 1 to 249 of a-z A-Z 0-9 . _ - and is not . or ..")


class Topics:
    """All topics of a broker by name."""

    def __init__(self, folder: Path, now_ms: int, *, fsync: bool, default_partitions: int) -> None:
        """Open every topic in `folder`. Raises OSError, ValueError for a damaged topic.json."""
        self.folder, self.fsync, self.default_partitions = folder, fsync, default_partitions
        self.by_name: dict[str, Topic] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for entry in sorted(folder.iterdir()):
            saved = read_json(entry / "topic.json") if entry.is_dir() else None
            if saved is None:  # a creation or deletion that a crash cut short
                shutil.rmtree(entry, ignore_errors=True)
                continue
            logs = self._open(entry, saved["partitions"], now_ms)
            self.by_name[saved["name"]] = Topic(entry, saved["name"], saved["configs"], logs)

    def _open(self, folder: Path, partitions: int, now_ms: int) -> list[PartitionLog]:
        return [PartitionLog(folder / str(index), now_ms, fsync=self.fsync) for index in range(partitions)]

    def create(
        self, name: str, partitions: int, replication: int, configs: dict[str, str | None], now_ms: int, *, dry: bool = False
    ) -> None:
        """Make a topic; -1 partitions or replicas: the default. Raises KafkaError (name, 36, 37, 38, 40, 56)."""
        check_name(name)
        if name in self.by_name:
            raise KafkaError(Code.TOPIC_ALREADY_EXISTS, f"topic {name} exists")
        if replication not in (-1, 1):
            raise KafkaError(Code.INVALID_REPLICATION_FACTOR, f"replication factor {replication}: this is one broker, and an embedded one")
        partitions = self.default_partitions if partitions == -1 else partitions
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise KafkaError(Code.INVALID_PARTITIONS, f"{partitions} partitions; 1 to {MAX_PARTITIONS} are possible here")
        settings = check_settings(configs)
        if dry:
            return
        folder = self.folder / uuid.uuid4().hex
        try:
            folder.mkdir()
            logs = self._open(folder, partitions, now_ms)
            _save(folder, name, partitions, settings)  # last: without it the next start removes the folder
            sync_directory(self.folder)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise KafkaError(Code.KAFKA_STORAGE_ERROR, f"topic not created: {error.strerror}") from error
        self.by_name[name] = Topic(folder, name, settings, logs)

    def delete(self, name: str) -> None:
        """Remove a topic and its records. Raises KafkaError UNKNOWN_TOPIC_OR_PARTITION, KAFKA_STORAGE_ERROR."""
        topic = self.by_name.get(name)
        if topic is None:
            raise KafkaError(Code.UNKNOWN_TOPIC_OR_PARTITION, f"no topic {name}")
        try:
            (topic.folder / "topic.json").unlink()
            sync_directory(topic.folder)
        except OSError as error:
            raise KafkaError(Code.KAFKA_STORAGE_ERROR, f"topic not deleted: {error.strerror}") from error
        del self.by_name[name]
        for partition in topic.partitions:
            partition.abandon()
        shutil.rmtree(topic.folder, ignore_errors=True)

    def partition(self, name: str, index: int) -> PartitionLog:
        """A partition's log. Raises KafkaError UNKNOWN_TOPIC_OR_PARTITION."""
        topic = self.by_name.get(name)
        if topic is None or not 0 <= index < len(topic.partitions):
            raise KafkaError(Code.UNKNOWN_TOPIC_OR_PARTITION)
        return topic.partitions[index]

    def retain(self, now_ms: int) -> None:
        """Apply every topic's retention; a partition that fails is logged and left for the next time."""
        for topic in self.by_name.values():
            for partition in topic.partitions:
                try:
                    partition.retain(topic.config, now_ms)
                except OSError as error:
                    log.error("%s: retention failed: %s", partition.folder, error)

    def close(self, now_ms: int) -> None:
        """Seal every log."""
        for topic in self.by_name.values():
            for partition in topic.partitions:
                try:
                    partition.close(now_ms)
                except OSError as error:
                    log.error("%s: not closed cleanly, will be read through at the next start: %s", partition.folder, error)
