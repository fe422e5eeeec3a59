"""Not more than so many workers flush at once, on one store, whatever process they are in."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from stillhouse.sdk.store import Store
from stillhouse.streams.ingest.flush import Waiter
from stillhouse.streams.ingest.slots import HELD_S, Slots
from stillhouse.streams.instruments import Instruments
from stillhouse.streams.lease import Lease


def _slots(store: Store, number: int, count: int = 2, now: Callable[[], int] = lambda: 10**15, workers: int = 9) -> Slots:
    return Slots(store, f"worker-{number}", number, count, 0.01, now, lambda: workers)


def test_a_slot_is_held_by_one_and_free_again_when_released_or_run_out(store: Store) -> None:
    now = 10**15
    slots = [_slots(store, n, now=lambda: now) for n in range(3)]
    held = [one.take() for one in slots]
    assert [lease is not None for lease in held] == [True, True, False]
    assert held[0] is not None
    held[0].release()
    taken = slots[2].take()
    assert taken is not None
    assert slots[0].take() is None
    now += int(HELD_S * 1e6)  # all three were killed
    assert slots[0].take() is not None
    taken.release()  # it is not theirs any more, where somebody has taken it
    assert slots[1].take() is not None
    assert slots[2].take() is None


async def test_several_stores_on_one_address_never_flush_more_than_that_at_once(tmp_path: Path) -> None:
    stores = [Store.open(tmp_path / "lance") for _ in range(5)]
    stores[0].table("leases")
    waiter = Waiter(0.01, lambda: None, lambda: None, Instruments("stillhouse_ingest_"))
    inside, most, done, met = set[int](), 0, 0, asyncio.Event()

    async def flush(number: int) -> None:
        nonlocal most, done
        slots = _slots(stores[number], number)
        for _ in range(2):
            async with slots.one(waiter.until_done):
                inside.add(number)
                most = max(most, len(inside))
                if len(inside) == 2:
                    met.set()
                await met.wait()  # the first waits for a second: two may flush, however busy the machine is
                await asyncio.to_thread(stores[number].rows, "leases")  # what a flush does: it waits for the store
                inside.remove(number)
            done += 1

    await asyncio.wait_for(asyncio.gather(*(flush(n) for n in range(5))), 60)
    assert (most, done) == (2, 10)


async def test_where_there_are_enough_for_all_none_is_asked_for(store: Store) -> None:
    async def never(attempt: Callable[[], Awaitable[Lease | None]]) -> Lease | None:
        raise AssertionError("asked for a slot")

    async with _slots(store, 0, count=8, workers=8).one(never):
        assert store.rows("leases") == []
