"""A Faust worker in a process of its own: writes each value that its agent got."""

import os
import sys

import faust

bootstrap, app_id, topic_name = sys.argv[1:4]
app = faust.App(
    app_id,
    broker=f"kafka://{bootstrap}",
    topic_disable_leader=True,
    stream_wait_empty=False,
    web_enabled=False,
    datadir=sys.argv[4],
    broker_session_timeout=6,
    broker_heartbeat_interval=1,
    broker_commit_interval=0.5,
    topic_partitions=4,
    consumer_auto_offset_reset="earliest",
)
topic = app.topic(topic_name, value_type=bytes, value_serializer="raw")


@app.agent(topic)
async def show(values: "faust.StreamT[bytes]") -> None:
    async for value in values:
        os.write(1, b"value %s\n" % value)  # Faust redirects print to its log


sys.argv = ["faust", "worker", "--loglevel", "warn", "--without-web"]
app.main()
