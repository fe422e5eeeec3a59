"""The broker as a process: its command line, what stops it from starting, kill -9, a full disk, noise on its socket."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaStorageError, TransactionalIdAuthorizationFailed
from aiokafka.protocol.fetch import FetchRequest
from confluent_kafka import KafkaException, Producer
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions
from confluent_kafka.cimpl import NewTopic as ConfluentTopic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillhouse.broker.api import data
from stillhouse.broker.errors import BrokerError
from stillhouse.broker.messages import APIS
from stillhouse.broker.server import Broker, main
from tests.support.brokers import RunningBroker, start_embedded
from tests.support.records import ask, frame, make_batch, produce_raw, send_bytes

API_VERSIONS = frame(18, 0, b"", correlation=77)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    broker = start_embedded(Path(tmp_path_factory.mktemp("shared")) / "state", arguments=("--auto-create", "--partitions", "3"))
    yield broker
    assert broker.stop() == 0


async def create(bootstrap: str, topic: str, partitions: int = 1) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        answer = await admin.create_topics([NewTopic(topic, partitions, 1)])
        assert [error for _, error, _ in answer.topic_errors] == [0]
    finally:
        await admin.close()


async def values_of(bootstrap: str, topic: str) -> list[bytes]:
    """Everything in partition 0, up to its end offset."""
    place = TopicPartition(topic, 0)
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        consumer.assign([place])
        end, found = (await consumer.end_offsets([place]))[place], list[bytes]()
        async with asyncio.timeout(30):
            while len(found) < end:
                found += [r.value for batch in (await consumer.getmany(timeout_ms=500)).values() for r in batch]
        return found


# --- the command line


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "stillhouse.broker", *arguments], capture_output=True, text=True, timeout=30)


def test_it_says_where_it_is_and_stops_on_request(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stillhouse.broker", "--dir", str(tmp_path / "a"), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert ready["pid"] == process.pid and ready["dir"] == str(tmp_path / "a") and ready["bootstrap_servers"].startswith("127.0.0.1:")
    process.send_signal(signal.SIGINT)
    rest, log = process.communicate(timeout=20)
    assert (process.returncode, rest) == (0, "")
    assert "for laptops, demos and tests" in log and "ERROR" not in log


def test_wrong_usage_is_exit_code_2_and_help_says_what_it_is_for(tmp_path: Path) -> None:
    assert run().returncode == 2
    assert run("--dir", str(tmp_path), "--port", "70000").returncode == 2
    assert run("--dir", str(tmp_path), "--partitions", "0").returncode == 2
    assert "not a production engine" in " ".join(run("--help").stdout.split())


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("stillhouse broker: ")]
    return line


def test_what_stops_it_from_starting_is_said_in_one_line(tmp_path: Path, shared: RunningBroker, capsys: pytest.CaptureFixture[str]) -> None:
    assert "another broker runs on the state folder" in fails(capsys, "--dir", str(shared.directory))
    port = str(shared.port)
    assert f"can't listen on 127.0.0.1:{port}" in fails(capsys, "--dir", str(tmp_path / "b"), "--port", port)
    assert "--expose" in fails(capsys, "--dir", str(tmp_path / "b"), "--host", "0.0.0.0")
    (tmp_path / "file").write_text("")
    assert "can't be used" in fails(capsys, "--dir", str(tmp_path / "file"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "broker.json").write_text('{"version": 2}')
    assert "install a newer stillhouse" in fails(capsys, "--dir", str(tmp_path / "c"))
    (tmp_path / "c" / "broker.json").write_text("{")
    assert "broker.json is damaged" in fails(capsys, "--dir", str(tmp_path / "c"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert "writable" in fails(capsys, "--dir", str(tmp_path / "d"))


async def test_exposing_it_is_possible_and_loud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker(tmp_path, host="0.0.0.0", expose=True)
    bootstrap = await broker.start()
    assert "WITHOUT TLS OR LOGIN" in caplog.text
    assert await send_bytes(bootstrap.replace("0.0.0.0", "127.0.0.1"), API_VERSIONS, answer=8)
    await broker.stop()


async def test_in_process_it_starts_and_stops_with_connections_open(tmp_path: Path) -> None:
    for _ in range(2):
        broker = Broker(tmp_path)
        reader, writer = await asyncio.open_connection(*(await broker.start()).split(":"))
        writer.write(API_VERSIONS)
        await reader.readexactly(8)
        await broker.stop()
        assert await reader.read() == b"" or reader.at_eof()
        writer.close()
    with pytest.raises(BrokerError, match="not a loopback"):
        await Broker(tmp_path, host="example.org").start()


# --- what it keeps


async def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path) -> None:
    """An idempotent producer goes on through three kills; what it was told is stored is there once, and so are committed offsets."""
    broker = start_embedded(tmp_path / "state", fsync=True)
    await create(broker.bootstrap, "t")
    acknowledged: list[bytes] = []
    enough = asyncio.Event()

    async def produce() -> None:
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, enable_idempotence=True, retry_backoff_ms=50) as producer:
            while not enough.is_set():
                values = [b"%d" % (len(acknowledged) + n) for n in range(50)]
                await asyncio.gather(*[await producer.send("t", value) for value in values])
                acknowledged.extend(values)

    producing = asyncio.create_task(produce())
    group, place = "g", TopicPartition("t", 0)
    for round_number in range(1, 4):
        async with asyncio.timeout(30):
            while len(acknowledged) < 500 * round_number:
                await asyncio.wait({producing}, timeout=0.05)
        async with AIOKafkaConsumer(bootstrap_servers=broker.bootstrap, group_id=group, enable_auto_commit=False) as consumer:
            consumer.assign([place])
            await consumer.commit({place: (round_number, "kept")})
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(broker.restart)
        async with AIOKafkaConsumer(bootstrap_servers=broker.bootstrap, group_id=group, enable_auto_commit=False) as consumer:
            assert await consumer.committed(place) == round_number
    enough.set()
    await producing
    found = await values_of(broker.bootstrap, "t")
    assert found == acknowledged, "each once, in order"
    assert broker.stop() == 0


async def test_producer_ids_are_never_given_twice(tmp_path: Path) -> None:
    broker, ids = start_embedded(tmp_path / "state"), []
    body = b"\xff\xff" + (1000).to_bytes(4, "big")
    for restart in (broker.kill, broker.stop, None):
        for _ in range(3):
            answer = await send_bytes(broker.bootstrap, frame(22, 0, body), answer=24)
            assert answer[12:14] == b"\0\0"
            ids.append(int.from_bytes(answer[14:22], "big"))
        if restart is not None:
            await asyncio.to_thread(restart)
            await asyncio.to_thread(broker.restart)
    assert len(set(ids)) == 9
    assert broker.stop() == 0


FULL_DISK = """
import resource, sys
from stillhouse.broker.server import main
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
raise SystemExit(main(sys.argv[1:]))
"""


async def test_a_full_disk_refuses_writes_and_serves_reads(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse to let any file grow beyond 200 kB."""
    command = [sys.executable, "-c", FULL_DISK, "--dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    bootstrap = json.loads(process.stdout.readline())["bootstrap_servers"]
    await create(bootstrap, "t")
    accepted = 0
    batch = make_batch([bytes(30_000)], timestamps=[1])
    while (outcome := await produce_raw(bootstrap, "t", batch))[0] == 0:
        accepted += 1
        assert accepted < 10
    assert outcome[0] == KafkaStorageError.errno == 56 and accepted == 6
    assert (await produce_raw(bootstrap, "t", make_batch([b"small"], timestamps=[1]))) == (0, 6), "what still fits is taken"
    assert [len(value) for value in await values_of(bootstrap, "t")] == [30_000] * 6 + [5]
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0 and "not stored: File too large" in log.replace("[Errno 27] ", "")
    restarted = start_embedded(tmp_path)
    assert len(await values_of(restarted.bootstrap, "t")) == 7
    assert restarted.stop() == 0


# --- what it hears


async def test_topics_are_made_by_naming_them_only_if_told_to(tmp_path: Path, shared: RunningBroker) -> None:
    async with AIOKafkaProducer(bootstrap_servers=shared.bootstrap) as producer:
        await producer.send_and_wait("made-by-naming", b"x", partition=0)
        assert await producer.partitions_for("made-by-naming") == {0, 1, 2}
    plain = Broker(tmp_path)
    bootstrap = await plain.start()
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        assert await consumer.topics() == set()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, request_timeout_ms=1000, metadata_max_age_ms=500) as producer:
        with pytest.raises(Exception, match="UnknownTopic"):
            await producer.send_and_wait("nobody-made-this", b"x")
    assert plain.state.topics.by_name == {}
    await plain.stop()


