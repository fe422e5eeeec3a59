"""`stillhouse demo --fast`: the demo's own code on a tiny model."""

import json
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from stillhouse.console.demo.settings import FIRST_FAMILIES
from stillhouse.examples.order_desk.tasks import FAMILIES
from stillhouse.sdk.store import Store
from tests.support.cli import Ran, stillhouse
from tests.support.waiting import until


def outcomes(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["outcome"] for line in journal.read_text().splitlines()]


@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_fast_demo_leaves_a_whole_report(fast_demo: tuple[Path, Ran]) -> None:
    state, ran = fast_demo
    folder = state / "demo-fast-1" / "report"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == ran.json
    assert summary["claims"] is False and summary["seed"] == 1
    assert summary["tasks"] == {"seen": 3, "unseen": 3, "rephrased": 2}
    assert [s["window"] for s in summary["students"]] == [1, 2]
    for policy in (summary["teacher"], summary["base"], *summary["students"]):
        assert {part: cell["n"] for part, cell in policy["success"].items()} == summary["tasks"]
        assert set(policy["cost_per_success_usd"]) == {"marginal", "loaded"}
    assert {"up", "collect 1", "window 2", "canary 1", "noisy student", "champion again", "evaluate teacher"} <= set(summary["phases"])
    for waterfall in summary["waterfalls"].values():
        assert all(stage["in"] == stage["kept"] + sum(stage["dropped"].values()) for stage in waterfall["stages"])
    episodes = [json.loads(line) for line in (folder / "trajectories.jsonl").read_text().splitlines()]
    assert len(episodes) == 8 * 5  # the teacher, two students, and the base model with and without examples
    assert summary["notice"] == "stand-in teacher (scripted), priced as gpt-4o by genai-prices"
    again = stillhouse("demo", "--fast", state=state)
    assert again.code == 2 and "was run here before" in again.err


@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_loop_closes_and_its_figures_add_up(fast_demo: tuple[Path, Ran]) -> None:
    state, ran = fast_demo
    folder, summary = state / "demo-fast-1", ran.json
    canaries = {canary["what"]: canary for canary in summary["canaries"]}
    assert list(canaries) == ["window 1", "window 2", "noisy", "again"]
    first, second = canaries["window 1"], canaries["window 2"]
    assert first["verdict"] == "rollback" and first["units"]["canary"] > 0, "nothing that a random model says can be parsed"
    assert 0 <= first["seconds_from_verdict_to_last_request"] <= 5
    assert second["verdict"] == "promote" and summary["champion"] == second["student"]
    assert summary["break_even"]["successes"] is None, "it had no success"
    assert summary["events"]["emitted"] == summary["events"]["stored"] + summary["events"]["dlq"] > 0
    assert 0 < sum(summary["cost"]["ledger"].values()) < summary["cost"]["spent_usd"] < summary["cost"]["teacher_only_usd"] * 1.5
    assert summary["reruns"] > 0
    status = stillhouse("canary", "status", "--json", state=folder)
    assert status.code == 3  # the stack is down, and its broker with it
    names = [item["name"] for item in stillhouse("students", "list", "--json", state=folder).json["items"]]
    assert len(names) == 4 and names[1] == summary["champion"]


@pytest.mark.model
@pytest.mark.timeout(600)
def test_failures_went_back_to_the_teacher_and_never_a_held_out_task(fast_demo: tuple[Path, Ran]) -> None:
    state, ran = fast_demo
    store = Store.open(state / "demo-fast-1" / "lance")
    bought = [row for row in store.rows("teacher_runs") if row["state"] == "done"]
    runs = [row for row in store.trajectories(columns=["key", "parent_trajectory", "policies"]) if row["parent_trajectory"]]
    assert len(runs) == ran.json["reruns"] == len(bought)
    assert all({p["role"] for p in row["policies"]} == {"teacher"} for row in runs)
    assert len({row["parent_trajectory"] for row in runs}) == len(runs)


@pytest.mark.model
@pytest.mark.timeout(600)
def test_windows_are_drawn_by_what_validation_tasks_failed(fast_demo: tuple[Path, Ran]) -> None:
    state, ran = fast_demo
    folder = state / "demo-fast-1"
    windows = [stillhouse("windows", "show", f"desk-{n:06d}", "--json", state=folder).json for n in (1, 2)]
    assert {row["family"] for row in windows[0]["plan"]["rows"]} == set(FIRST_FAMILIES)
    assert [w["plan"]["mode"] for w in windows] == ["fresh", "continue"]
    assert [w["plan"]["parent"] for w in windows] == [None, windows[0]["student"]]
    for before, window in pairwise(windows):
        rates = before["evaluated"]["failure_rates"]
        assert window["plan"]["quota"]["weights"] == pytest.approx({family: 0.3 + rates.get(family, 1.0) for family in FAMILIES})
    for student in ran.json["students"][1:]:
        [draw] = [stage for stage in ran.json["waterfalls"][student["name"]]["stages"] if stage["name"] == "draw"]
        assert sum(draw["notes"]["replayed"].values()) > 0
    trained = {item["task_id"] for item in stillhouse("trajectories", "list", "--json", state=folder).json["items"]}
    lines = (folder / "report" / "trajectories.jsonl").read_text().splitlines()
    evaluated = {json.loads(line)["outcome"]["task_id"] for line in lines}
    judged = [
        json.loads(line)["outcome"] for path in (folder / "run" / "validation").rglob("*.jsonl") for line in path.read_text().splitlines()
    ]
    assert {outcome["part"] for outcome in judged} == {"validation"}
    assert not trained & evaluated and not trained & {outcome["task_id"] for outcome in judged} and len(evaluated) == 8


@pytest.mark.model
@pytest.mark.timeout(600)
def test_a_demo_that_is_told_to_end_leaves_no_process_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stillhouse.console", "demo", "--fast", "--state", str(tmp_path)]
    demo = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until((tmp_path / "demo-fast-1" / "run" / "stack.json").exists, "the stack runs", 300)
        started = psutil.Process(demo.pid).children(recursive=True)
        assert started
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(60) == 128 + signal.SIGTERM
        assert not [process for process in started if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    finally:
        demo.terminate()
        demo.wait(120)
