"""How recorded runs are sent, and how one knows that they have arrived."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stillhouse.schemas.errors import PermanentError, RetryableError
from stillhouse.schemas.events import AgentEvent, Outcome, StepTaken, TrajectoryEnded
from stillhouse.sdk.client import Client
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.store import Store

BATCH = 1000  # events between two looks at what has been acknowledged: below the SDK's queue, so none is refused
FLUSH_SECONDS = 60.0
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Sent:
    """What an import sent: events in all, and per key the number of distinct events of its trajectory."""

    events: int
    steps: int
    successes: int
    revisions: Mapping[str, int]


def send(events: Iterable[AgentEvent], kafka: KafkaSettings, spool: Path, tick: Callable[[int], None]) -> Sent:
    """Send events through the SDK and wait until the broker has acknowledged them.

    Raises:
        PermanentError: an event was refused, or whatever reading the events raises.
        RetryableError: the broker did not acknowledge in time; what is left is in the spool and goes out with the next start.
    """
    ids: dict[str, set[str]] = {}
    kinds: Counter[str] = Counter()
    client = Client(settings=kafka, agent="import", spool=spool, way_in="import")
    try:
        for number, event in enumerate(events, 1):
            client.put(event)  # waits for room; what is refused is counted, and looked at with each flush
            ids.setdefault(event.key, set()).add(event.event_id)
            kinds.update(_kinds(event))
            if number % BATCH == 0:
                _flushed(client, kafka)
                tick(number)
        _flushed(client, kafka)
    finally:
        client.close(timeout=FLUSH_SECONDS)
    return Sent(sum(map(len, ids.values())), kinds["step"], kinds["success"], {key: len(found) for key, found in ids.items()})


def _kinds(event: AgentEvent) -> list[str]:
    if isinstance(event.body, StepTaken):
        return ["step"]
    return ["success"] if isinstance(event.body, TrajectoryEnded) and event.body.outcome is Outcome.SUCCESS else []


def _flushed(client: Client, kafka: KafkaSettings) -> None:
    left = client.flush(timeout=FLUSH_SECONDS)
    if left:
        fix = "They are in the spool and are sent when the broker is back."
        raise RetryableError(f"{left} events were not acknowledged", where=kafka.bootstrap_servers, fix=fix)
    if refused := client.stats.rejected:
        raise PermanentError(f"events were refused: {refused}", where=kafka.bootstrap_servers, fix="See the spool's rejected/ folder.")


def wait_for_rows(store: Store, revisions: Mapping[str, int], timeout: float, tick: Callable[[int], None]) -> None:
    """Return when each trajectory's row has folded at least so many events.

    Raises:
        RetryableError: not in time; says how many are missing and one of them.
    """
    deadline, missing = time.monotonic() + timeout, dict(revisions)
    while True:
        stored = {str(row["key"]): int(row["revision"]) for row in store.trajectories(columns=["key", "revision"])}
        missing = {key: wanted for key, wanted in missing.items() if stored.get(key, 0) < wanted}
        tick(len(revisions) - len(missing))
        if not missing:
            return
        if time.monotonic() > deadline:
            fix = "Is ingest running? See `stillhouse status` and `stillhouse dlq list`."
            raise RetryableError(f"{len(missing)} trajectories are not stored after {timeout:g} s", where=next(iter(missing)), fix=fix)
        time.sleep(POLL_SECONDS)
