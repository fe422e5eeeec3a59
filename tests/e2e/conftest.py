"""What several end-to-end tests look at, made once."""

from pathlib import Path

import pytest

from tests.support.cli import Ran, stillhouse


@pytest.fixture(scope="session")
def fast_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """The state folder of a fast demo with seed 1 that ended well, and what it printed."""
    state = tmp_path_factory.mktemp("demo")
    ran = stillhouse("demo", "--fast", "--json", state=state, timeout=580)
    assert ran.code == 0, ran.err
    return state, ran
