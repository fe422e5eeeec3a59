"""Topics and their settings: metadata, creating, deleting, describing and altering."""

import logging
from collections.abc import Callable

from stillhouse.broker.api import NO_OPERATIONS, NODE, Context
from stillhouse.broker.codec import Message
from stillhouse.broker.configs import SETTINGS, check_settings
from stillhouse.broker.errors import Code, KafkaError
from stillhouse.broker.topics import Topic

logger = logging.getLogger("stillhouse.broker")
_TOPIC, _BROKER = 2, 4  # resource types
_OF_TOPIC, _STATIC, _DEFAULT = 1, 4, 5  # where a setting's value comes from
_SET, _DELETE = 0, 1


async def metadata(request: Message, context: Context) -> Message:
    """The one broker, and the asked topics (null: all); with auto-create on, unknown ones are made."""
    topics = context.state.topics
    names = sorted(topics.by_name) if request["topics"] is None else [t["name"] for t in request["topics"]]
    answers = []
    for name in names:
        code = Code.NONE
        if name not in topics.by_name:
            code = Code.UNKNOWN_TOPIC_OR_PARTITION
            if context.auto_create and request["auto_create"]:
                wanted: Message = {"name": name, "partitions": -1, "replication": -1, "configs": []}
                code = _create(context, wanted, dry=False).get("error", Code.NONE)
        partitions = [
            {"index": index, "leader": NODE, "replicas": [NODE], "isr": [NODE]}
            for index in range(len(topics.by_name[name].partitions) if code is Code.NONE else 0)
        ]
        answers.append({"name": name, "error": code, "partitions": partitions, "operations": NO_OPERATIONS})
    host, port = context.address
    broker = {"id": NODE, "host": host, "port": port}
    return {"brokers": [broker], "cluster": context.state.cluster, "controller": NODE, "topics": answers, "operations": NO_OPERATIONS}


async def create_topics(request: Message, context: Context) -> Message:
    """Make topics, or with validate_only see whether they could be made."""
    names = [t["name"] for t in request["topics"]]
    answers = []
    for topic in request["topics"]:
        if names.count(topic["name"]) > 1:
            answers.append({"name": topic["name"], "error": Code.INVALID_REQUEST, "message": "named twice in one request"})
        else:
            answers.append(_create(context, topic, dry=request["validate_only"]))
    return {"topics": answers}


def _create(context: Context, topic: Message, *, dry: bool) -> Message:
    try:
        partitions, replication = topic["partitions"], topic["replication"]
        if assignments := topic.get("assignments"):
            if any(a["brokers"] != [NODE] for a in assignments):
                raise KafkaError(Code.INVALID_REPLICA_ASSIGNMENT, f"there is one broker, {NODE}")
            if sorted(a["index"] for a in assignments) != list(range(len(assignments))):
                raise KafkaError(Code.INVALID_REPLICA_ASSIGNMENT, "partitions must be numbered from 0")
            partitions, replication = len(assignments), 1
        configs = {c["name"]: c["value"] for c in topic["configs"]}
        context.state.topics.create(topic["name"], partitions, replication, configs, context.now_ms, dry=dry)
    except KafkaError as error:
        return {"name": topic["name"], "error": error.code, "message": error.message}
    return {"name": topic["name"]}


async def delete_topics(request: Message, context: Context) -> Message:
    """Remove topics with their records and every group's offsets in them."""
    answers = []
    for name in request["names"]:
        try:
            context.state.topics.delete(name)
            context.state.offsets.drop_topic(name)
            answers.append({"name": name})
        except KafkaError as error:
            answers.append({"name": name, "error": error.code, "message": error.message})
        except OSError as error:
            logger.error("topic %s is deleted, groups' offsets in it are not: %s", name, error)
            answers.append({"name": name, "error": Code.KAFKA_STORAGE_ERROR, "message": str(error)})
    await context.commit.wait([context.state.offsets])
    return {"topics": answers}


async def describe_configs(request: Message, context: Context) -> Message:
    """Every setting of topics, and the few of the broker that clients ask for."""
    results = []
    for resource in request["resources"]:
        try:
            configs = _describe(resource, context)
            keys = resource["keys"]
            chosen = [c for c in configs if keys is None or c["name"] in keys]
            results.append({"type": resource["type"], "name": resource["name"], "configs": chosen})
        except KafkaError as error:
            results.append({"type": resource["type"], "name": resource["name"], "error": error.code, "message": error.message})
    return {"results": results}


def _describe(resource: Message, context: Context) -> list[Message]:
    if resource["type"] == _BROKER:
        own = {
            "auto.create.topics.enable": str(context.auto_create).lower(),
            "default.replication.factor": "1",
            "num.partitions": str(context.state.topics.default_partitions),
        }
        return [{"name": name, "value": value, "read_only": True, "source": _STATIC, "type": 2} for name, value in own.items()]
    topic = _topic(resource, context)
    return [
        {
            "name": name, "value": topic.configs.get(name, setting.default), "source": _OF_TOPIC if name in topic.configs else _DEFAULT,
            "type": setting.kind, "documentation": setting.about,
        }
        for name, setting in SETTINGS.items()
    ]  # fmt: skip


def _topic(resource: Message, context: Context) -> Topic:
    if resource["type"] != _TOPIC:
        raise KafkaError(Code.INVALID_REQUEST, "only topics have settings that this broker keeps")
    topic = context.state.topics.by_name.get(resource["name"])
    if topic is None:
        raise KafkaError(Code.UNKNOWN_TOPIC_OR_PARTITION, f"no topic {resource['name']}")
    return topic


async def alter_configs(request: Message, context: Context) -> Message:
    """Replace all settings of topics: those not named return to their defaults."""
    return _alter(request, context, lambda topic, changes: {c["name"]: c["value"] for c in changes})


async def incremental_alter_configs(request: Message, context: Context) -> Message:
    """Set or unset single settings of topics."""
    return _alter(request, context, _changed)


def _changed(topic: Topic, changes: list[Message]) -> dict[str, str | None]:
    configs: dict[str, str | None] = dict(topic.configs)
    for change in changes:
        name, operation = change["name"], change["operation"]
        check_settings({name: change["value"] if operation == _SET else None})
        if operation == _SET:
            configs[name] = change["value"]
        elif operation == _DELETE:
            configs.pop(name, None)
        else:
            raise KafkaError(Code.INVALID_REQUEST, f"{name} is not a list: it can be set and deleted only")
    return configs


def _alter(request: Message, context: Context, change: Callable[[Topic, list[Message]], dict[str, str | None]]) -> Message:
    responses = []
    for resource in request["resources"]:
        response: Message = {"type": resource["type"], "name": resource["name"]}
        try:
            topic = _topic(resource, context)
            configs = check_settings(change(topic, resource["configs"]))
            if not request["validate_only"]:
                topic.set_configs(configs)
        except KafkaError as error:
            response |= {"error": error.code, "message": error.message}
        except OSError as error:
            response |= {"error": Code.KAFKA_STORAGE_ERROR, "message": str(error)}
        responses.append(response)
    return {"responses": responses}
