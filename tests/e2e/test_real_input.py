"""Recorded runs of a real agent, through SDK, broker and ingest."""

from pathlib import Path

import pytest

from tests.support.cli import stillhouse


@pytest.mark.data
def test_tau_bench_arrives_whole_and_twice_is_once(data_folder: Path, tmp_path: Path) -> None:
    source = data_folder / "tau_bench_airline_gpt4o" / "raw" / "historical_trajectories" / "gpt-4o-airline.json"
    first = stillhouse("import", "tau-bench", source, "--wait", "--json", state=tmp_path)
    assert first.code == 0, first.err
    assert (first.json["trajectories"], first.json["successes"], first.json["assistant_messages"]) == (200, 84, 2454)
    items = stillhouse("trajectories", "list", "--json", state=tmp_path).json["items"]
    assert len(items) == 200 and len({i["task_id"] for i in items}) == 50
    assert sum(i["outcome"] == "success" for i in items) == 84 and sum(i["steps"] for i in items) == 2454
    second = stillhouse("import", "tau-bench", source, "--wait", "--json", state=tmp_path)
    assert second.json["table_hash"] == first.json["table_hash"]
    assert stillhouse("trajectories", "list", "--json", state=tmp_path).json["items"] == items


@pytest.mark.data
def test_a_wrong_file_is_named_with_the_importer_that_fits(data_folder: Path, tmp_path: Path) -> None:
    source = data_folder / "tau_bench_airline_gpt4o" / "raw" / "historical_trajectories" / "gpt-4o-airline.json"
    wrong = stillhouse("import", "mini-swe", source, "--wait", state=tmp_path)
    assert wrong.code in (1, 2) and "tau-bench" in wrong.err
