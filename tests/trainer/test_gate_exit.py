"""A gate says no: `stillhouse windows run` says why and ends with exit code 4, and the rows are there for the next window."""

from pathlib import Path

import pytest

from stillhouse.schemas.events import Outcome
from stillhouse.sdk.config import Config
from stillhouse.sdk.store import Store, StoreSettings
from stillhouse.trainer import models
from tests.support.cli import stillhouse
from tests.trainer.window_factory import put, trajectory

pytestmark = pytest.mark.model

SETTINGS = """
[trainer]
model = "{base}"
grammar = "bare-json"
threads = 1
max_steps = 1
probe_candidates = 2
loss_gap = {gap}
[window]
stratum_floor = 1000
"""


def prepare(state: Path, outcome: Outcome, gap: float) -> Path:
    """A state folder with runs and a tiny model; its settings file."""
    base, config = models.tiny(state / "tiny", 1), state / "stillhouse.toml"
    config.write_text(SETTINGS.format(base=base, gap=gap))
    loaded = Config.load(config, {}, state)
    put(Store.open(loaded.section("store", StoreSettings).location(loaded.state)), [trajectory(i, outcome) for i in range(12)], 100)
    return config


@pytest.mark.parametrize(
    ("outcome", "gap", "gate"),
    [(Outcome.FAILURE, 1.0, "no training examples"), (Outcome.SUCCESS, -1000.0, "nat above the training loss")],
    ids=["the data gate, before training", "the loss gate, after it"],
)
def test_a_window_that_a_gate_rejects_ends_with_exit_code_4_and_its_reason(tmp_path: Path, outcome: Outcome, gap: float, gate: str) -> None:
    config = prepare(tmp_path, outcome, gap)
    ran = stillhouse("windows", "run", "--config", config, "--json", state=tmp_path)
    assert ran.code == 4, ran.err
    assert (ran.json["state"], ran.json["student"]) == ("rejected", "") and gate in ran.json["reason"]
    assert gate in ran.err and ran.json["window"] in ran.err and "back in the pool" in ran.err and "Traceback" not in ran.err
    (listed,) = stillhouse("windows", "list", "--json", state=tmp_path).json["items"]
    assert listed["state"] == "rejected" and gate in listed["reason"]
    assert stillhouse("students", "list", "--json", state=tmp_path).json["items"] == []
    planned = stillhouse("windows", "plan", "--config", config, "--json", state=tmp_path)
    assert (planned.code, planned.json["rows"]) == (0, 12), planned.err
