"""Client settings as each Kafka library spells them, topic names, and the making of topics."""

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from stillhouse.schemas.errors import PermanentError, UnreachableError
from stillhouse.schemas.registry import ConfluentRegistry
from stillhouse.schemas.topics import DEFAULT_PARTITIONS, EVENT_MAX_BYTES, TOPICS, Topic
from stillhouse.sdk.config import Secret

_log = logging.getLogger("stillhouse.kafka")
_TIMEOUT_S = 10.0

Positive = Annotated[int, msgspec.Meta(ge=1)]


class KafkaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The section `[kafka]`. TLS and SASL settings are said once and passed through to every client library.

    `extra` goes to librdkafka (confluent-kafka), `extra_aiokafka` to aiokafka, under those libraries' own names.
    """

    bootstrap_servers: str = "127.0.0.1:9392"
    prefix: str = ""
    partitions: Positive = DEFAULT_PARTITIONS
    replication: Positive = 1
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str = ""
    sasl_password: Secret = Secret("")
    ssl_cafile: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    ssl_key_password: Secret = Secret("")
    schema_registry: str = ""
    schema_registry_username: str = ""
    schema_registry_password: Secret = Secret("")
    extra: dict[str, str | int | float | bool] = {}
    extra_aiokafka: dict[str, str | int | float | bool] = {}

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.security_protocol.endswith("SSL")

    @property
    def sasl(self) -> bool:
        """Whether the client says who it is by SASL."""
        return self.security_protocol.startswith("SASL")


@dataclass(frozen=True)
class TopicResult:
    """What `apply_topics` found or did. `drift` names each setting that differs from ours, as `name: theirs (ours: …)`."""

    name: str
    status: Literal["created", "exists", "differs"]
    drift: tuple[str, ...] = ()


def topic_name(settings: KafkaSettings, name: str) -> str:
    """A topic's name under the deployment's prefix."""
    return f"{settings.prefix}.{name}" if settings.prefix else name


def ssl_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    """The TLS context of Python clients, None without TLS.

    Raises:
        PermanentError: a certificate or key cannot be read.
    """
    if not settings.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ssl_cafile or None)
        if settings.ssl_certfile:
            context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile or None, settings.ssl_key_password.reveal() or None)
    except OSError as error:  # ssl.SSLError is one
        where = settings.ssl_cafile or settings.ssl_certfile
        raise PermanentError(f"the TLS settings of [kafka] cannot be used: {error}", where=where) from error
    return context


def aiokafka_args(settings: KafkaSettings, **kw: Any) -> dict[str, Any]:
    """Arguments of aiokafka's clients; `kw` are added and win."""
    args: dict[str, Any] = {"bootstrap_servers": settings.bootstrap_servers, "security_protocol": settings.security_protocol}
    if settings.tls:
        args["ssl_context"] = ssl_context(settings)
    if settings.sasl:
        args |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password.reveal(),
        }
    return args | settings.extra_aiokafka | kw


def schema_registry(settings: KafkaSettings) -> ConfluentRegistry | None:
    """The client of the schema registry, if one is configured."""
    if not settings.schema_registry:
        return None
    return ConfluentRegistry(settings.schema_registry, settings.schema_registry_username, settings.schema_registry_password.reveal())


def aiokafka_producer_args(settings: KafkaSettings, **kw: Any) -> dict[str, Any]:
    """Arguments of an idempotent aiokafka producer that may send as much as the topics take."""
    return aiokafka_args(settings, **({"acks": "all", "enable_idempotence": True, "max_request_size": EVENT_MAX_BYTES} | kw))


def confluent_args(settings: KafkaSettings, **kw: Any) -> dict[str, Any]:
    """Configuration of confluent-kafka's clients, by librdkafka's names; `kw` are added and win."""
    args: dict[str, Any] = {"bootstrap.servers": settings.bootstrap_servers, "security.protocol": settings.security_protocol}
    if settings.tls:
        files = {
            "ssl.ca.location": settings.ssl_cafile,
            "ssl.certificate.location": settings.ssl_certfile,
            "ssl.key.location": settings.ssl_keyfile,
            "ssl.key.password": settings.ssl_key_password.reveal(),
        }
        args |= {name: value for name, value in files.items() if value}
    if settings.sasl:
        args |= {
            "sasl.mechanism": settings.sasl_mechanism,
            "sasl.username": settings.sasl_username,
            "sasl.password": settings.sasl_password.reveal(),
        }
    return args | settings.extra | kw


def confluent_producer_args(settings: KafkaSettings, **kw: Any) -> dict[str, Any]:
    """Configuration of an idempotent confluent-kafka producer.

    librdkafka's own default partitioner puts most keys elsewhere than Kafka's clients do: murmur2 is part of the wire contract.
    """
    ours = {"partitioner": "murmur2_random", "enable.idempotence": True, "acks": "all", "message.max.bytes": EVENT_MAX_BYTES}
    return confluent_args(settings, **(ours | kw))


