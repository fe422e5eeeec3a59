"""The state folder's layout and format version."""

import json
import os
import tempfile
from pathlib import Path

from stillhouse.schemas.errors import PermanentError

LAYOUT = ("broker", "lance", "students", "models", "spool", "logs", "run", "secrets", "report")
FORMAT = 1
VERSION_FILE = "version.json"


def check_format(state: Path) -> None:
    """Refuse a state folder that this version cannot read. One that does not exist yet is fine.

    Raises:
        PermanentError: written by a newer Stillhouse, or its version file is unreadable.
    """
    path = state / VERSION_FILE
    try:
        found = json.loads(path.read_text())["format"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = f'If the folder is ours, write {{"format": {FORMAT}}} into it; else choose another one with --state.'
        raise PermanentError(f"the state folder's version cannot be read: {error!r}", where=str(path), fix=fix) from error
    if not isinstance(found, int) or found > FORMAT:
        what = f"the state folder has format {found}, this version reads up to {FORMAT}"
        raise PermanentError(what, where=str(state), fix="Upgrade stillhouse, or choose another folder with --state.")


def claim_format(state: Path) -> None:
    """Make the state folder and write its version, once.

    Raises:
        PermanentError: as `check_format`.
    """
    check_format(state)
    path = state / VERSION_FILE
    if path.exists():
        return
    state.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=state, prefix=".version-")
    with os.fdopen(handle, "w") as file:
        json.dump({"format": FORMAT}, file)
    Path(name).replace(path)  # several processes may start at once: each one's file is whole
