"""Consumer groups: finding the coordinator, membership, offsets, administration."""

import asyncio

from stillhouse.broker.api import NO_OPERATIONS, NODE, Context
from stillhouse.broker.codec import Message
from stillhouse.broker.commit import refuse_broken
from stillhouse.broker.errors import Code, KafkaError
from stillhouse.broker.member import Client
from stillhouse.broker.offsets import Place

_GROUP = 0
_WITH_LEADER_EPOCH = 6  # the first version of OffsetCommit that says it


async def find_coordinator(request: Message, context: Context) -> Message:
    """This broker, for groups; there is none for transactions."""
    if request["type"] != _GROUP:
        refused = Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
        return {"error": refused, "message": "this broker has no transactions", "node": -1, "port": -1}
    host, port = context.address
    return {"node": NODE, "host": host, "port": port}


async def join_group(request: Message, context: Context) -> Message:
    """Wait for the group's next generation."""
    client = Client(context.client, context.peer, asks_for_id=context.version >= 4, may_skip_assignment=context.version >= 9)
    answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    context.state.coordinator.join(request, client, context.now, _once(answer))
    return await answer


async def sync_group(request: Message, context: Context) -> Message:
    """Wait for the leader's assignment."""
    answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    context.state.coordinator.sync(request, context.now, _once(answer))
    return await answer


class _once:
    """Settles a future that its connection may have cancelled meanwhile."""

    def __init__(self, answer: asyncio.Future[Message]) -> None:
        self.answer = answer

    def __call__(self, message: Message) -> None:
        if not self.answer.done():
            self.answer.set_result(message)


async def heartbeat(request: Message, context: Context) -> Message:
    """Keep a member's session alive."""
    return {"error": context.state.coordinator.heartbeat(request, context.now)}


async def leave_group(request: Message, context: Context) -> Message:
    """Remove one member, or since version 3 several."""
    leave = context.state.coordinator.leave
    if context.version < 3:
        return {"error": leave(request["group"], request["member"], None, context.now)}
    members = [
        {"member": m["member"], "instance": m["instance"], "error": leave(request["group"], m["member"], m["instance"], context.now)}
        for m in request["members"]
    ]
    return {"members": members}


async def offset_commit(request: Message, context: Context) -> Message:
    """Store offsets and wait until they are durable."""
    by_name = context.state.topics.by_name
    known: set[Place] = {
        (t["name"], index) for t in request["topics"] if t["name"] in by_name for index in range(len(by_name[t["name"]].partitions))
    }
    if context.version < _WITH_LEADER_EPOCH:
        for partition in (p for topic in request["topics"] for p in topic["partitions"]):
            partition["leader_epoch"] = -1
    offsets = context.state.offsets
    topics = context.state.coordinator.commit(request, known, context.now)
    await context.commit.wait([offsets])
    try:
        refuse_broken(offsets)
    except KafkaError:
        for partition in (p for topic in topics for p in topic["partitions"]):
            partition["error"] = Code.COORDINATOR_NOT_AVAILABLE
    return {"topics": topics}


async def offset_fetch(request: Message, context: Context) -> Message:
    """Committed offsets, of the asked or (null) of all partitions."""
    return {"topics": context.state.coordinator.committed(request["group"], request["topics"])}


async def list_groups(request: Message, context: Context) -> Message:
    """All groups, filtered by state and type as asked."""
    groups = context.state.coordinator.listing()
    states, types = {s.lower() for s in request["states"]}, {t.lower() for t in request["types"]}
    return {"groups": [g for g in groups if (not states or g["state"].lower() in states) and (not types or g["type"] in types)]}


async def describe_groups(request: Message, context: Context) -> Message:
    """State and members of the asked groups."""
    return {"groups": [context.state.coordinator.describe(name) | {"operations": NO_OPERATIONS} for name in request["groups"]]}


async def delete_groups(request: Message, context: Context) -> Message:
    """Forget groups without members, with their offsets."""
    results = []
    for name in request["groups"]:
        try:
            context.state.coordinator.delete(name)
            results.append({"group": name})
        except KafkaError as error:
            results.append({"group": name, "error": error.code})
    await context.commit.wait([context.state.offsets])
    return {"results": results}


async def offset_delete(request: Message, context: Context) -> Message:
    """Forget a group's offsets in some partitions."""
    topics = []
    for topic in request["topics"]:
        partitions = []
        for p in topic["partitions"]:
            try:
                context.state.coordinator.delete_offset(request["group"], (topic["name"], p["index"]))
                partitions.append({"index": p["index"]})
            except KafkaError as error:
                partitions.append({"index": p["index"], "error": error.code})
        topics.append({"name": topic["name"], "partitions": partitions})
    await context.commit.wait([context.state.offsets])
    return {"topics": topics}
