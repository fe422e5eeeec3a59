"""Client arguments, and topics on a real broker."""

import ssl
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka.admin import AdminClient

from stillhouse.schemas.errors import PermanentError, UnreachableError
from stillhouse.schemas.topics import TOPICS
from stillhouse.sdk.config import Config, Secret
from stillhouse.sdk.kafka import (
    KafkaSettings,
    TopicResult,
    aiokafka_args,
    aiokafka_producer_args,
    apply_topics,
    confluent_args,
    confluent_producer_args,
    faust_args,
    topic_name,
)

SASL = KafkaSettings(
    bootstrap_servers="a:1,b:2",
    security_protocol="SASL_SSL",
    sasl_mechanism="SCRAM-SHA-512",
    sasl_username="me",
    sasl_password=Secret("hunter2"),
    extra={"socket.keepalive.enable": True},
    extra_aiokafka={"metadata_max_age_ms": 1000},
)


def test_plain_settings_say_no_more_than_they_must() -> None:
    settings = KafkaSettings(bootstrap_servers="a:1")
    assert aiokafka_args(settings) == {"bootstrap_servers": "a:1", "security_protocol": "PLAINTEXT"}
    assert confluent_args(settings, **{"group.id": "g"}) == {"bootstrap.servers": "a:1", "security.protocol": "PLAINTEXT", "group.id": "g"}
    assert faust_args(settings)["broker"] == ["kafka://a:1"]


def test_tls_and_sasl_pass_through_to_each_library() -> None:
    aio, confluent = aiokafka_args(SASL, client_id="x"), confluent_args(SASL)
    assert isinstance(aio.pop("ssl_context"), ssl.SSLContext)
    assert aio == {
        "bootstrap_servers": "a:1,b:2",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "me",
        "sasl_plain_password": "hunter2",
        "metadata_max_age_ms": 1000,
        "client_id": "x",
    }
    assert confluent["sasl.password"] == "hunter2"
    assert confluent["socket.keepalive.enable"] is True


def test_faust_gets_the_credentials_class_it_needs() -> None:
    import faust

    args = faust_args(SASL, faust.SASLCredentials)
    assert args["broker"] == ["kafka://a:1", "kafka://b:2"]
    assert args["broker_credentials"].username == "me"
    with pytest.raises(PermanentError, match="SASLCredentials"):
        faust_args(SASL)
    tls = msgspec.structs.replace(SASL, security_protocol="SSL")
    assert isinstance(faust_args(tls)["broker_credentials"], ssl.SSLContext)


def test_unreadable_certificates_are_named(tmp_path: Path) -> None:
    settings = KafkaSettings(security_protocol="SSL", ssl_cafile=str(tmp_path / "none.pem"))
    with pytest.raises(PermanentError, match=r"none\.pem"):
        aiokafka_args(settings)


def test_producers_are_idempotent_and_agree_on_partition_and_size() -> None:
    confluent, aio = confluent_producer_args(SASL), aiokafka_producer_args(SASL)
    assert confluent["partitioner"] == "murmur2_random"
    assert confluent["message.max.bytes"] == aio["max_request_size"] == 1024 * 1024
    assert confluent["enable.idempotence"] is aio["enable_idempotence"] is True


def test_no_secret_in_the_settings_repr_and_the_section_loads(tmp_path: Path) -> None:
    assert "hunter2" not in repr(SASL)
    file = tmp_path / "stillhouse.toml"
    file.write_text('[kafka]\nbootstrap_servers = "k:1"\nsasl_password = "p"\n[kafka.extra]\n"socket.nagle.disable" = true\n')
    settings = Config.load(file, {}).section("kafka", KafkaSettings)
    assert settings == KafkaSettings(bootstrap_servers="k:1", sasl_password=Secret("p"), extra={"socket.nagle.disable": True})


def test_prefix() -> None:
    assert topic_name(KafkaSettings(), "agent.events") == "agent.events"
    assert topic_name(KafkaSettings(prefix="acme"), "agent.events") == "acme.agent.events"


def test_a_broker_that_is_away_is_unreachable_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.sdk.kafka._TIMEOUT_S", 0.3)
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9"):
        apply_topics(KafkaSettings(bootstrap_servers="127.0.0.1:9"))


def _alter(bootstrap: str, topic: str, key: str, value: str) -> None:
    from confluent_kafka.admin import (  # type: ignore[attr-defined]
        AlterConfigOpType,
        ConfigEntry,
        ConfigResource,
        ResourceType,
    )

    entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": bootstrap})
    futures: dict[Any, Any] = admin.incremental_alter_configs([resource])
    for future in futures.values():
        future.result(10)


@pytest.mark.kafka
def test_topics_are_made_once_and_drift_is_named(real_kafka: str) -> None:
    settings = KafkaSettings(bootstrap_servers=real_kafka, prefix="apply", partitions=3)
    first = apply_topics(settings)
    assert first == [TopicResult(f"apply.{topic.name}", "created") for topic in TOPICS]
    assert [r.status for r in apply_topics(settings)] == ["exists"] * len(TOPICS)

    _alter(real_kafka, "apply.agent.events", "retention.ms", "1000")
    deadline = time.monotonic() + 20  # a broker answers with the old setting until its own metadata has caught up
    while True:
        drifted = {r.name: r for r in apply_topics(settings, partitions=5)}
        if len(drifted["apply.agent.events"].drift) == 2 or time.monotonic() > deadline:
            break
    assert drifted["apply.students"].status == "exists"
    assert drifted["apply.agent.events"].status == "differs"
    assert drifted["apply.agent.events"].drift == (
        "partitions: 3 (ours: 5; never grown, more means a new prefix)",
        "retention.ms: 1000 (ours: 2592000000)",
    )
    described = AdminClient({"bootstrap.servers": real_kafka}).list_topics(timeout=10).topics
    assert len(described["apply.agent.events"].partitions) == 3


@pytest.mark.kafka
def test_a_refused_topic_is_permanent(real_kafka: str) -> None:
    with pytest.raises(PermanentError, match=r"refuses the topic.*refused\."):
        apply_topics(KafkaSettings(bootstrap_servers=real_kafka, prefix="refused"), partitions=1, replication=3)
