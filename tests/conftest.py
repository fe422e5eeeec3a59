"""Fixtures that every test folder may use."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import browser as browser

ROOT = Path(__file__).resolve().parent.parent


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable, ROOT.parent / "shared" / default))


@pytest.fixture(scope="session")
def kafka_folder() -> Path:
    """The folder with run-kafka and kafka-tool, or a skip that says what is missing."""
    folder = _folder("STILLHOUSE_TEST_KAFKA", "kafka")
    if not (folder / "run-kafka").exists():
        pytest.skip(f"no Apache Kafka at {folder} (set STILLHOUSE_TEST_KAFKA)")
    if not (shutil.which("java") or os.environ.get("JAVA_HOME")):
        pytest.skip("no Java 17 or newer on PATH")
    return folder


@pytest.fixture(scope="session")
def real_kafka(kafka_folder: Path) -> Iterator[str]:
    """bootstrap_servers of one real Kafka node, started once per test session (and process of it)."""
    # A start draws an id, and one in 64 begins with a dash, which Kafka's own tool takes for an option: so there are three tries.
    codes: list[int] = []
    while len(codes) < 3:
        with subprocess.Popen([kafka_folder / "run-kafka"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            if line:
                yield json.loads(line)["bootstrap_servers"]
                process.send_signal(signal.SIGTERM)
                process.wait(30)
                return
            codes.append(process.wait())
    pytest.fail(f"Apache Kafka did not start (exit codes {codes})")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with recorded trajectories, or a skip that says what is missing."""
    folder = _folder("STILLHOUSE_TEST_DATA", "data")
    if not folder.is_dir():
        pytest.skip(f"no recorded trajectories at {folder} (set STILLHOUSE_TEST_DATA)")
    return folder
