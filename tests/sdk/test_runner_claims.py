"""Claims: one runner has a task, a lost one is taken over once, and what has ended is not paid for again."""

import sys
from pathlib import Path

import pytest

from stillhouse.schemas.errors import MissingExtraError, UsageError
from stillhouse.schemas.facts import TeacherTask, TeacherTaskKind
from stillhouse.schemas.teacher_runs import TABLE, teacher_fingerprint
from stillhouse.schemas.teacher_runs import task_id as id_of
from stillhouse.sdk import Client, RunnerTask
from stillhouse.sdk.runner_claims import Claims
from stillhouse.sdk.store import Store
from tests.support.events import trajectory
from tests.support.signals import stored

LEASE_S, SECOND = 600.0, 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000 * SECOND

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "lance")


def task(number: int = 0) -> TeacherTask:
    key = f"acme/s-{number}"
    found = id_of(TeacherTaskKind.FAILED, key, None, teacher_fingerprint("big"))
    return TeacherTask(task_id=found, kind=TeacherTaskKind.FAILED, key=key, tenant="acme", family="refund", source_task_id=f"task-{number}")


def test_one_of_two_has_it_and_a_restart_finds_it_taken(store: Store) -> None:
    clock = Clock()
    one, other = Claims(store, "a", LEASE_S, clock), Claims(store, "b", LEASE_S, clock)
    claim = one.claim(task())
    assert claim is not None and other.claim(task()) is None and other.free([task(), task(1)]) == [task(1)]
    assert one.finish(claim, outcome="success", cost_micro_usd=7)
    clock.now += 3600 * SECOND
    assert other.take_over({"refund"}, "acme") is None and other.claim(task()) is None


def test_a_lost_claim_is_taken_over_once_and_both_attempts_cost(store: Store) -> None:
    clock = Clock()
    first, second = Claims(store, "a", LEASE_S, clock), Claims(store, "b", LEASE_S, clock)
    claim = first.claim(task())
    assert claim is not None
    clock.now += 599 * SECOND
    assert second.take_over({"refund"}, "acme") is None
    first.renew(claim)
    clock.now += 599 * SECOND
    assert second.take_over({"refund"}, "acme") is None, "a living runner renews its lease"
    clock.now += 2 * SECOND
    assert second.take_over({"other"}, "acme") is None and second.take_over({"refund"}, "else") is None
    again = second.take_over({"refund"}, "acme")
    assert again is not None and len(again.attempts) == 2 and first.take_over({"refund"}, "acme") is None
    assert not first.finish(claim, outcome="success", cost_micro_usd=5), "stopped for too long: not its result any more"
    assert second.finish(again, outcome="success", cost_micro_usd=7)
    (row,) = store.rows(TABLE)
    assert row["state"] == "done" and [a["cost_micro_usd"] for a in row["data"]["attempts"]] == [5, 7]


def test_two_lost_attempts_are_enough(store: Store) -> None:
    clock = Clock()
    claims = Claims(store, "a", LEASE_S, clock)
    claims.claim(task())
    clock.now += 601 * SECOND
    assert claims.take_over({"refund"}, "acme") is not None
    clock.now += 601 * SECOND
    assert claims.take_over({"refund"}, "acme") is None
    assert [row["state"] for row in store.rows(TABLE)] == ["lost"]


def test_a_run_that_had_ended_is_not_paid_for_again(store: Store) -> None:
    clock = Clock()
    claims = Claims(store, "a", LEASE_S, clock)
    claim = claims.claim(task())
    assert claim is not None
    stored(store, trajectory(1, name=claim.attempts[0].trajectory.rpartition("-")[0]))
    clock.now += 601 * SECOND
    assert claims.take_over({"refund"}, "acme") is None
    (row,) = store.rows(TABLE)
    assert row["state"] == "done" and row["data"]["attempts"][0]["outcome"] == "success"
    assert row["data"]["attempts"][0]["cost_micro_usd"] == 150


def test_a_client_serves_what_is_registered_and_without_the_store_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    monkeypatch.chdir(tmp_path)
    with Client("127.0.0.1:1", spool=tmp_path / "spool") as client:
        with pytest.raises(UsageError, match="no function is registered"):
            client.run_runners()

        @client.runner(family="refund")
        def rerun(task: RunnerTask) -> None:
            raise AssertionError(task.id)

        with pytest.raises(UsageError, match="has a runner"):
            client.runner(family="refund")(rerun)
        with pytest.raises(MissingExtraError, match="the store"):
            client.run_runners()
        client.close(0)
