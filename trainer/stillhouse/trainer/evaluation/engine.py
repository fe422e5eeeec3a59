"""A student server as a child process: started by command, never imported, ended by its pid."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from stillhouse.schemas.errors import PermanentError, RetryableError, UnreachableError

COMMAND = (sys.executable, "-m", "stillhouse.serving.student")
_STOP_S = 40.0


class StudentServer:
    """A `stillhouse-student` that somebody runs.

    Attributes:
        url: its address, without `/v1`.
        base: the name that the base model is served under.

    Raises:
        UnreachableError: it does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.base = str(json.loads(_request(f"{url}/v1/models"))["data"][0]["id"])

    @property
    def base_url(self) -> str:
        """What an OpenAI client is given."""
        return f"{self.url}/v1"

    def context(self, name: str) -> int:
        """Tokens that a conversation and its reply may have with a model that is loaded.

        Raises:
            PermanentError: none of that name is loaded.
            UnreachableError: the server does not answer.
        """
        for model in json.loads(_request(f"{self.url}/v1/models"))["data"]:
            if model["id"] == name:
                return int(model["max_model_len"])
        raise PermanentError(f"{name} is not loaded", where=self.url, fix="Load it first.")

    def load(self, name: str, path: Path) -> None:
        """Load a student's adapter under a name.

        Raises:
            PermanentError: the server refuses it, with its reason.
            UnreachableError: the server does not answer.
        """
        _request(f"{self.url}/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path.resolve())})

    def unload(self, name: str) -> None:
        """Unload an adapter.

        Raises:
            PermanentError: none of that name is loaded.
            UnreachableError: the server does not answer.
        """
        _request(f"{self.url}/v1/unload_lora_adapter", {"lora_name": name})


class StudentEngine(StudentServer):
    """A `stillhouse-student` that this process runs.

    Attributes:
        pid: its process.
    """

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self._process = process
        self.pid = process.pid
        super().__init__(url)

    def stop(self) -> None:
        """Ask it to end, and make it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


@contextlib.contextmanager
def student_engine(
    model: Path, *, students: Path | None = None, log: Path, threads: int = 2, options: Sequence[str] = (), ready_s: float = 180.0
) -> Iterator[StudentEngine]:
    """Start a student server and stop it at the end.

    Args:
        model: the base model's folder.
        students: the folder that adapters are loaded from; anywhere when not given.
        log: the file that its log is appended to.
        threads: cores it may use.
        options: more of its command line.
        ready_s: how long it may take to begin.

    Raises:
        PermanentError: it ended at once; the message has the end of its log.
        RetryableError: it was not ready in time.
    """
    command = [*COMMAND, "--model", str(model), "--threads", str(threads), *options]
    command += ["--students", str(students)] if students else []
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ)
    try:
        engine = StudentEngine(process, _ready(process, log, ready_s))
    except BaseException:
        process.kill()
        process.communicate()
        raise
    try:
        yield engine
    finally:
        engine.stop()


def _ready(process: "subprocess.Popen[str]", log: Path, ready_s: float) -> str:
    assert process.stdout is not None
    line = _line_within(process.stdout, ready_s)
    if line is None:
        raise RetryableError(f"the student server was not ready within {ready_s:g} s", where=str(log), fix="See its log.")
    if not line:
        code, said = process.wait(), log.read_text(errors="replace")[-600:].strip()
        raise PermanentError(f"the student server ended with exit code {code}: {said}", where=str(log), fix="See its log.")
    return str(json.loads(line)["url"])


def _line_within(stream: IO[str], seconds: float) -> str | None:
    deadline = time.monotonic() + seconds
    ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
    return stream.readline() if ready else None


def _request(url: str, body: dict[str, str] | None = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        raise PermanentError(
            f"the student server answered {error.code}: {error.read().decode(errors='replace')[:400]}", where=url
        ) from error
    except OSError as error:
        raise UnreachableError(f"the student server does not answer: {error}", where=url, fix="See its log.") from error
