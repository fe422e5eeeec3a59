"""`stillhouse up` where it cannot come up."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillhouse.console import cli
from stillhouse.console.stack import record as records
from stillhouse.console.stack import stack
from stillhouse.console.stack.local import parts_of
from stillhouse.console.stack.parts import Part, StackSettings
from stillhouse.schemas.errors import ExitCode
from tests.support.parts import listener


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another program has."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_a_taken_port_of_the_status_page_is_named_and_what_was_started_is_stopped(
    tmp_path: Path, taken: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def page_alone(state: Path, settings: StackSettings) -> tuple[Part, ...]:
        return (listener("ingest"), *(part for part in parts_of(state, settings) if part.name == "console"))

    monkeypatch.setattr(stack, "parts_of", page_alone)
    ports = StackSettings(broker_port=0, gateway_port=0, admin_port=0, page_port=taken, metrics_port=0)
    monkeypatch.setattr("stillhouse.console.commands.up.ANY_PORT", ports)
    assert cli.run(["up", "--any-port", "--state", str(tmp_path)]) == ExitCode.FAILED
    said = " ".join(capfd.readouterr().err.split())
    assert "console did not start" in said and "cannot listen" in said and f"127.0.0.1:{taken}" in said
    assert "Another program has the port" in said and "stillhouse up --any-port" in said and "Traceback" not in said
    assert "ingest stopped" in said and records.read(tmp_path) is None
