"""A consumer in a process of its own, to be killed: says which partitions it has, then polls for ever."""

import asyncio
import sys

from aiokafka import AIOKafkaConsumer


async def main(bootstrap: str, group: str, topic: str) -> None:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, group_id=group, session_timeout_ms=6000, heartbeat_interval_ms=500)
    await consumer.start()
    print(",".join(str(place.partition) for place in sorted(consumer.assignment())), flush=True)
    while True:
        await consumer.getmany(timeout_ms=1000)


asyncio.run(main(*sys.argv[1:]))
