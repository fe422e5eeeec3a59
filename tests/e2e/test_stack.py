"""A person's way: up, send, look, plan, train, look, down; on a tiny model."""

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillhouse.console.stack import record as records
from stillhouse.schemas.events import Policy, PolicyRole
from stillhouse.sdk.client import Client
from stillhouse.trainer import models
from tests.support.cli import stillhouse
from tests.support.waiting import until

README = Path(__file__).parents[2] / "README.md"
pytestmark = pytest.mark.model
TEACHER = Policy(role=PolicyRole.TEACHER, model="big")
TOOLS = [{"type": "function", "function": {"name": "cancel", "parameters": {"type": "object", "properties": {"id": {"type": "string"}}}}}]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("stack")
    model = models.tiny(folder / "tiny", 1)
    config = folder / "stillhouse.toml"
    config.write_text(
        f'[trainer]\nmodel = "{model}"\nevaluations = 1\nprobe_candidates = 16\nloss_gap = 100.0\n[window]\nmin_kept = 1000\n',
        encoding="utf-8",
    )
    started = stillhouse("up", "--detach", "--any-port", "--model", model, "--config", config, state=folder / "state")
    assert started.code == 0, started.err
    yield folder / "state"
    assert stillhouse("down", state=folder / "state").code == 0


def config_of(state: Path) -> Path:
    return state.parent / "stillhouse.toml"


@pytest.fixture(scope="module")
def runs(state: Path) -> int:
    """Forty runs of two tools that an agent published."""
    servers = records.running(state).bootstrap_servers
    with Client(servers, agent="test", spool=state / "spool", policy=TEACHER) as client:
        for number in range(40):
            task = {"id": f"T-{number}", "family": "cancel", "instruction": f"Cancel my order {1000 + 37 * number}."}
            with client.trajectory(task=task, tools=TOOLS, system_prompt="You work at a shop.") as run:
                call = {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "cancel", "arguments": json.dumps({"id": str(1000 + 37 * number)})},
                }
                run.step(
                    state=[{"role": "user", "content": task["instruction"]}],
                    action={"role": "assistant", "content": None, "tool_calls": [call]},
                    observation=[{"role": "tool", "tool_call_id": "c1", "content": '{"ok": true}'}],
                )
                run.step(action={"role": "assistant", "content": "It is cancelled."})
                run.end(outcome="success" if number % 8 else "failure")
        assert client.flush(30) == 0 and client.stats.rejected == {}
    return 40


def stored(state: Path) -> list[dict[str, object]]:
    shown = stillhouse("trajectories", "list", "--limit", "0", "--json", state=state)
    assert shown.code == 0, shown.err
    items: list[dict[str, object]] = shown.json["items"]
    return items


def test_what_an_agent_published_is_stored_and_shown(state: Path, runs: int) -> None:
    until(lambda: len(stored(state)) >= runs, "all runs are stored")
    items = stored(state)
    assert len(items) == runs
    assert set(items[0]) == {"key", "task_id", "family", "policies", "status", "outcome", "reward", "steps", "revision"}
    assert {item["status"] for item in items} == {"ended"}
    assert sum(item["outcome"] == "success" for item in items) == 35
    shown = stillhouse("trajectories", "show", str(items[0]["key"]), state=state)
    assert "cancel" in shown.out and "It is cancelled." in shown.out


def test_a_second_stack_in_the_same_folder_is_refused(state: Path) -> None:
    again = stillhouse("up", state=state)
    assert again.code == 1 and "stillhouse down" in again.err


def test_status_page_and_command_say_the_same(state: Path, runs: int) -> None:
    page = records.running(state).page
    with urllib.request.urlopen(f"{page}/status.json") as answer:
        found = json.load(answer)
    assert found["trajectories"] == stillhouse("status", "--json", state=state).json["trajectories"]
    with urllib.request.urlopen(f"{page}/") as answer:
        assert "Trajectories by outcome" in answer.read().decode()


def test_doctor_finds_nothing_bad(state: Path, runs: int) -> None:
    found = stillhouse("doctor", "--json", state=state)
    assert [f for f in found.json["items"] if f["grade"] == "bad"] == []
    assert found.code == 0


def test_topics_exist_already(state: Path) -> None:
    applied = stillhouse("topics", "apply", "--partitions", "6", "--json", state=state)
    assert applied.code == 0, applied.err
    assert {item["status"] for item in applied.json["items"]} == {"exists"}


def test_what_cannot_be_decoded_is_listed_shown_and_retried(state: Path) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": records.running(state).bootstrap_servers})
    producer.produce("agent.events", key=b"default/bad", value=b"no event at all")
    assert producer.flush(30) == 0

    def letters() -> list[dict[str, object]]:
        items: list[dict[str, object]] = stillhouse("dlq", "list", "--json", state=state).json["items"]
        return items

    until(lambda: bool(letters()), "the dead letter is there")
    items = letters()
    shown = stillhouse("dlq", "show", str(items[0]["key"]), "--json", state=state).json
    assert shown["value"] == "no event at all" and shown["reason"]
    assert stillhouse("dlq", "retry", "--all", "--json", state=state).json == {"retried": 1}
    assert stillhouse("dlq", "retry", state=state).code == 2


def test_a_window_is_planned_trained_and_registered(state: Path, runs: int) -> None:
    config = config_of(state)
    test_what_an_agent_published_is_stored_and_shown(state, runs)
    planned = stillhouse("windows", "plan", "--config", config, "--json", state=state)
    assert planned.code == 0, planned.err
    stages = planned.json["stages"]
    assert all(stage["in"] == stage["kept"] + sum(stage["dropped"].values()) for stage in stages)
    assert planned.json["supervised_tokens"] > 0 and planned.json["manifest_hash"]
    trained = stillhouse("windows", "run", "--config", config, "--recipe", "bc-step", "--max-steps", "3", "--json", state=state)
    assert trained.code == 0, trained.err
    assert trained.json["state"] == "registered"
    assert trained.json["waterfall"]["manifest_hash"] == planned.json["manifest_hash"]
    names = [item["name"] for item in stillhouse("students", "list", "--json", state=state).json["items"]]
    assert names == [trained.json["student"]]
    student = stillhouse("students", "show", names[0], "--json", state=state).json
    assert student["recipe"] == "bc-step" and student["offsets"] and "as they were registered" in student["intact"]
    listed = stillhouse("windows", "list", "--json", state=state).json["items"]
    assert [w["state"] for w in listed] == ["registered"]
    assert stillhouse("windows", "show", listed[0]["window"], state=state).code == 0


def test_the_readme_shows_how_runs_become_a_teachers(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [block] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    monkeypatch.setenv("STILLHOUSE_STATE", str(tmp_path / "agent"))
    names = {"TOOLS": TOOLS, "reply": {"role": "assistant", "content": "Done."}, "tool_result": []}
    exec(block.replace("127.0.0.1:9392", records.running(state).bootstrap_servers), names)
    until(lambda: any(i["family"] == "refund" for i in stored(state)), "the run of the README is stored")
    [mine] = [i for i in stored(state) if i["family"] == "refund"]
    assert mine["outcome"] == "success" and mine["policies"] == [{"role": "teacher", "model": "gpt-4o", "version": ""}]
