"""A process of ours under test: started, waited for until it is ready, ended."""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self


class Child:
    """A process that prints one line of JSON when it is ready, with a log of its own in the state folder.

    Args:
        name: of the log.
        command: its command line.
        state: the state folder; made here.
        environment: whole.
    """

    def __init__(self, name: str, command: Sequence[str], state: Path, environment: Mapping[str, str]) -> None:
        self.log = state / f"{name}-{time.monotonic_ns()}.log"
        state.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)

    def ready(self) -> dict[str, Any]:
        """What it prints when it reads; fails when it ends before."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()[-3000:]
        found: dict[str, Any] = json.loads(line)
        return found

    def wait(self, seconds: float = 60) -> int:
        """Its exit code."""
        code = self.process.wait(seconds)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.terminate()
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
