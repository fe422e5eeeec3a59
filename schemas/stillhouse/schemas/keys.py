"""Keys and partitions: part of the wire contract, the same in every client."""

from urllib.parse import quote, unquote

from stillhouse.schemas.errors import PermanentError


def trajectory_key(tenant: str, trajectory_id: str) -> str:
    """`tenant/trajectory_id`, each percent-encoded, so that an id chosen by a client cannot reach another tenant's row."""
    return f"{quote(tenant, safe='')}/{quote(trajectory_id, safe='')}"


def split_key(key: str) -> tuple[str, str]:
    """The inverse of `trajectory_key`.

    Raises:
        PermanentError: the key is not of that form.
    """
    tenant, slash, trajectory_id = key.partition("/")
    if not slash or "/" in trajectory_id:
        raise PermanentError("not a trajectory key", where=key, fix="A key is tenant/trajectory_id, both percent-encoded.")
    return unquote(tenant), unquote(trajectory_id)


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit MurmurHash2 (seed 0x9747b28c), unsigned.

    Source: A. Appleby's MurmurHash2, with the seed that Kafka's Java client uses.
    """
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    length = len(data)
    h = (0x9747B28C ^ length) & mask
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little")
        k = k * m & mask
        k ^= k >> 24
        h = (h * m & mask) ^ (k * m & mask)
    tail = data[whole:]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def partition_of(key: str, partitions: int) -> int:
    """The partition a key belongs to: murmur2, as aiokafka's default and librdkafka's `murmur2_random` place it."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions
