"""The gateway's memory: bounded however short its processes live, and batched without anybody noticing."""

import sqlite3
from pathlib import Path
from typing import cast

import pytest

from stillhouse.serving.gateway.memory import Memory, Run, Spent


def test_what_is_too_old_goes_though_no_process_writes_enough_to_sweep(tmp_path: Path) -> None:
    for process in range(10):
        memory = Memory(tmp_path, rows=20)
        for n in range(20):
            memory.remember_chain(f"{process}/{n}".encode(), "run")
        memory.close()
    memory = Memory(tmp_path, rows=20)
    assert memory.trajectory_of(b"9/19") == "run" and memory.trajectory_of(b"9/0") == "run"
    assert memory.trajectory_of(b"8/0") is None and memory.trajectory_of(b"0/0") is None
    memory.close()


async def test_a_run_spends_though_an_earlier_one_spent_in_the_same_commit(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    for key in ("a", "b"):
        memory.add_run(_run(key))
        memory.spend(key, [_spent(7)])
    await memory.committed()
    memory.close()
    memory = Memory(tmp_path)
    assert [run.spent for key in ("a", "b") if (run := memory.run(key))] == [7, 7]
    assert [(line["requests"], line["cost_micro_usd"]) for line in memory.ledger()] == [(2, 14)]
    memory.close()


def test_what_is_written_is_read_before_it_is_committed(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.remember_chain(b"1", "run")
    memory.add_event(5, b"{}")
    assert memory.trajectory_of(b"1") == "run" and memory.events(memory.last_event(), 9) == [(1, b"{}")]
    memory.close()


async def test_a_write_that_fails_is_told_to_those_who_wait_and_not_to_readers(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.add_outcome("a", "user", None, cast(str, None))  # not null
    memory.add_event(5, b"{}")
    assert memory.run("a") is None
    with pytest.raises(sqlite3.IntegrityError):
        await memory.committed()
    memory.remember_chain(b"1", "run")
    await memory.committed()
    assert memory.trajectory_of(b"1") == "run"
    memory.close()


def _run(key: str) -> Run:
    return Run(key=key, route="desk", unit=None, experiment="", arm="teacher", epoch=0, student=None)


def _spent(cost: int) -> Spent:
    return Spent(tenant="t", route="desk", variant="teacher", input_tokens=1, cached_tokens=0, output_tokens=1, cost_micro_usd=cost)
