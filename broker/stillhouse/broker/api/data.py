"""Records: produce, fetch, offsets for times, producer ids."""

import asyncio
import contextlib
import logging

from stillhouse.broker.api import Context
from stillhouse.broker.codec import Message
from stillhouse.broker.commit import refuse_broken
from stillhouse.broker.errors import Code, KafkaError
from stillhouse.broker.log import PartitionLog

logger = logging.getLogger("stillhouse.broker")
LATEST, EARLIEST = -1, -2
MAX_ANSWER = 55 * 1024 * 1024  # bytes of records in one fetch answer, whatever the client asks for
MAX_WAIT_S = 60.0


async def produce(request: Message, context: Context) -> Message | None:
    """Append, wait until it is durable, answer; no answer for acks=0."""
    answers: list[Message] = []
    written: list[tuple[Message, PartitionLog]] = []
    for topic in request["topics"]:
        partitions = []
        for p in topic["partitions"]:
            answer: Message = {"index": p["index"], "offset": -1, "append_time": -1, "start": -1}
            try:
                written.append((answer, _append(request, topic["name"], p, answer, context)))
            except KafkaError as error:
                answer |= {"error": error.code, "message": error.message}
            partitions.append(answer)
        answers.append({"name": topic["name"], "partitions": partitions})
    await context.commit.wait(log for _, log in written)
    for answer, log in written:
        try:
            refuse_broken(log)
        except KafkaError as error:
            answer |= {"error": error.code, "message": error.message, "offset": -1}
    return {"topics": answers} if request["acks"] else None


def _append(request: Message, topic: str, partition: Message, answer: Message, context: Context) -> PartitionLog:
    if request["acks"] not in (-1, 0, 1):
        raise KafkaError(Code.INVALID_REQUIRED_ACKS, f"acks={request['acks']}")
    if request["transactional_id"] is not None:
        raise KafkaError(Code.INVALID_TXN_STATE, "this broker has no transactions")
    log = context.state.topics.partition(topic, partition["index"])
    appended = log.append(partition["records"] or b"", context.state.topics.by_name[topic].config, context.now_ms)
    answer |= {"offset": appended.offset, "append_time": appended.append_time, "start": log.start}
    return log


async def fetch(request: Message, context: Context) -> Message:
    """Records from the asked offsets on; waits up to max_wait for min_bytes, answers at once on any error."""
    if request["session"] != 0:
        return {"error": Code.FETCH_SESSION_ID_NOT_FOUND}
    deadline = context.now + min(request["max_wait"] / 1000, MAX_WAIT_S)
    more = asyncio.Event()
    logs = _watchable(request, context)
    for log in logs:
        log.watchers.add(more.set)
    try:
        while True:
            more.clear()
            topics, size, urgent = _read_all(request, context)
            left = deadline - asyncio.get_running_loop().time()
            if urgent or size >= request["min_bytes"] or left <= 0:
                return {"topics": topics}
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(more.wait(), left)
    finally:
        for log in logs:
            log.watchers.discard(more.set)


def _watchable(request: Message, context: Context) -> list[PartitionLog]:
    by_name = context.state.topics.by_name
    asked = [(by_name[t["name"]].partitions, p["index"]) for t in request["topics"] if t["name"] in by_name for p in t["partitions"]]
    return [partitions[index] for partitions, index in asked if 0 <= index < len(partitions)]


_NOTHING: Message = {"high_watermark": -1, "last_stable": -1, "start": -1, "preferred_replica": -1, "records": b""}


def _read_all(request: Message, context: Context) -> tuple[list[Message], int, bool]:
    """(the answer's topics, bytes of records in it, whether it must go out at once)."""
    topics, size, urgent = [], 0, False
    for topic in request["topics"]:
        partitions = []
        for p in topic["partitions"]:
            answer = {"index": p["index"], **_NOTHING}
            try:
                log = context.state.topics.partition(topic["name"], p["index"])
                answer |= {"high_watermark": log.high_watermark, "last_stable": log.high_watermark, "start": log.start}
                left = min(p["max_bytes"], request["max_bytes"] - size, MAX_ANSWER - size)
                answer["records"] = log.read(p["offset"], max(left, 0), whole_first=size == 0)
                size += len(answer["records"])
            except KafkaError as error:
                answer["error"], urgent = error.code, True
            except OSError as error:
                logger.error("%s-%d: not readable: %s", topic["name"], p["index"], error)
                answer["error"], urgent = Code.KAFKA_STORAGE_ERROR, True
            partitions.append(answer)
        topics.append({"name": topic["name"], "partitions": partitions})
    return topics, size, urgent


async def list_offsets(request: Message, context: Context) -> Message:
    """The earliest or next offset, or that of the first record not older than a time."""
    topics = []
    for topic in request["topics"]:
        partitions = []
        for p in topic["partitions"]:
            answer: Message = {"index": p["index"], "timestamp": -1, "offset": -1, "leader_epoch": -1}
            try:
                log = context.state.topics.partition(topic["name"], p["index"])
                answer["offset"], answer["timestamp"] = _offset_for(log, p["timestamp"])
                answer["leader_epoch"] = 0 if answer["offset"] >= 0 else -1
            except KafkaError as error:
                answer["error"] = error.code
            except OSError as error:
                logger.error("%s-%d: not readable: %s", topic["name"], p["index"], error)
                answer["error"] = Code.KAFKA_STORAGE_ERROR
            partitions.append(answer)
        topics.append({"name": topic["name"], "partitions": partitions})
    return {"topics": topics}


def _offset_for(log: PartitionLog, timestamp: int) -> tuple[int, int]:
    if timestamp == LATEST:
        return log.high_watermark, -1
    if timestamp == EARLIEST:
        return log.start, -1
    if timestamp < 0:
        raise KafkaError(Code.UNSUPPORTED_VERSION)
    return log.at_time(timestamp) or (-1, -1)


async def init_producer_id(request: Message, context: Context) -> Message:
    """A new id for an idempotent producer; transactional ones are refused."""
    if request["transactional_id"] is not None:
        return {"error": Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "producer_id": -1, "epoch": -1}
    try:
        return {"producer_id": context.state.new_producer_id(), "epoch": 0}
    except KafkaError as error:
        return {"error": error.code, "producer_id": -1, "epoch": -1}
