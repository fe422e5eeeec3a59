"""Group commit: writes that come together share an fsync, and a failed one is never acknowledged, nor anything after it."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stillhouse.broker import commit as module
from stillhouse.broker.commit import GroupCommit, refuse_broken
from stillhouse.broker.errors import Code, KafkaError


class File:
    """Something appended to, on a real descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.broken, self.descriptor, self.written, self.durable = False, descriptor, 0, 0

    def begin_sync(self) -> tuple[int, Callable[[], None]]:
        covered = self.written

        def done() -> None:
            self.durable = max(self.durable, covered)

        return os.dup(self.descriptor), done


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield File(descriptor)
    os.close(descriptor)


@pytest.fixture
def pipe() -> Iterator[File]:
    """What can't be synced: the kernel refuses fsync on a pipe."""
    reading, writing = os.pipe()
    yield File(writing)
    os.close(reading)
    os.close(writing)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files each round of fsync had."""
    counted: list[int] = []
    real = module._sync_all

    def counting(descriptors: list[int]) -> list[OSError | None]:
        counted.append(len(descriptors))
        return real(descriptors)

    monkeypatch.setattr(module, "_sync_all", counting)
    return counted


async def test_writes_that_come_together_share_one_fsync(file: File, rounds: list[int]) -> None:
    commit = GroupCommit(fsync=True)

    async def write() -> None:
        file.written += 1
        mine = file.written
        await commit.wait([file])
        assert file.durable >= mine

    await asyncio.gather(*[write() for _ in range(50)])
    assert rounds == [1]
    await asyncio.gather(write(), write())
    assert rounds == [1, 1]
    await commit.drain()


async def test_a_failed_fsync_breaks_its_file_and_no_other(file: File, pipe: File, rounds: list[int]) -> None:
    commit = GroupCommit(fsync=True)
    file.written = pipe.written = 1
    await asyncio.gather(commit.wait([file]), commit.wait([pipe]))
    assert (file.broken, file.durable, pipe.broken, pipe.durable) == (False, 1, True, 0)
    refuse_broken(file)
    with pytest.raises(KafkaError) as caught:
        refuse_broken(pipe)
    assert caught.value.code is Code.KAFKA_STORAGE_ERROR
    await commit.wait([pipe])
    assert rounds == [2], "a broken file is not tried again"


async def test_a_waiter_that_leaves_takes_nobody_with_it(file: File) -> None:
    commit = GroupCommit(fsync=True)
    file.written = 1
    first, second = asyncio.create_task(commit.wait([file])), asyncio.create_task(commit.wait([file]))
    await asyncio.wait({first}, timeout=0)
    first.cancel()
    await second
    assert file.durable == 1 and first.cancelled()


async def test_without_fsync_it_counts_at_once(file: File, rounds: list[int]) -> None:
    commit = GroupCommit(fsync=False)
    file.written = 3
    await commit.wait([file])
    assert (file.durable, rounds) == (3, [])
