"""What survives: kill -9, a broker that is away, a full disk, a fork."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.schemas.events import ClientReport, FeedbackGiven
from stillhouse.sdk import Client, KafkaSettings, Limits
from stillhouse.sdk.spool_folder import waiting
from tests.support.agents import NO_BROKER, agent, arrived, finish, make_topics, until
from tests.support.brokers import start_embedded

# Emits a feedback every millisecond or so and prints each id with the time of its emit.
EMITS = """
import sys, threading, time
from stillhouse.sdk import Client, KafkaSettings
client = Client(settings=KafkaSettings(bootstrap_servers=sys.argv[1], prefix=sys.argv[2]), spool=sys.argv[3])
print("ready", flush=True)
pause = threading.Event()
while True:
    event = client.feedback("run", reward=1)
    if event: print(time.monotonic(), event, flush=True)
    pause.wait(0.001)
"""


def read_until(process: "subprocess.Popen[str]", seconds: float) -> list[tuple[float, str]]:
    """What an agent emitted until its own clock had moved on by `seconds`."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    lines: list[tuple[float, str]] = []
    while not lines or lines[-1][0] - lines[0][0] < seconds:
        at, event = process.stdout.readline().split()
        lines.append((float(at), event))
    return lines


def kill(process: "subprocess.Popen[str]") -> list[tuple[float, str]]:
    """kill -9; gives what it had still printed. Its last line may be torn."""
    process.kill()
    out, _ = process.communicate(timeout=30)
    rows = [line.split() for line in out.splitlines(keepends=True) if line.endswith("\n")]
    return [(float(at), event) for at, event in rows]


def test_killed_while_the_broker_is_away_nothing_older_than_a_second_is_missing(kafka: KafkaSettings, spool: Path) -> None:
    process = agent(EMITS, NO_BROKER, kafka.prefix, spool)
    emitted = read_until(process, 2.5)
    emitted += kill(process)
    safe = {event for at, event in emitted if at < emitted[-1][0] - 1.0}
    assert len(safe) > 100 and waiting(spool) >= len(safe)
    with Client(settings=kafka, spool=spool) as client:
        assert client.flush(30) == 0
        assert client.stats.adopted == client.stats.sent == len(arrived(kafka))
    got = [event.event_id for event in arrived(kafka)]
    assert safe <= set(got) and len(got) == len(set(got))
    assert not list(spool.glob("process-*"))


def test_killed_again_and_again_it_still_loses_nothing(embedded_kafka: KafkaSettings, spool: Path) -> None:
    safe: set[str] = set()
    for _ in range(3):  # each start adopts what the one before left, and is killed too
        process = agent(EMITS, NO_BROKER, embedded_kafka.prefix, spool)
        emitted = read_until(process, 1.2)
        emitted += kill(process)
        safe |= {event for at, event in emitted if at < emitted[-1][0] - 1.0}
    with Client(settings=embedded_kafka, spool=spool) as client:
        assert client.flush(30) == 0
    assert safe and safe <= {event.event_id for event in arrived(embedded_kafka)}


def test_the_spool_of_a_process_that_lives_is_left_alone(spool: Path) -> None:
    process = agent(EMITS, NO_BROKER, "", spool)
    read_until(process, 0.5)
    with Client(NO_BROKER, spool=spool) as client:
        until(lambda: client.stats.waiting == 0, "the first round")
        assert client.stats.adopted == 0
        client.close(0)
    kill(process)
    assert len(list(spool.glob("process-*"))) == 1


def test_a_broker_that_comes_back_gets_everything_and_the_spool_empties(tmp_path: Path, spool: Path) -> None:
    broker = start_embedded(tmp_path / "log", fsync=True)
    settings = make_topics(broker.bootstrap)
    # More events than may be in flight: the others wait in the spool and are read back.
    client = Client(settings=settings, spool=spool, limits=Limits(in_flight_events=50))
    ids = [client.feedback("a", reward=n) for n in range(20)]
    assert client.flush(20) == 0
    broker.kill()
    ids += [client.feedback("b", reward=n) for n in range(300)]
    until(lambda: waiting(spool) == 300, "everything in the spool")
    broker.restart()
    assert client.flush(30) == 0
    assert waiting(spool) == 0
    report = client.close()
    broker_ids = [event.event_id for event in arrived(settings)]
    broker.stop()
    assert report.complete and report.sent == 320
    assert set(broker_ids) == set(ids)


