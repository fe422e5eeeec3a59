"""A family of students, and the engines that serve it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import VLLM, Family, Running, make_family, student_server, vllm_server

ENGINES = ("stillhouse-student", "vllm")


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session", params=ENGINES)
def running(request: pytest.FixtureRequest, family: Family, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Each engine once for all tests. What a test spoils it leaves unloaded."""
    log: Path = tmp_path_factory.mktemp("engine") / "log"
    if request.param == "stillhouse-student":
        with student_server(family.base, log) as found:
            yield found
        return
    python = os.environ.get(VLLM)
    if not python:
        pytest.skip(f"{VLLM} names no python with vLLM: make vllm-test")
    with vllm_server(python, family.base, log) as found:
        yield found
