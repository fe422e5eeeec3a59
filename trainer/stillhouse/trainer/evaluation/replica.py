"""How long a server of one's own has computed: read from its /metrics."""

import asyncio
import urllib.error
import urllib.request

BUSY = "stillhouse_student_busy_seconds_total"
_TIMEOUT_S = 10.0


def metrics_address(base_url: str) -> str:
    """The /metrics beside an OpenAI-compatible address."""
    return base_url.rstrip("/").removesuffix("/v1") + "/metrics"


async def busy_seconds(base_url: str) -> float | None:
    """Seconds that the server has computed since it started; None when it does not say."""
    return await asyncio.to_thread(read_busy_seconds, metrics_address(base_url))


def read_busy_seconds(address: str) -> float | None:
    """`busy_seconds` by the address of /metrics, for callers without an event loop."""
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:
            lines = answer.read().decode().splitlines()
    except (urllib.error.URLError, OSError, ValueError):
        return None  # a teacher has no such page: then there is no marginal cost to tell
    return next((float(line.split()[1]) for line in lines if line.startswith(BUSY + " ")), None)