def test_close_says_what_is_left_and_leaves_it_in_the_spool(spool: Path) -> None:
    client = Client(NO_BROKER, spool=spool)
    for n in range(30):
        client.feedback("r", reward=n)
    report = client.close(0)
    assert (report.sent, report.left, report.rejected, report.complete) == (0, 30, {}, False)
    assert waiting(spool) == 30
    assert client.stats.waiting == 30


def test_a_full_spool_refuses_counts_and_reports(embedded_kafka: KafkaSettings, spool: Path) -> None:
    limits = Limits(spool_bytes=20_000, in_flight_events=5)
    client = Client(NO_BROKER, settings=embedded_kafka, spool=spool, limits=limits)
    ids = [client.feedback("r", label="x" * 500) for _ in range(60)]
    report = client.close(0)
    assert 5 < report.left < 40 and report.rejected == {"spool_full": 60 - report.left}
    assert sum(file.stat().st_size for file in spool.rglob("parcels.db")) < 60_000
    with Client(settings=embedded_kafka, spool=spool) as second:
        assert second.flush(30) == 0
    assert {e.event_id for e in arrived(embedded_kafka)} < set(ids)
    assert len(arrived(embedded_kafka)) == report.left


FULL_DISK = """
import json, resource, sys
from stillhouse.sdk import Client, Limits
client = Client(sys.argv[1], spool=sys.argv[2], limits=Limits(in_flight_events=100, report_every_s=0.05))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
ids = [client.feedback("r", label="x" * 1000) for _ in range(400)]
print(json.dumps(ids), flush=True)
sys.stdin.readline()
if sys.argv[3] == "away":
    report = client.close(0)
else:
    assert client.flush(30) == 0
    report = client.close(10)
print(json.dumps([report.sent, report.left, report.rejected]), flush=True)
"""


def test_a_full_disk_is_refused_counted_and_survived(spool: Path) -> None:
    process = agent(FULL_DISK, NO_BROKER, spool, "away")
    out = finish(process)
    ids, (sent, left, rejected) = map(json.loads, out.splitlines())
    assert all(ids), "emit never notices"
    assert sent == 0 and set(rejected) == {"disk_full"} and left + rejected["disk_full"] >= 400
    assert waiting(spool) == left


def test_with_a_full_disk_a_broker_that_is_there_still_gets_everything(embedded_kafka: KafkaSettings, spool: Path) -> None:
    script = FULL_DISK.replace("sys.argv[1], spool", "settings=KafkaSettings(bootstrap_servers=sys.argv[1], prefix=sys.argv[4]), spool")
    script = script.replace("in_flight_events=100, ", "").replace("Limits\n", "KafkaSettings, Limits\n")
    process = agent(script, embedded_kafka.bootstrap_servers, spool, "there", embedded_kafka.prefix)
    ids, (sent, left, rejected) = map(json.loads, finish(process).splitlines())
    assert (sent, left, rejected) == (400, 0, {})
    assert {e.event_id for e in arrived(embedded_kafka)} == set(ids)


FORKS = """
import json, os, sys
from stillhouse.sdk import Client, KafkaSettings
client = Client(settings=KafkaSettings(bootstrap_servers=sys.argv[1], prefix=sys.argv[2]), spool=sys.argv[3])
ids = [client.feedback("parent", reward=n) for n in range(50)]
read, write = os.pipe()
child = os.fork()
if not child:
    ids = [client.feedback("child", reward=n) for n in range(50)]
    left = client.flush(20) if sys.argv[4] == "flush" else 0
    os.write(write, json.dumps([ids, left, client.stats.emitted, len(os.listdir(sys.argv[3]))]).encode())
    if sys.argv[4] == "exit": sys.exit(0)  # atexit sends what is left, and the interpreter ends without waiting for the parent's threads
    client.close()
    os._exit(0)
ids += [client.feedback("parent", reward=n) for n in range(50)]
_, status = os.waitpid(child, 0)
assert status == 0, status
report = client.close()
print(json.dumps([ids, json.loads(os.read(read, 65536)), report.sent, report.left]))
"""


@pytest.mark.parametrize("how", ["flush", "exit"])
def test_a_forked_child_has_a_queue_a_thread_and_a_spool_of_its_own(how: str, embedded_kafka: KafkaSettings, spool: Path) -> None:
    process = agent(FORKS, embedded_kafka.bootstrap_servers, embedded_kafka.prefix, spool, how)
    parents, (childs, left, emitted, _), sent, parent_left = json.loads(finish(process))
    assert (sent, left, parent_left, emitted) == (100, 0, 0, 50)
    got = [e.event_id for e in arrived(embedded_kafka) if isinstance(e.body, FeedbackGiven)]
    assert sorted(got) == sorted(parents + childs), "each event once"
    assert not list(spool.glob("process-*"))


FORK_AND_DIE = """
import os, sys
from stillhouse.sdk import Client
client = Client(sys.argv[1], spool=sys.argv[2])
client.feedback("parent", reward=1)
child = os.fork()
if not child:
    client.feedback("child", reward=2)
    print("child", client.flush(1), flush=True)
    sys.stdin.readline()
    os._exit(0)
print("parent", client.flush(1), child, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_child_does_not_hold_the_lock_of_a_parent_that_died(spool: Path) -> None:
    process = agent(FORK_AND_DIE, NO_BROKER, spool)
    assert process.stdout is not None
    lines = sorted(process.stdout.readline().split()[0] for _ in range(2))
    assert lines == ["child", "parent"] and process.wait(30) == -signal.SIGKILL
    with Client(NO_BROKER, spool=spool) as client:
        until(lambda: client.stats.adopted == 1, "the parent's event, while the child lives")
        client.close(0)
    process.communicate("go\n", timeout=30)
    with Client(NO_BROKER, spool=spool) as client:
        until(lambda: client.stats.adopted == 2, "the child's event, and the parent's again")
        client.close(0)


def test_the_interpreters_end_sends_what_is_left(embedded_kafka: KafkaSettings, spool: Path) -> None:
    script = """
import sys
from stillhouse.sdk import Client, KafkaSettings
client = Client(settings=KafkaSettings(bootstrap_servers=sys.argv[1], prefix=sys.argv[2]), spool=sys.argv[3])
for n in range(100): client.feedback("r", reward=n)
"""
    finish(agent(script, embedded_kafka.bootstrap_servers, embedded_kafka.prefix, spool))
    assert len(arrived(embedded_kafka)) == 100


def test_a_signal_handler_may_emit(spool: Path) -> None:
    script = """
import json, os, signal, sys
from stillhouse.sdk import Client
client = Client(sys.argv[1], spool=sys.argv[2])
signal.signal(signal.SIGALRM, lambda *_: client.feedback("handler"))
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
for n in range(3000): client.feedback("main", reward=n)
signal.setitimer(signal.ITIMER_REAL, 0)
client.flush(0.5)
report = client.close(0)
print(json.dumps([report.left, report.rejected]))
"""
    left, rejected = json.loads(finish(agent(script, NO_BROKER, spool)))
    assert left > 3000 and rejected == {}


def test_a_report_of_what_was_lost_reaches_the_other_side_later(embedded_kafka: KafkaSettings, spool: Path) -> None:
    first = Client(NO_BROKER, settings=embedded_kafka, spool=spool)
    first.trajectory(task="x").end()
    first.emit(object())  # type: ignore[arg-type]
    assert first.close(0).left == 3
    with Client(settings=embedded_kafka, spool=spool) as second:
        assert second.flush(30) == 0
    reports = [e.body for e in arrived(embedded_kafka) if isinstance(e.body, ClientReport)]
    assert reports == [ClientReport(dropped={"bad_input": 1})]


def test_agents_install_and_load_nothing_heavy() -> None:
    script = "import sys, stillhouse.sdk; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ).stdout.split())
    heavy = {"torch", "lancedb", "lance", "aiohttp", "aiokafka", "transformers", "typer", "rich", "faust", "numpy", "pyarrow", "pydantic"}
    assert not heavy & loaded
