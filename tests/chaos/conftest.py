"""The delivery fixtures, for the chaos suite."""

import socket
from collections.abc import Callable

import pytest

from tests.streams.conftest import bootstrap, embedded, make_topics, store, topics

__all__ = ["bootstrap", "embedded", "make_topics", "store", "topics"]


@pytest.fixture
def unused() -> Callable[[], str]:
    """Gives an address that nobody listens on."""

    def address() -> str:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return f"127.0.0.1:{server.getsockname()[1]}"

    return address