def faust_args(settings: KafkaSettings, sasl: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Arguments of `faust.App`.

    Args:
        settings: the section `[kafka]`.
        sasl: `faust.SASLCredentials`, which the caller brings because agents install no Faust.

    Raises:
        PermanentError: SASL is configured and `sasl` was not given.
    """
    brokers = [server.strip() for server in settings.bootstrap_servers.split(",") if server.strip()]
    args: dict[str, Any] = {
        "broker": [f"kafka://{server}" for server in brokers],
        # No leader topic and no wait for an empty stream: neither is needed without tables, and restarts are short.
        "topic_disable_leader": True,
        "stream_wait_empty": False,
    }
    if settings.sasl:
        if sasl is None:
            raise PermanentError(
                "Faust needs its SASL credentials class", where="[kafka] security_protocol", fix="Pass sasl=faust.SASLCredentials."
            )
        args["broker_credentials"] = sasl(
            mechanism=settings.sasl_mechanism,
            username=settings.sasl_username,
            password=settings.sasl_password.reveal(),
            ssl_context=ssl_context(settings),
        )
    elif settings.tls:
        args["broker_credentials"] = ssl_context(settings)
    return args


def apply_topics(settings: KafkaSettings, *, partitions: int | None = None, replication: int | None = None) -> list[TopicResult]:
    """Make the topics that are missing, and say how the others differ. Nothing that exists is changed; partitions are never grown.

    Args:
        settings: the section `[kafka]`.
        partitions: of the topics that scale; default `settings.partitions`.
        replication: replicas of each partition; default `settings.replication`.

    Raises:
        UnreachableError: no broker answers.
        PermanentError: the broker refuses a topic.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    admin = AdminClient(confluent_args(settings), logger=_log)
    wanted = {topic_name(settings, topic.name): topic for topic in TOPICS}
    counts = {name: topic.partitions or partitions or settings.partitions for name, topic in wanted.items()}
    try:
        existing = admin.list_topics(timeout=_TIMEOUT_S).topics
        made = _create(admin, {n: t for n, t in wanted.items() if n not in existing}, counts, replication or settings.replication)
        if raced := set(wanted) - set(existing) - made:  # another process made them in between
            existing = admin.list_topics(timeout=_TIMEOUT_S).topics
            _log.info("made by another process meanwhile: %s", sorted(raced))
        drift = _drift(admin, {n: t for n, t in wanted.items() if n not in made}, counts, existing)
    except KafkaException as error:
        raise _broker_error(error, settings) from error
    return [TopicResult(n, "created") if n in made else TopicResult(n, "differs" if drift[n] else "exists", drift[n]) for n in wanted]


def _broker_error(error: Any, settings: KafkaSettings) -> UnreachableError:
    fix = "Start it, or set [kafka] bootstrap_servers."
    return UnreachableError(f"no Kafka broker answers: {error.args[0].str()}", where=settings.bootstrap_servers, fix=fix)


def _create(admin: Any, topics: dict[str, Topic], counts: dict[str, int], replication: int) -> set[str]:
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

    if not topics:
        return set()
    new = [NewTopic(n, num_partitions=counts[n], replication_factor=replication, config=t.config) for n, t in topics.items()]
    made = set()
    for name, future in admin.create_topics(new, request_timeout=_TIMEOUT_S).items():
        try:
            future.result()
            made.add(name)
        except KafkaException as error:
            reason = error.args[0]
            if reason.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                continue
            if reason.retriable() or reason.code() < 0:
                raise
            raise PermanentError(f"the broker refuses the topic: {reason.str()}", where=name) from error
    return made


def _drift(admin: Any, topics: dict[str, Topic], counts: dict[str, int], existing: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    from confluent_kafka.admin import ConfigResource, ResourceType  # type: ignore[attr-defined]

    if not topics:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in topics]
    futures = admin.describe_configs(resources, request_timeout=_TIMEOUT_S)
    found: dict[str, tuple[str, ...]] = {}
    for resource, future in futures.items():
        name, config = resource.name, future.result()
        differs = [
            f"{key}: {config[key].value if key in config else 'unset'} (ours: {value})"
            for key, value in topics[name].config.items()
            if key not in config or config[key].value != value
        ]
        # A topic made a moment ago may not be in the metadata of the broker that answered.
        count = len(existing[name].partitions) if name in existing else counts[name]
        if count != counts[name]:
            differs.insert(0, f"partitions: {count} (ours: {counts[name]}; never grown, more means a new prefix)")
        found[name] = tuple(differs)
    return found
