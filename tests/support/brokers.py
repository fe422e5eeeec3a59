"""The embedded broker as a process of its own, for any test that needs one."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

STOP_SECONDS = 20


@dataclass
class RunningBroker:
    """A started broker. After `kill` or `stop`, `restart` starts it again on the same folder and port."""

    directory: Path
    fsync: bool
    arguments: tuple[str, ...]
    process: "subprocess.Popen[str]"
    bootstrap: str

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        return int(self.bootstrap.rpartition(":")[2])

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self._reap()

    def stop(self) -> int:
        """SIGTERM; returns the exit code. Does nothing to one that is gone."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._reap()

    def _reap(self) -> int:
        code = self.process.wait(STOP_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def restart(self) -> None:
        """Start again after `kill` or `stop`."""
        self.process, self.bootstrap = _launch(self.directory, self.fsync, self.port, self.arguments)


def start_embedded(directory: Path, *, fsync: bool = False, port: int = 0, arguments: tuple[str, ...] = ()) -> RunningBroker:
    """Start the embedded broker on `directory` and wait until it is ready.

    `arguments` are further command-line arguments. Its log goes to `directory`.log beside the folder.
    Raises RuntimeError with the log's end if it does not start.
    """
    process, bootstrap = _launch(directory, fsync, port, arguments)
    return RunningBroker(directory, fsync, arguments, process, bootstrap)


def _launch(directory: Path, fsync: bool, port: int, arguments: tuple[str, ...]) -> "tuple[subprocess.Popen[str], str]":
    command = [sys.executable, "-m", "stillhouse.broker", "--dir", str(directory), "--port", str(port), *arguments]
    command += ["--fsync", "on" if fsync else "off"]
    log_path = directory.with_name(directory.name + ".log")
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.stdout.close()
        raise RuntimeError(f"the embedded broker did not start (exit code {process.wait()}): {log_path.read_text()[-2000:]}")
    return process, json.loads(line)["bootstrap_servers"]
