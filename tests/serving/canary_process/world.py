"""A route's traffic without a gateway: units assigned as a gateway would, and the facts and watermarks that ingest would publish."""

from collections.abc import Mapping, Sequence
from logging import getLogger
from random import Random
from typing import Any

import msgspec

from stillhouse.schemas.assign import Arm, assign, idle_shares
from stillhouse.schemas.codec import encode
from stillhouse.schemas.events import Assignment, Outcome, Policy, PolicyRole
from stillhouse.schemas.facts import Scores, StudentStage, StudentState, TrajectoryFacts, Watermark
from stillhouse.schemas.keys import trajectory_key
from stillhouse.schemas.route_state import RouteState
from stillhouse.schemas.topics import TRAJECTORIES
from stillhouse.sdk.kafka import KafkaSettings, confluent_producer_args, topic_name
from stillhouse.serving.canary.settings import SECOND, ControllerSettings, Terms
from stillhouse.serving.canary.traffic import allocation

ROUTE, HOLDBACK = "desk", 0.02
NOON = 1_700_000_000 * SECOND
TERMS = Terms(route=ROUTE, horizon_us=5 * SECOND, budget_usd=1.0, holdback=HOLDBACK)
SETTINGS = ControllerSettings(
    stages=(0.25, 0.5),
    margin=0.15,
    format_margin=0.15,
    steps_margin=0.15,
    latency_margin=0.15,
    fallback_margin=0.15,
    alpha=0.15,
    min_units=10,
    min_age_s=1.0,
    max_age_s=3600.0,
    max_canary_units=400,
    record_s=0.0,
)
PERFECT: Mapping[Arm, float] = {Arm.TEACHER: 0.95, Arm.CHAMPION: 0.95, Arm.CANARY: 0.95}
COSTS: Mapping[Arm, int] = {Arm.TEACHER: 100_000, Arm.CHAMPION: 1_000, Arm.CANARY: 1_000}


def facts_of(unit: str, assignment: Assignment, at: int, *, good: bool, revision: int = 2, **fields: Any) -> TrajectoryFacts:
    """A finished trajectory of four steps, judged by a verifier."""
    arm = assignment.arm
    role = PolicyRole.TEACHER if arm == Arm.TEACHER else PolicyRole.STUDENT
    whole = TrajectoryFacts(
        key=trajectory_key("default", unit),
        tenant="default",
        trajectory_id=unit,
        revision=revision,
        content=f"{unit}/{revision}",
        status="ended",
        outcome=Outcome.SUCCESS if good else Outcome.FAILURE,
        policies=(Policy(role=role),),
        assignment=assignment,
        outcome_source="verifier",
        scores=Scores(steps=4),
        cost_micro_usd=COSTS.get(Arm(arm), 0),
        requests=4,
        occurred_at=at,
    )
    return msgspec.structs.replace(whole, **fields)


class World:
    """Traffic of one route on a real topic, on a clock of its own.

    Args:
        kafka: where the topics are.
        partitions: of `agent.events`.
        seed: of the outcomes.
        now: when it begins, microseconds since the epoch.
    """

    def __init__(self, kafka: KafkaSettings, partitions: int, seed: int = 1, now: int = NOON) -> None:
        from confluent_kafka import Producer

        self.now = now
        self._kafka, self._partitions, self._random, self._units = kafka, partitions, Random(seed), 0
        self._producer = Producer(confluent_producer_args(kafka), logger=getLogger("world"))

    def clock(self) -> int:
        """Microseconds since the epoch."""
        return self.now

    def traffic(self, state: RouteState, units: int, success: Mapping[Arm, float] = PERFECT, **fields: Any) -> list[TrajectoryFacts]:
        """Units that arrive one after the other, assigned by the state, all answered and judged; then the log is read on."""
        made = [self._unit(state, success, fields) for _ in range(units)]
        self.publish(made)
        self.watermark()
        return made

    def _unit(self, state: RouteState, success: Mapping[Arm, float], fields: Mapping[str, Any]) -> TrajectoryFacts:
        self._units += 1
        self.now += SECOND // 10
        unit = f"unit-{self._units}"
        idle = idle_shares(champion=state.champion is not None, holdback=HOLDBACK, route=ROUTE)
        shares = idle if state.canary is None else allocation(state, HOLDBACK)
        arm = assign(unit, state.experiment, shares)
        assignment = Assignment(route=ROUTE, unit=unit, experiment=state.experiment, arm=arm.value, epoch=state.epoch)
        own = fields if arm is Arm.CANARY else {}
        return facts_of(unit, assignment, self.now, good=self._random.random() < success[arm], **own)

    def ripen(self, seconds: float = 6.0) -> None:
        """Time passes and the log is read on, so that every unit matures."""
        self.now += round(seconds * SECOND)
        self.watermark()

    def watermark(self, partitions: Sequence[int] | None = None) -> None:
        """All partitions, or these, were read to their ends."""
        for partition in range(self._partitions) if partitions is None else partitions:
            mark = Watermark(partition=partition, watermark=self.now, position=0, committed=0, worker="ingest-0")
            self._producer.produce(topic_name(self._kafka, TRAJECTORIES), key=f"watermark/{partition}".encode(), value=encode(mark))
        assert self._producer.flush(20) == 0

    def publish(self, facts: Sequence[TrajectoryFacts]) -> None:
        """Put facts on the topic."""
        for one in facts:
            self._producer.produce(topic_name(self._kafka, TRAJECTORIES), key=one.key.encode(), value=encode(one))
        assert self._producer.flush(20) == 0


def registered(student: str, at: int = NOON, route: str = ROUTE) -> StudentState:
    """What the trainer says of a new student."""
    return StudentState(student=student, stage=StudentStage.REGISTERED, route=route, decided_by="trainer", decided_at=at)
