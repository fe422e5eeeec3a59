"""Waiting on conditions, with a deadline."""

import asyncio
import threading
import time
from collections.abc import Callable

PAUSE_S = 0.05


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Return when the condition holds; fail when it does not in time."""
    deadline, never = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        never.wait(PAUSE_S)


async def until_async(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """`until` inside an event loop; the condition may block briefly."""
    deadline, never = time.monotonic() + seconds, asyncio.Event()
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.wait({asyncio.ensure_future(never.wait())}, timeout=PAUSE_S)
