"""All consumer groups with their committed offsets: what the group requests ask of them."""

from stillhouse.broker.codec import Message
from stillhouse.broker.errors import Code, KafkaError
from stillhouse.broker.group import Group
from stillhouse.broker.member import Client, Reply, State
from stillhouse.broker.offsets import Committed, Offsets, Place

MIN_SESSION_MS, MAX_SESSION_MS = 6_000, 1_800_000  # Kafka's own bounds
MAX_METADATA = 4096


class Coordinator:
    """The groups of a broker. Membership is in memory only: after a restart members join again and go on from their offsets."""

    def __init__(self, offsets: Offsets) -> None:
        """No members yet; `offsets` has what was committed."""
        self.offsets = offsets
        self.groups: dict[str, Group] = {}

    def join(self, request: Message, client: Client, now: float, reply: Reply) -> None:
        """JoinGroup; `reply` is called when the group has a new generation, or at once with an error."""
        refused = None
        if not request["group"]:
            refused = Code.INVALID_GROUP_ID
        elif not MIN_SESSION_MS <= request["session_timeout"] <= MAX_SESSION_MS:
            refused = Code.INVALID_SESSION_TIMEOUT
        elif request["member"] and request["group"] not in self.groups:
            refused = Code.UNKNOWN_MEMBER_ID
        if refused is not None:
            reply({"error": refused, "generation": -1, "protocol": "", "member": request["member"]})
        else:
            self.groups.setdefault(request["group"], Group()).join(request, client, now, reply)

    def sync(self, request: Message, now: float, reply: Reply) -> None:
        """SyncGroup; `reply` is called when the leader has brought the assignment, or at once with an error."""
        if (group := self.groups.get(request["group"])) is None:
            reply({"error": Code.UNKNOWN_MEMBER_ID})
        else:
            group.sync(request, now, reply)

    def heartbeat(self, request: Message, now: float) -> Code:
        """Heartbeat."""
        group = self.groups.get(request["group"])
        return Code.UNKNOWN_MEMBER_ID if group is None else group.heartbeat(request, now)

    def leave(self, name: str, member: str, instance: str | None, now: float) -> Code:
        """One member of a LeaveGroup."""
        group = self.groups.get(name)
        return Code.UNKNOWN_MEMBER_ID if group is None else group.leave(member, instance, now)

    def commit(self, request: Message, known: set[Place], now: float) -> list[Message]:
        """OffsetCommit: the answer's topics. `known` are the partitions that exist."""
        group = self.groups.get(request["group"])
        if group is not None:
            refused = group.check_commit(request, now)
        else:
            refused = Code.NONE if request["generation"] < 0 else Code.UNKNOWN_MEMBER_ID
        accepted: dict[Place, Committed] = {}
        codes: dict[Place, Code] = {}
        for topic in request["topics"]:
            for p in topic["partitions"]:
                place = topic["name"], p["index"]
                codes[place] = refused or _check_place(place, p["metadata"], known)
                if codes[place] is Code.NONE:
                    accepted[place] = Committed(p["offset"], p["leader_epoch"], p["metadata"])
        try:
            self.offsets.commit(request["group"], accepted)
        except OSError:
            codes |= dict.fromkeys(accepted, Code.COORDINATOR_NOT_AVAILABLE)
        return [
            {"name": t["name"], "partitions": [{"index": p["index"], "error": codes[t["name"], p["index"]]} for p in t["partitions"]]}
            for t in request["topics"]
        ]

    def committed(self, name: str, topics: list[Message] | None) -> list[Message]:
        """OffsetFetch: the answer's topics; None asks for all. Where nothing is committed the offset is -1."""
        places = self.offsets.groups.get(name, {})
        if topics is None:
            wanted: dict[str, list[int]] = {}
            for topic, index in sorted(places):
                wanted.setdefault(topic, []).append(index)
        else:
            wanted = {topic["name"]: topic["partitions"] for topic in topics}
        nothing = Committed(-1, -1, "")
        answer = []
        for topic_name, indexes in wanted.items():
            found = [(index, places.get((topic_name, index), nothing)) for index in indexes]
            partitions = [{"index": i, "offset": c.offset, "leader_epoch": c.leader_epoch, "metadata": c.metadata or ""} for i, c in found]
            answer.append({"name": topic_name, "partitions": partitions})
        return answer

    def listing(self) -> list[Message]:
        """ListGroups: every group that has members or offsets."""
        names = sorted(self.groups.keys() | self.offsets.groups.keys())
        groups = [(name, self.groups.get(name) or Group()) for name in names]
        return [{"group": n, "protocol_type": g.protocol_type, "state": g.state.value, "type": "classic"} for n, g in groups]

    def describe(self, name: str) -> Message:
        """DescribeGroups for one group; one that does not exist is Dead."""
        group = self.groups.get(name)
        if group is None:
            return {"group": name, "state": State.EMPTY.value if name in self.offsets.groups else "Dead"}
        stable = group.state is State.STABLE
        members = [
            {
                "member": m.id, "instance": m.instance, "client": m.client.id, "host": m.client.host,
                "metadata": m.metadata(group.protocol) if stable else b"", "assignment": m.assignment if stable else b"",
            }
            for m in group.members.values()
        ]  # fmt: skip
        protocol = group.protocol if stable else ""
        return {"group": name, "state": group.state.value, "protocol_type": group.protocol_type, "protocol": protocol, "members": members}

    def delete(self, name: str) -> None:
        """DeleteGroups for one group. Raises KafkaError NON_EMPTY_GROUP, GROUP_ID_NOT_FOUND, COORDINATOR_NOT_AVAILABLE."""
        group = self.groups.get(name)
        if group is None and name not in self.offsets.groups:
            raise KafkaError(Code.GROUP_ID_NOT_FOUND)
        if group is not None and group.members:
            raise KafkaError(Code.NON_EMPTY_GROUP)
        self._drop(name, None)
        self.groups.pop(name, None)

    def delete_offset(self, name: str, place: Place) -> None:
        """OffsetDelete for one partition. Raises KafkaError, among them GROUP_SUBSCRIBED_TO_TOPIC while the group has members."""
        group = self.groups.get(name)
        if group is not None and group.members:
            raise KafkaError(Code.GROUP_SUBSCRIBED_TO_TOPIC)
        self._drop(name, [place])

    def _drop(self, name: str, places: list[Place] | None) -> None:
        try:
            self.offsets.drop(name, places)
        except OSError as error:
            raise KafkaError(Code.COORDINATOR_NOT_AVAILABLE) from error

    def tick(self, now: float) -> None:
        """Apply timeouts; forget groups that have neither members nor offsets."""
        for name, group in list(self.groups.items()):
            group.tick(now)
            if group.state is State.EMPTY and not group.expected and name not in self.offsets.groups:
                del self.groups[name]


def _check_place(place: Place, metadata: str | None, known: set[Place]) -> Code:
    if place not in known:
        return Code.UNKNOWN_TOPIC_OR_PARTITION
    return Code.OFFSET_METADATA_TOO_LARGE if len(metadata or "") > MAX_METADATA else Code.NONE
