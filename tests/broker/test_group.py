"""The group's state machine under an injected clock: scenarios that Kafka's clients meet, and random histories."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from stillhouse.broker.codec import Message
from stillhouse.broker.errors import Code
from stillhouse.broker.group import Group
from stillhouse.broker.member import Client, State

SESSION_S, REBALANCE_S = 6.0, 10.0
RANGE = [("range", b"topics")]


class Waiting:
    """A reply that may come once, now or later."""

    def __init__(self) -> None:
        self.answer: Message | None = None

    def __call__(self, message: Message) -> None:
        assert self.answer is None, "answered twice"
        self.answer = message

    @property
    def code(self) -> Code:
        assert self.answer is not None, "not answered yet"
        return Code(self.answer["error"])


class Side:
    """Client side of one group: builds requests, keeps the clock."""

    def __init__(self) -> None:
        self.group, self.now = Group(), 100.0

    def join(
        self,
        member: str = "",
        instance: str | None = None,
        protocols: list[tuple[str, bytes]] = RANGE,
        kind: str = "consumer",
        **client: Any,
    ) -> Waiting:
        reply = Waiting()
        request = {
            "member": member, "instance": instance, "session_timeout": SESSION_S * 1000, "rebalance_timeout": REBALANCE_S * 1000,
            "protocol_type": kind, "protocols": [{"name": n, "metadata": m} for n, m in protocols],
        }  # fmt: skip
        self.group.join(request, Client("c", "h", **({"asks_for_id": False} | client)), self.now, reply)
        return reply

    def sync(self, member: str, generation: int, assignments: dict[str, bytes] | None = None, instance: str | None = None) -> Waiting:
        reply = Waiting()
        given = [{"member": m, "assignment": a} for m, a in (assignments or {}).items()]
        request = {"member": member, "generation": generation, "instance": instance, "assignments": given}
        self.group.sync(request | {"protocol_type": None, "protocol": None}, self.now, reply)
        return reply

    def heartbeat(self, member: str, generation: int, instance: str | None = None) -> Code:
        return self.group.heartbeat({"member": member, "generation": generation, "instance": instance}, self.now)

    def commit(self, member: str, generation: int) -> Code:
        return self.group.check_commit({"member": member, "generation": generation, "instance": None}, self.now)

    def state(self) -> State:
        return self.group.state

    def passes(self, seconds: float, *, keep: tuple[str, ...] = ()) -> None:
        """Time in steps of half a second; members in `keep` heartbeat."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.5
            for member in keep:
                self.heartbeat(member, self.group.generation)
            self.group.tick(self.now)

    def stable(self, count: int, instances: tuple[str | None, ...] = ()) -> list[str]:
        """`count` members that have joined and synced; the first leads."""
        waiting = [self.join(instance=instance) for instance in (*instances, *[None] * (count - len(instances)))]
        ids = [str(waiting[0].answer and waiting[0].answer["member"])]
        waiting[0] = self.join(ids[0], instances[0] if instances else None) if count > 1 else waiting[0]
        answers = [reply.answer or {} for reply in waiting]
        ids = [answer["member"] for answer in answers]
        generation = answers[0]["generation"]
        assert {answer["leader"] for answer in answers} == {ids[0]}
        followers = [self.sync(member, generation) for member in ids[1:]]
        assert self.sync(ids[0], generation, {member: member.encode() for member in ids}).code is Code.NONE
        assert [reply.answer and reply.answer["assignment"] for reply in followers] == [member.encode() for member in ids[1:]]
        assert self.group.state is State.STABLE
        return ids


@pytest.fixture
def side() -> Side:
    return Side()


def test_new_clients_are_given_an_id_first(side: Side) -> None:
    asked = side.join(asks_for_id=True)
    assert asked.code is Code.MEMBER_ID_REQUIRED and asked.answer is not None
    joined = side.join(asked.answer["member"], asks_for_id=True)
    assert joined.code is Code.NONE and joined.answer is not None and joined.answer["leader"] == asked.answer["member"]
    assert side.join("never given out").code is Code.UNKNOWN_MEMBER_ID


