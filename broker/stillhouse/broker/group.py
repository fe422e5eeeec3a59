"""The state machine of one consumer group, as Kafka's classic protocol has it. Pure: the clock and the replies are the caller's.

A request that has to wait (join, sync) leaves its `reply` behind; it is called once, by whatever ends the wait: another member's
request or `tick`. Times are seconds of any monotonic clock; timeouts in requests are ms.
"""

import uuid
from collections import Counter

from stillhouse.broker.codec import Message
from stillhouse.broker.errors import Code
from stillhouse.broker.member import Client, Member, Protocols, Reply, State


class Group:
    """One group's members and generation."""

    def __init__(self) -> None:
        """An empty group."""
        self.state = State.EMPTY
        self.generation = 0
        self.protocol_type = ""
        self.protocol = ""
        self.leader = ""
        self.members: dict[str, Member] = {}
        self.static: dict[str, str] = {}  # instance id -> member id
        self.expected: dict[str, float] = {}  # ids given out and not joined with yet -> until when
        self._deadline = 0.0  # of the phase PREPARING or COMPLETING

    # --- join

    def join(self, request: Message, client: Client, now: float, reply: Reply) -> None:
        """A JoinGroup request."""
        member_id, instance = request["member"], request["instance"]
        protocols = [(p["name"], bytes(p["metadata"])) for p in request["protocols"]]
        if not self._agrees(request["protocol_type"], protocols):
            return _refuse_join(reply, Code.INCONSISTENT_GROUP_PROTOCOL, member_id)
        if instance is not None and member_id and self.static.get(instance) != member_id:
            return _refuse_join(reply, Code.FENCED_INSTANCE_ID if instance in self.static else Code.UNKNOWN_MEMBER_ID, member_id)
        if member_id in self.members:
            return self._rejoin(self.members[member_id], request, protocols, now, reply)
        if member_id and member_id not in self.expected:
            return _refuse_join(reply, Code.UNKNOWN_MEMBER_ID, member_id)
        session = request["session_timeout"] / 1000
        new_id = member_id or f"{instance or client.id or 'member'}-{uuid.uuid4()}"
        if not member_id and instance is None and client.asks_for_id:
            self.expected[new_id] = now + session
            return _refuse_join(reply, Code.MEMBER_ID_REQUIRED, new_id)
        self.expected.pop(member_id, None)
        member = Member(new_id, instance, client, session, request["rebalance_timeout"] / 1000, protocols, now + session)
        if instance in self.static:
            return self._replace(member, now, reply)
        self.members[new_id] = member
        if instance is not None:
            self.static[instance] = new_id
        self.protocol_type = request["protocol_type"]
        member.join = reply
        self._prepare(now)

    def _agrees(self, protocol_type: str, protocols: Protocols) -> bool:
        if not self.members:
            return bool(protocol_type and protocols)
        common = set.intersection(*({name for name, _ in m.protocols} for m in self.members.values()))
        return protocol_type == self.protocol_type and any(name in common for name, _ in protocols)

    def _rejoin(self, member: Member, request: Message, protocols: Protocols, now: float, reply: Reply) -> None:
        changed = protocols != member.protocols
        quiet = self.state is State.COMPLETING or (self.state is State.STABLE and member.id != self.leader)
        member.deadline = now + member.session
        if quiet and not changed:  # its last answer was lost
            return reply(self._joined(member))
        member.protocols = protocols
        member.session, member.rebalance = request["session_timeout"] / 1000, request["rebalance_timeout"] / 1000
        if member.join is not None:
            _refuse_join(member.join, Code.REBALANCE_IN_PROGRESS, member.id)
        member.join = reply
        self._prepare(now)

    def _replace(self, member: Member, now: float, reply: Reply) -> None:
        """A static member comes back without its id: it takes its predecessor's place, and in a stable group nobody else notices."""
        assert member.instance is not None
        old = self.members.pop(self.static[member.instance])
        if old.join is not None:
            _refuse_join(old.join, Code.FENCED_INSTANCE_ID, old.id)
        if old.sync is not None:
            _take_sync(old)(_error(Code.FENCED_INSTANCE_ID))
        self.members[member.id] = member
        self.static[member.instance] = member.id
        was_leader = self.leader == old.id
        if was_leader:
            self.leader = member.id
        if self.state is State.STABLE and member.protocols == old.protocols:
            member.assignment, member.synced = old.assignment, True
            answer = self._joined(member)
            if was_leader and member.client.may_skip_assignment:
                answer["skip_assignment"] = True
            elif was_leader:  # an old client would assign anew as leader: it is told that someone else leads
                answer |= {"leader": old.id, "members": []}
            return reply(answer)
        member.join = reply
        self._prepare(now)

    def _joined(self, member: Member) -> Message:
        members = [
            {"member": m.id, "instance": m.instance, "metadata": m.metadata(self.protocol)}
            for m in (self.members.values() if member.id == self.leader else ())
        ]
        return {
            "error": Code.NONE, "generation": self.generation, "protocol_type": self.protocol_type, "protocol": self.protocol,
            "leader": self.leader, "member": member.id, "members": members,
        }  # fmt: skip

    # --- the two phases of a rebalance

    def _prepare(self, now: float) -> None:
        """Begin a rebalance, or see whether the one under way is complete."""
        if self.state is not State.PREPARING:
            for member in self.members.values():
                member.synced = False
                if member.sync is not None:
                    _take_sync(member)(_error(Code.REBALANCE_IN_PROGRESS))
            self.state = State.PREPARING
            self._deadline = now + max((m.rebalance for m in self.members.values()), default=0.0)
        if not self.expected and all(m.join is not None for m in self.members.values()):
            self._complete(now)

    def _complete(self, now: float) -> None:
        for member in [m for m in self.members.values() if m.join is None and m.instance is None]:
            del self.members[member.id]
        joined = [m for m in self.members.values() if m.join is not None]
        if self.members and not joined:  # only static members, and none of them is back yet
            self._deadline = now + max(m.rebalance for m in self.members.values())
            return
        self.generation += 1
        if not joined:
            self.state, self.protocol, self.leader = State.EMPTY, "", ""
            return
        self.protocol = self._elect_protocol()
        if self.leader not in {m.id for m in joined}:
            self.leader = joined[0].id
        self.state = State.COMPLETING
        self._deadline = now + max(m.rebalance for m in self.members.values())
        for member in joined:
            reply, member.join = member.join, None
            member.deadline = now + member.session
            assert reply is not None
            reply(self._joined(member))

    def _elect_protocol(self) -> str:
        common = set.intersection(*({name for name, _ in m.protocols} for m in self.members.values()))
        votes = Counter(next(name for name, _ in m.protocols if name in common) for m in self.members.values())
        return votes.most_common(1)[0][0]

    def sync(self, request: Message, now: float, reply: Reply) -> None:
        """A SyncGroup request; the leader's brings everybody's assignment."""
        code = self.check(request, now)
        named = (request["protocol_type"], self.protocol_type), (request["protocol"], self.protocol)
        if code is Code.NONE and any(theirs is not None and theirs != ours for theirs, ours in named):
            code = Code.INCONSISTENT_GROUP_PROTOCOL
        if code is Code.NONE and self.state is State.PREPARING:
            code = Code.REBALANCE_IN_PROGRESS
        if code is not Code.NONE:
            return reply(_error(code))
        member = self.members[request["member"]]
        if self.state is State.STABLE:
            return reply(self._assigned(member))
        if member.sync is not None:
            _take_sync(member)(_error(Code.REBALANCE_IN_PROGRESS))
        member.sync, member.synced = reply, True
        if member.id == self.leader:
            assignments = {a["member"]: bytes(a["assignment"]) for a in request["assignments"]}
            self.state = State.STABLE
            for each in self.members.values():
                each.assignment = assignments.get(each.id, b"")
                if each.sync is not None:
                    each.deadline = now + each.session
                    _take_sync(each)(self._assigned(each))

    def _assigned(self, member: Member) -> Message:
        return {"error": Code.NONE, "protocol_type": self.protocol_type, "protocol": self.protocol, "assignment": member.assignment}

    # --- staying and going

    def check(self, request: Message, now: float) -> Code:
        """Whether a heartbeat, sync or commit comes from a current member; if so its session begins anew."""
        member, instance = self.members.get(request["member"]), request["instance"]
        if instance is not None and instance in self.static and self.static[instance] != request["member"]:
            return Code.FENCED_INSTANCE_ID
        if member is None:
            return Code.UNKNOWN_MEMBER_ID
        if request["generation"] != self.generation:
            return Code.ILLEGAL_GENERATION
        member.deadline = now + member.session
        return Code.NONE

    def heartbeat(self, request: Message, now: float) -> Code:
        """A Heartbeat request."""
        code = self.check(request, now)
        return Code.REBALANCE_IN_PROGRESS if code is Code.NONE and self.state is State.PREPARING else code

    def check_commit(self, request: Message, now: float) -> Code:
        """Whether an OffsetCommit is allowed: from a member, or to a group without members from outside (generation -1)."""
        if request["generation"] < 0 and not self.members:
            return Code.NONE
        code = self.check(request, now)
        return Code.REBALANCE_IN_PROGRESS if code is Code.NONE and self.state is State.COMPLETING else code

    def leave(self, member_id: str, instance: str | None, now: float) -> Code:
        """A member (or, by its instance id, a static one) leaves."""
        if instance is not None:
            current = self.static.get(instance)
            if current is None:
                return Code.UNKNOWN_MEMBER_ID
            if member_id and member_id != current:
                return Code.FENCED_INSTANCE_ID
            member_id = current
        if self.expected.pop(member_id, None) is not None:
            if self.state is State.PREPARING:
                self._prepare(now)
            return Code.NONE
        if member_id not in self.members:
            return Code.UNKNOWN_MEMBER_ID
        self._remove(self.members[member_id], now)
        return Code.NONE

    def _remove(self, member: Member, now: float) -> None:
        del self.members[member.id]
        if member.instance is not None:
            del self.static[member.instance]
        if member.join is not None:
            _refuse_join(member.join, Code.UNKNOWN_MEMBER_ID, member.id)
        if member.sync is not None:
            _take_sync(member)(_error(Code.UNKNOWN_MEMBER_ID))
        self._prepare(now)

    def tick(self, now: float) -> None:
        """Apply every timeout that has passed. Call often; a waiting member's own session does not run out."""
        late = [i for i, until in self.expected.items() if until <= now]
        for member_id in late:
            del self.expected[member_id]
        for member in [m for m in self.members.values() if m.join is None and m.sync is None and m.deadline <= now]:
            self._remove(member, now)
        if self.state is State.COMPLETING and self._deadline <= now:
            for member in [m for m in self.members.values() if not m.synced]:
                self._remove(member, now)
        if self.state is State.PREPARING:
            if self._deadline <= now:
                self._complete(now)
            elif late:
                self._prepare(now)


def _error(code: Code) -> Message:
    return {"error": code}


def _refuse_join(reply: Reply, code: Code, member_id: str) -> None:
    reply({"error": code, "generation": -1, "protocol": "", "member": member_id})


def _take_sync(member: Member) -> Reply:
    reply, member.sync = member.sync, None
    assert reply is not None
    return reply
