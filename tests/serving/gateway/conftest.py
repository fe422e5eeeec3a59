"""Fixtures of the gateway's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.serving.gateway.world import Desk, FakeEngine, Upstream, running


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream().running() as found:
        yield found


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def desk(tmp_path: Path, upstream: Upstream, engine: FakeEngine) -> AsyncIterator[Desk]:
    async with running(tmp_path, upstream, engine) as found:
        yield found
