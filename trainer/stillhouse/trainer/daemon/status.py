"""`run/trainer.json`: what the daemon last said of itself. Read by `stillhouse status`."""

from pathlib import Path

import msgspec

from stillhouse.trainer.daemon.move import Failure

FILE = "trainer.json"


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The file. Times are microseconds since the epoch.

    Attributes:
        pid: of the daemon.
        at: when this was written.
        waits: why it waits; empty while it runs a job.
        runs: what its job is at; empty while it waits.
        why: why the job was started.
        failure: of the last job.
        tried: digest of the settings that the newest rejected window ran under.
    """

    pid: int
    at: int
    waits: str = ""
    runs: str = ""
    why: str = ""
    failure: Failure | None = None
    tried: str = ""


def read_status(run: Path) -> Status | None:
    """What the daemon of a state folder last said; None when there has been none. `run` is its folder of that name."""
    try:
        return msgspec.json.decode((run / FILE).read_bytes(), type=Status)
    except (FileNotFoundError, msgspec.DecodeError):  # none, or of a version that wrote something else: it is written anew
        return None
