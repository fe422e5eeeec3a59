"""The command line as a user types it, in a process of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("STILLHOUSE_") or name.startswith("STILLHOUSE_MODELS")}


@dataclass(frozen=True)
class Ran:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


def stillhouse(*arguments: str | Path, state: Path | None = None, cwd: Path | None = None, timeout: float = 240) -> Ran:
    """Run `stillhouse …`, with `--state` where one is given."""
    command = [sys.executable, "-m", "stillhouse.console", *map(str, arguments), *(["--state", str(state)] if state else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd, env=CLEAN, stdin=subprocess.DEVNULL)
    return Ran(done.returncode, done.stdout, done.stderr)
