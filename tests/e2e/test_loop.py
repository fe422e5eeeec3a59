"""`stillhouse up` with a route, as a user has it: the stock OpenAI client asks the gateway, and status says where the loop is."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from stillhouse.console.stack import record as records
from stillhouse.sdk import Client
from stillhouse.trainer import models
from tests.support.cli import stillhouse
from tests.support.waiting import until

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    command = [sys.executable, "-m", "stillhouse.examples.order_desk.teacher", "--port", "0", "--latency-ms", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split('"url": "')[1].split('"')[0]
        process.terminate()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, teacher: str) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("loop")
    model = models.tiny(folder / "tiny", 1)
    config = folder / "stillhouse.toml"
    route = (
        f'[routes.desk]\nteacher_url = "{teacher.removesuffix("/v1")}/v1"\nteacher_model = "order-desk-expert"\nprice_model = "gpt-4o"\n'
    )
    config.write_text(f'[trainer]\nmodel = "{model}"\n[window]\nlineage = "desk"\n{route}', encoding="utf-8")
    started = stillhouse("up", "--detach", "--any-port", "--model", model, "--config", config, state=folder / "state")
    assert started.code == 0, started.err
    yield folder / "state"
    assert stillhouse("down", state=folder / "state").code == 0


def test_every_process_of_the_loop_runs(state: Path) -> None:
    record = records.running(state)
    names = {"broker", "ingest", "student", "gateway", "canary", "signals", "trainer", "console"}
    assert set(record.pids) == names and all(process.alive for process in record.pids.values())
    assert {"ingest", "gateway", "canary", "signals", "trainer"} <= set(record.metrics)
    assert record.gateway and record.admin and record.student


def test_a_base_url_is_all_that_an_agent_changes(state: Path) -> None:
    record = records.running(state)
    spool = state / "spool" / "test"
    with (
        openai.OpenAI(base_url=f"{record.gateway}/v1", api_key="none", max_retries=0) as ask,
        Client(record.bootstrap_servers, agent="test", spool=spool) as client,
    ):
        task = {"id": "T-1", "family": "cancel", "instruction": "Cancel my order."}
        with client.trajectory(task=task) as run:
            answer = ask.chat.completions.with_raw_response.create(
                model="desk", messages=[{"role": "user", "content": "Cancel my order."}], extra_headers=run.openai_headers()
            )
            assert answer.headers["x-stillhouse-variant"] == "teacher"
            run.end(outcome="success", verifier="test")
        assert client.flush(30) == 0

    def stored() -> bool:
        items = stillhouse("trajectories", "list", "--json", state=state).json["items"]
        return [(item["family"], item["outcome"], item["steps"]) for item in items] == [("cancel", "success", 1)]

    until(stored, "the run is a row")
    found = stillhouse("status", "--json", state=state).json
    assert found["routes"]["desk"]["runs"] == {"teacher": 1} or found["routes"]["desk"]["runs"] == {"holdback": 1}
    assert found["routes"]["desk"]["champion"] is None and found["routes"]["desk"]["waits"] == "no_student"
    assert found["routes"]["desk"]["spent_usd"]["teacher"] > 0


def test_status_says_what_the_trainer_waits_for(state: Path) -> None:
    def said() -> bool:
        return str(stillhouse("status", "--json", state=state).json["waits"]).startswith("the trainer waits: 1 of 100 new successes")

    until(said, "the trainer has looked")