def test_an_id_that_nobody_joins_with_holds_others_up_for_its_session_only(side: Side) -> None:
    side.join(asks_for_id=True)
    waiting = side.join()
    assert waiting.answer is None
    side.passes(SESSION_S + 0.5)
    assert waiting.code is Code.NONE


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_member_is_gone_after_its_session_leader_or_not(side: Side, killed: int) -> None:
    ids = side.stable(3)
    alive = tuple(member for index, member in enumerate(ids) if index != killed)
    side.passes(SESSION_S - 1, keep=alive)
    assert side.state() is State.STABLE
    side.passes(1.5, keep=alive)
    assert side.state() is State.PREPARING and ids[killed] not in side.group.members
    assert side.heartbeat(alive[0], side.group.generation) is Code.REBALANCE_IN_PROGRESS
    again = [side.join(member) for member in alive]
    assert [reply.code for reply in again] == [Code.NONE, Code.NONE]
    leader = again[0].answer and again[0].answer["leader"]
    assert leader in alive
    generation = side.group.generation
    assert side.sync(str(leader), generation, {m: b"new" for m in alive}).code is Code.NONE
    assert side.heartbeat(alive[0], generation) is Code.NONE
    assert side.heartbeat(ids[killed], generation) is Code.UNKNOWN_MEMBER_ID


def test_a_member_that_does_not_rejoin_is_dropped_after_the_rebalance_timeout(side: Side) -> None:
    first, second = side.stable(2)
    newcomer, rejoined = side.join(), side.join(first)
    side.passes(REBALANCE_S - 0.5, keep=(second,))  # it lives, but does not come
    assert newcomer.answer is None and rejoined.answer is None
    side.passes(1, keep=(second,))
    assert newcomer.code is rejoined.code is Code.NONE and second not in side.group.members


def test_a_member_that_does_not_sync_is_dropped(side: Side) -> None:
    leader = side.join().answer or {}
    side.passes(REBALANCE_S + 0.5, keep=(leader["member"],))
    assert side.state() is State.EMPTY


def test_leaving_moves_partitions_at_once(side: Side) -> None:
    first, second = side.stable(2)
    assert side.group.leave(first, None, side.now) is Code.NONE
    assert side.join(second).code is Code.NONE
    assert side.group.leader == second
    assert side.group.leave(first, None, side.now) is Code.UNKNOWN_MEMBER_ID


def test_old_generations_and_strangers_may_not_commit(side: Side) -> None:
    assert side.commit("", -1) is Code.NONE, "an empty group takes commits from outside"
    (member,) = side.stable(1)
    assert side.commit(member, 1) is Code.NONE
    assert side.commit(member, 0) is Code.ILLEGAL_GENERATION
    assert side.commit("stranger", 1) is Code.UNKNOWN_MEMBER_ID
    assert side.commit("", -1) is Code.UNKNOWN_MEMBER_ID
    waiting = side.join()
    assert side.commit(member, 1) is Code.NONE, "before it rejoins it says how far it came"
    side.join(member)
    assert waiting.code is Code.NONE
    assert side.commit(member, 2) is Code.REBALANCE_IN_PROGRESS, "until the new assignment is there"


def test_a_static_member_comes_back_without_a_rebalance(side: Side) -> None:
    first, second = side.stable(2, ("one", "two"))
    back = side.join(instance="two").answer or {}
    assert back["member"] != second and back["generation"] == 2 and side.state() is State.STABLE
    answer = side.sync(back["member"], 2, instance="two").answer or {}
    assert answer["assignment"] == second.encode(), "its predecessor's partitions"
    assert side.heartbeat(second, 2, "two") is Code.FENCED_INSTANCE_ID
    assert side.join(second, "two").code is Code.FENCED_INSTANCE_ID
    assert side.heartbeat(first, 2, "one") is Code.NONE


@pytest.mark.parametrize("may_skip", [True, False])
def test_a_static_leader_comes_back_and_does_not_assign_anew(side: Side, may_skip: bool) -> None:
    first, _ = side.stable(2, ("one", "two"))
    back = side.join(instance="one", may_skip_assignment=may_skip).answer or {}
    assert side.state() is State.STABLE and side.group.leader == back["member"]
    if may_skip:
        assert back["skip_assignment"] and back["leader"] == back["member"] and len(back["members"]) == 2
    else:
        assert back["leader"] == first and not back["members"]


def test_a_static_member_that_stays_away_is_gone_after_its_session(side: Side) -> None:
    first, second = side.stable(2, ("one", "two"))
    side.passes(SESSION_S + 0.5, keep=(first,))
    assert second not in side.group.members and side.state() is State.PREPARING
    assert side.group.leave("", "two", side.now) is Code.UNKNOWN_MEMBER_ID
    assert side.group.leave("", "one", side.now) is Code.NONE


def test_a_waiting_static_twin_is_fenced(side: Side) -> None:
    side.stable(1)
    first, second = side.join(instance="one"), side.join(instance="one")
    assert first.code is Code.FENCED_INSTANCE_ID and second.answer is None


