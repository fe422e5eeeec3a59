"""The bounded folder of events that can never be sent: redacted, as JSON, one file each, the oldest deleted first."""

from pathlib import Path

import msgspec

from stillhouse.schemas.events import AgentEvent
from stillhouse.sdk.stats import Refusal


class RejectedFolder:
    """`<spool>/rejected/`, shared by the processes of one spool.

    Args:
        path: the folder.
        max_bytes: what it may hold.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path, self._max_bytes = path, max_bytes

    def add(self, event: AgentEvent, reason: Refusal) -> None:
        """Keep a redacted event for a person to look at.

        Raises:
            OSError: it cannot be written.
        """
        data = msgspec.json.encode({"reason": reason, "event": event})
        if len(data) > self._max_bytes:
            return
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make_room(len(data))
        # event_id may be an importer's own text: hex keeps it a file name.
        name = (
            event.event_id if event.event_id.replace("-", "").isalnum() and len(event.event_id) < 64 else event.event_id.encode().hex()[:64]
        )
        (self._path / f"{name}.json").write_bytes(data)

    def _make_room(self, size: int) -> None:
        files = sorted(((s.st_mtime_ns, s.st_size, f) for f in self._path.glob("*.json") for s in (f.stat(),)), key=lambda x: x[:2])
        held = sum(file_size for _, file_size, _ in files)
        for _, file_size, file in files:
            if held + size <= self._max_bytes:
                return
            file.unlink(missing_ok=True)
            held -= file_size