async def test_producing_without_acknowledgement_and_leaving_is_heard(shared: RunningBroker) -> None:
    await create(shared.bootstrap, "acks0")
    batch = make_batch([b"x"], timestamps=[1])
    body = (
        b"\xff\xff"
        + b"\0\0"
        + (1000).to_bytes(4, "big")
        + b"\0\0\0\x01\0\x05acks0\0\0\0\x01"
        + bytes(4)
        + len(batch).to_bytes(4, "big")
        + batch
    )
    assert await send_bytes(shared.bootstrap, frame(0, 3, body) * 5) == b""
    assert len(await values_of(shared.bootstrap, "acks0")) == 5


async def test_api_versions_is_honest(shared: RunningBroker) -> None:
    answer = await send_bytes(shared.bootstrap, API_VERSIONS, answer=14 + 6 * len(APIS))
    assert answer[4:10] == (77).to_bytes(4, "big") + b"\0\0"
    listed = {tuple(int.from_bytes(answer[at + i : at + i + 2], "big") for i in (0, 2, 4)) for at in range(14, len(answer), 6)}
    assert listed == {(api.key, api.first, api.last) for api in APIS.values()}
    unknown = await send_bytes(shared.bootstrap, frame(18, 99, b"\0"), answer=10)
    assert unknown[8:10] == (35).to_bytes(2, "big"), "a version from the future is answered in version 0"


async def answers(bootstrap: str) -> bool:
    return len(await send_bytes(bootstrap, API_VERSIONS, answer=8)) == 8


FRAMES = st.builds(
    lambda api, version, body, flexible: frame(api, version, body, flexible=flexible),
    st.sampled_from([*APIS, 24, 99]),
    st.integers(-1, 14),
    st.binary(max_size=200),
    st.booleans(),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=400) | FRAMES)
def test_noise_never_brings_it_down(shared: RunningBroker, noise: bytes) -> None:
    async def one() -> None:
        async with asyncio.timeout(20):
            await send_bytes(shared.bootstrap, noise)
            assert await answers(shared.bootstrap)

    asyncio.run(one())
    assert shared.process.poll() is None


def test_a_frame_that_never_comes_holds_nobody_up(shared: RunningBroker) -> None:
    with socket.create_connection(("127.0.0.1", shared.port)) as slow:
        slow.sendall((1_000_000).to_bytes(4, "big") + b"only the beginning")
        assert asyncio.run(answers(shared.bootstrap))


async def test_pipelined_requests_are_answered_in_order(shared: RunningBroker) -> None:
    requests = b"".join(frame(18, 0, b"", correlation=number) for number in range(500))
    data = await send_bytes(shared.bootstrap, requests, answer=500 * (14 + 6 * len(APIS)))
    size = 14 + 6 * len(APIS)
    assert [int.from_bytes(data[at + 4 : at + 8], "big") for at in range(0, len(data), size)] == list(range(500))


# --- fetches that wait, and that ask for too much


async def test_a_fetch_that_waits_hears_of_new_records_and_of_its_topics_end(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    bootstrap = await broker.start()
    await create(bootstrap, "t")
    log = broker.state.topics.partition("t", 0)

    async def waiting(offset: int) -> "asyncio.Task[Any]":
        task = asyncio.create_task(ask(bootstrap, FetchRequest(50_000, 1, 10**6, 0, [("t", [(0, offset, 10**6)])])))
        async with asyncio.timeout(20):
            while not log.watchers:
                await asyncio.wait({task}, timeout=0.01)
        return task

    async with asyncio.timeout(20):  # well below the 50 s that the fetches would wait
        first = await waiting(0)
        assert await produce_raw(bootstrap, "t", make_batch([b"x"], timestamps=[1])) == (0, 0)
        ((_, ((_, error, *_, records),)),) = (await first).topics
        assert error == 0 and records and not log.watchers
        second = await waiting(1)
        broker.state.topics.delete("t")
        ((_, ((_, error, *_),)),) = (await second).topics
        assert error == 3
    await broker.stop()


async def test_an_answer_has_a_size_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MAX_ANSWER", 25_000)
    broker = Broker(tmp_path)
    bootstrap = await broker.start()
    await create(bootstrap, "t", 3)
    for partition in (0, 1, 2):
        assert (await produce_raw(bootstrap, "t", make_batch([bytes(10_000)], timestamps=[1]), partition))[0] == 0
    asked = [("t", [(partition, 0, 10**9) for partition in (0, 1, 2)])]
    ((_, partitions),) = (await ask(bootstrap, FetchRequest(500, 1, 10**9, 0, asked))).topics
    assert sum(len(records) for *_, records in partitions) == 25_000
    await broker.stop()


# --- what it does not do


async def test_transactions_are_refused_plainly(shared: RunningBroker) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=shared.bootstrap, transactional_id="t")
    async with asyncio.timeout(20):
        with pytest.raises(TransactionalIdAuthorizationFailed):
            await producer.start()
    await producer.stop()
    confluent = Producer({"bootstrap.servers": shared.bootstrap, "transactional.id": "t"})
    with pytest.raises(KafkaException, match="Transactional Id authorization failed"):
        await asyncio.to_thread(confluent.init_transactions, 20)


async def test_partition_growth_and_record_deletion_are_refused_plainly(shared: RunningBroker) -> None:
    await create(shared.bootstrap, "fixed")
    admin = AdminClient({"bootstrap.servers": shared.bootstrap})
    with pytest.raises(KafkaException, match="not supported by broker"):
        await asyncio.to_thread(admin.create_partitions([NewPartitions("fixed", 5)])["fixed"].result, 20)
    place = Place("fixed", 0, 1)
    with pytest.raises(KafkaException, match="not supported by broker"):
        await asyncio.to_thread(admin.delete_records([place])[place].result, 20)
    with pytest.raises(KafkaException, match=r"cleanup.policy=compact: must be one of: delete"):
        compacted = ConfluentTopic("compacted", 1, 1, config={"cleanup.policy": "compact"})
        await asyncio.to_thread(admin.create_topics([compacted])["compacted"].result, 20)


async def test_when_its_timeouts_fail_it_stops_instead_of_serving_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker(tmp_path, retention_s=0.01)
    await broker.start()
    broker.state.topics.retain = None  # type: ignore[method-assign, assignment]
    async with asyncio.timeout(10):
        await broker.failed.wait()
    assert "a task of the broker failed" in caplog.text
    await broker.stop()
