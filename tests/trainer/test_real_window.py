"""Recorded runs of a real agent become a student by the commands that a newcomer types; only the base model is a tiny one."""

import json
from pathlib import Path

import pytest

from stillhouse.trainer import models
from stillhouse.trainer.students import verify
from tests.support.cli import stillhouse

pytestmark = [pytest.mark.data, pytest.mark.model]

# The tiny model's tokens are short: the airline's long policy alone would fill its context.
SETTINGS = """
[trainer]
system = "replace"
system_prompt = "Airline agent."
validation_rows = 4
probe_candidates = 4
learning_rate = 0.02
"""
RUNS = "tau_bench_airline_gpt4o/raw/historical_trajectories/gpt-4o-airline.json"


def test_the_tau_bench_runs_train_a_student_that_goes_back_to_offsets(data_folder: Path, tmp_path: Path) -> None:
    base = models.tiny(tmp_path / "tiny", 1)
    imported = stillhouse("import", "tau-bench", data_folder / RUNS, "--wait", "--json", state=tmp_path)
    assert imported.code == 0, imported.err
    (tmp_path / "stillhouse.toml").write_text(SETTINGS)
    options = ("--config", tmp_path / "stillhouse.toml", "--recipe", "bc-step", "--model", base)

    planned = stillhouse("windows", "plan", *options, state=tmp_path)
    assert planned.code == 0, planned.err
    assert "200 trajectories" in planned.out and "airline: no task is on the test side" in planned.out

    ran = stillhouse("windows", "run", *options, "--max-steps", "4", "--json", state=tmp_path)
    assert ran.code == 0, ran.err
    assert ran.json["state"] == "registered" and ran.json["waterfall"]["manifest_hash"] in planned.out
    assert ran.json["validation_loss"] < ran.json["base_loss"]

    shown = stillhouse("students", "show", ran.json["student"], "--json", state=tmp_path).json
    assert shown["validation_loss"] == ran.json["validation_loss"] and shown["base_loss"] == ran.json["base_loss"]
    assert shown["intact"].startswith("all files") and shown["recipe"] == "bc-step" and shown["teachers"] == ["teacher:gpt-4o"]
    # Every event of the file lies between the offsets that the student names.
    assert sum(last - first + 1 for first, last in shown["offsets"].values()) == imported.json["events"]
    assert verify(tmp_path / "students" / ran.json["student"]).window == ran.json["window"]

    window = json.loads(stillhouse("windows", "show", ran.json["window"], "--json", state=tmp_path).out)
    assert window["state"] == "registered" and len(window["plan"]["rows"]) == 200
