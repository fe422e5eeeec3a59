"""The requests that this broker answers: key, versions, schemas. Exactly this is what ApiVersions reports.

Versions stop where Kafka began to name topics by id (Fetch 13, OffsetCommit 10, ...) and start at what clients of 2021 and later send.
"""

from dataclasses import dataclass, field

from stillhouse.broker.codec import Codec, parse

_OFFSET_TOPICS = "topics[name:str partitions"
_ALTERED = "throttle:i32 responses[error:i16 message:str? type:i8 name:str]"


@dataclass(frozen=True)
class Api:
    """One request type: versions `first`..`last`, flexible from version `flexible` on."""

    key: int
    name: str
    first: int
    last: int
    flexible: int
    request: str
    response: str
    _codecs: dict[tuple[str, int], Codec] = field(default_factory=dict, compare=False)

    def codec(self, schema: str, version: int) -> Codec:
        """The compiled codec of `self.request` or `self.response` for `version` (compiled once)."""
        key = (schema, version)
        if key not in self._codecs:
            self._codecs[key] = Codec(parse(schema), version, version >= self.flexible)
        return self._codecs[key]


NEVER = 1000  # no flexible version within the range

_ALL = [
    Api(
        0, "produce", 3, 9, 9,
        "transactional_id:str? acks:i16 timeout:i32 topics[name:str partitions[index:i32 records:bytes?]]",
        """topics[name:str partitions[index:i32 error:i16 offset:i64 append_time:i64 start:i64@5+
           record_errors[index:i32 message:str?]@8+ message:str?@8+]] throttle:i32""",
    ),
    Api(
        1, "fetch", 4, 12, 12,
        """replica:i32 max_wait:i32 min_bytes:i32 max_bytes:i32 isolation:i8 session:i32@7+ session_epoch:i32@7+
           topics[name:str partitions[index:i32 leader_epoch:i32@9+ offset:i64 fetched_epoch:i32@12+ start:i64@5+ max_bytes:i32]]
           forgotten[name:str partitions:[i32]]@7+ rack:str@11+""",
        """throttle:i32 error:i16@7+ session:i32@7+
           topics[name:str partitions[index:i32 error:i16 high_watermark:i64 last_stable:i64 start:i64@5+
           aborted[producer_id:i64 first_offset:i64]? preferred_replica:i32@11+ records:bytes?]]""",
    ),
    Api(
        2, "list_offsets", 1, 6, 6,
        "replica:i32 isolation:i8@2+ topics[name:str partitions[index:i32 leader_epoch:i32@4+ timestamp:i64]]",
        "throttle:i32@2+ topics[name:str partitions[index:i32 error:i16 timestamp:i64 offset:i64 leader_epoch:i32@4+]]",
    ),
    Api(
        3, "metadata", 4, 9, 9,
        "topics[name:str]? auto_create:bool cluster_operations:bool@8+ topic_operations:bool@8+",
        """throttle:i32 brokers[id:i32 host:str port:i32 rack:str?] cluster:str? controller:i32
           topics[error:i16 name:str internal:bool partitions[error:i16 index:i32 leader:i32 leader_epoch:i32@7+
           replicas:[i32] isr:[i32] offline:[i32]@5+] operations:i32@8+] operations:i32@8+""",
    ),
    Api(
        8, "offset_commit", 2, 8, 8,
        f"""group:str generation:i32 member:str instance:str?@7+ retention:i64@2-4
           {_OFFSET_TOPICS}[index:i32 offset:i64 leader_epoch:i32@6+ metadata:str?]]""",
        f"throttle:i32@3+ {_OFFSET_TOPICS}[index:i32 error:i16]]",
    ),
    Api(
        9, "offset_fetch", 1, 7, 6,
        f"group:str {_OFFSET_TOPICS}:[i32]]? require_stable:bool@7+",
        f"throttle:i32@3+ {_OFFSET_TOPICS}[index:i32 offset:i64 leader_epoch:i32@5+ metadata:str? error:i16]] error:i16@2+",
    ),
    Api(
        10, "find_coordinator", 0, 3, 3,
        "key:str type:i8@1+",
        "throttle:i32@1+ error:i16 message:str?@1+ node:i32 host:str port:i32",
    ),
    Api(
        11, "join_group", 2, 9, 6,
        """group:str session_timeout:i32 rebalance_timeout:i32 member:str instance:str?@5+ protocol_type:str
           protocols[name:str metadata:bytes] reason:str?@8+""",
        """throttle:i32 error:i16 generation:i32 protocol_type:str?@7+ protocol:str? leader:str skip_assignment:bool@9+ member:str
           members[member:str instance:str?@5+ metadata:bytes]""",
    ),
    Api(
        12, "heartbeat", 0, 4, 4,
        "group:str generation:i32 member:str instance:str?@3+",
        "throttle:i32@1+ error:i16",
    ),
    Api(
        13, "leave_group", 0, 5, 4,
        "group:str member:str@0-2 members[member:str instance:str? reason:str?@5+]@3+",
        "throttle:i32@1+ error:i16 members[member:str instance:str? error:i16]@3+",
    ),
    Api(
        14, "sync_group", 0, 5, 4,
        """group:str generation:i32 member:str instance:str?@3+ protocol_type:str?@5+ protocol:str?@5+
           assignments[member:str assignment:bytes]""",
        "throttle:i32@1+ error:i16 protocol_type:str?@5+ protocol:str?@5+ assignment:bytes",
    ),
    Api(
        15, "describe_groups", 0, 5, 5,
        "groups:[str] operations:bool@3+",
        """throttle:i32@1+ groups[error:i16 group:str state:str protocol_type:str protocol:str
           members[member:str instance:str?@4+ client:str host:str metadata:bytes assignment:bytes] operations:i32@3+]""",
    ),
    Api(
        16, "list_groups", 0, 5, 3,
        "states:[str]@4+ types:[str]@5+",
        "throttle:i32@1+ error:i16 groups[group:str protocol_type:str state:str@4+ type:str@5+]",
    ),
    Api(
        18, "api_versions", 0, 4, 3,
        "software:str@3+ software_version:str@3+",
        "error:i16 apis[key:i16 first:i16 last:i16] throttle:i32@1+",
    ),
    Api(
        19, "create_topics", 2, 4, NEVER,
        """topics[name:str partitions:i32 replication:i16 assignments[index:i32 brokers:[i32]] configs[name:str value:str?]]
           timeout:i32 validate_only:bool""",
        "throttle:i32 topics[name:str error:i16 message:str?]",
    ),
    Api(
        20, "delete_topics", 1, 5, 4,
        "names:[str] timeout:i32",
        "throttle:i32 topics[name:str error:i16 message:str?@5+]",
    ),
    Api(
        22, "init_producer_id", 0, 4, 2,
        "transactional_id:str? timeout:i32 producer_id:i64@3+ epoch:i16@3+",
        "throttle:i32 error:i16 producer_id:i64 epoch:i16",
    ),
    Api(
        32, "describe_configs", 1, 4, 4,
        "resources[type:i8 name:str keys:[str]?] synonyms:bool documentation:bool@3+",
        """throttle:i32 results[error:i16 message:str? type:i8 name:str configs[name:str value:str? read_only:bool source:i8
           sensitive:bool synonyms[name:str value:str? source:i8] type:i8@3+ documentation:str?@3+]]""",
    ),
    Api(
        33, "alter_configs", 0, 2, 2,
        "resources[type:i8 name:str configs[name:str value:str?]] validate_only:bool",
        _ALTERED,
    ),
    Api(42, "delete_groups", 0, 2, 2, "groups:[str]", "throttle:i32 results[group:str error:i16]"),
    Api(
        44, "incremental_alter_configs", 0, 1, 1,
        "resources[type:i8 name:str configs[name:str operation:i8 value:str?]] validate_only:bool",
        _ALTERED,
    ),
    Api(
        47, "offset_delete", 0, 0, NEVER,
        f"group:str {_OFFSET_TOPICS}[index:i32]]",
        f"error:i16 throttle:i32 {_OFFSET_TOPICS}[index:i32 error:i16]]",
    ),
]  # fmt: skip

APIS = {api.key: api for api in _ALL}