def test_protocols_must_be_shared_and_the_most_wanted_wins(side: Side) -> None:
    first = side.join(protocols=[("a", b"1"), ("b", b"2")]).answer or {}
    assert side.join(protocols=[("c", b"")]).code is Code.INCONSISTENT_GROUP_PROTOCOL
    assert side.join(kind="connect").code is Code.INCONSISTENT_GROUP_PROTOCOL
    assert side.join(protocols=[]).code is Code.INCONSISTENT_GROUP_PROTOCOL
    others = [side.join(protocols=[("b", b"3"), ("a", b"4")]) for _ in range(2)]
    side.join(first["member"], protocols=[("a", b"1"), ("b", b"2")])
    assert {(reply.answer or {})["protocol"] for reply in others} == {"b"}


def test_a_lost_answer_is_given_again(side: Side) -> None:
    first, second = side.stable(2)
    generation = side.group.generation
    again = side.join(second).answer or {}
    assert again["generation"] == generation and side.state() is State.STABLE
    assert side.sync(second, generation).code is Code.NONE
    assert side.join(first).answer is None, "the leader asks for a rebalance this way"


class GroupMachine(RuleBasedStateMachine):
    """Random histories of members that join, sync, heartbeat, leave, come back and die."""

    members = Bundle("members")

    def __init__(self) -> None:
        super().__init__()
        self.side = Side()
        self.waiting: list[Waiting] = []
        self.generation = 0

    def sent(self, reply: Waiting) -> Waiting:
        self.waiting.append(reply)
        return reply

    @rule(target=members, instance=st.sampled_from([None, "one", "two"]), version=st.booleans(), metadata=st.sampled_from([b"x", b"y"]))
    def joins(self, instance: str | None, version: bool, metadata: bytes) -> Any:
        reply = self.sent(self.side.join(instance=instance, asks_for_id=version, protocols=[("range", metadata), ("rr", b"")]))
        return multiple(*([(reply.answer["member"], instance)] if reply.answer else []))

    @rule(target=members)
    def waiting_members_are_known(self) -> Any:
        answers = [reply.answer for reply in self.waiting if reply.answer and reply.answer.get("member")]
        return multiple(*[(answer["member"], self._instance(answer["member"])) for answer in answers[-2:]])

    def _instance(self, member: str) -> str | None:
        found = self.side.group.members.get(member)
        return found.instance if found else None

    @rule(member=members, metadata=st.sampled_from([b"x", b"y"]))
    def rejoins(self, member: tuple[str, str | None], metadata: bytes) -> None:
        self.sent(self.side.join(member[0], member[1], protocols=[("range", metadata), ("rr", b"")]))

    @rule(member=members, off=st.sampled_from([0, 0, 0, 1]))
    def syncs(self, member: tuple[str, str | None], off: int) -> None:
        group = self.side.group
        assignments = {each: each.encode() for each in group.members} if member[0] == group.leader else {}
        reply = self.sent(self.side.sync(member[0], group.generation - off, assignments, member[1]))
        if reply.answer and reply.code is Code.NONE:
            assert group.state is State.STABLE and member[0] in group.members

    @rule(member=members)
    def heartbeats(self, member: tuple[str, str | None]) -> None:
        code = self.side.heartbeat(member[0], self.side.group.generation, member[1])
        assert (code in (Code.NONE, Code.REBALANCE_IN_PROGRESS)) == (member[0] in self.side.group.members)

    @rule(member=members)
    def leaves(self, member: tuple[str, str | None]) -> None:
        self.side.group.leave(member[0], None, self.side.now)
        assert member[0] not in self.side.group.members

    @rule(seconds=st.sampled_from([0.5, 3, 7, 11]))
    def time_passes(self, seconds: float) -> None:
        self.side.passes(seconds)

    @invariant()
    def is_coherent(self) -> None:
        group = self.side.group
        assert group.generation >= self.generation
        self.generation = group.generation
        assert group.static == {m.instance: m.id for m in group.members.values() if m.instance is not None}
        assert all(m.join is None for m in group.members.values()) or group.state is State.PREPARING
        assert all(m.sync is None for m in group.members.values()) or group.state is State.COMPLETING
        assert group.members or group.state in (State.EMPTY, State.PREPARING)
        if group.state in (State.STABLE, State.COMPLETING):
            assert group.leader in group.members

    def teardown(self) -> None:
        self.side.passes(3 * (SESSION_S + REBALANCE_S))
        assert all(reply.answer is not None for reply in self.waiting), "a request was never answered"
        assert not self.side.group.members and not self.side.group.expected and self.side.state() is State.EMPTY


TestGroup = GroupMachine.TestCase
TestGroup.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
