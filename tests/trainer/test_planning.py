"""What settings name is what plans and runs curate with."""

from pathlib import Path
from typing import Any

import pytest

from stillhouse.examples.order_desk.replay import DeskReplay, save_tasks
from stillhouse.examples.order_desk.tasks import make_tasks
from stillhouse.schemas.errors import PermanentError, UsageError
from stillhouse.trainer import windows
from stillhouse.trainer.jobs import plan_report
from stillhouse.trainer.planning import next_plan, plan_tools, replay_of
from stillhouse.trainer.settings import WindowSettings
from tests.trainer.curation_factory import call, reply, run
from tests.trainer.window_factory import SETTINGS, TRAINER, Desk, put, trajectory, with_changes

DESK = "stillhouse.examples.order_desk.replay:DeskReplay.of_file"


def test_the_desks_tasks_are_replayed_from_the_file_that_the_fleet_wrote(tmp_path: Path) -> None:
    tasks, file = make_tasks("train", 3, seed=1), tmp_path / "tasks.jsonl"
    save_tasks(file, tasks[:1])
    save_tasks(file, tasks[1:])
    replay = replay_of(WindowSettings(environment=DESK, environment_data=str(file)))
    assert isinstance(replay, DeskReplay)
    assert replay(run(reply("Done."), task=tasks[2].id), []) is False
    assert replay(run(reply("Done."), task="of another shop"), []) is None
    file.write_text("{}\n")
    with pytest.raises(PermanentError, match="not a task"):
        replay_of(WindowSettings(environment=DESK, environment_data=str(file)))
    with pytest.raises(PermanentError, match="no file of tasks"):
        replay_of(WindowSettings(environment=DESK, environment_data=str(tmp_path / "other")))


@pytest.mark.parametrize("path", ["", "nowhere", "nowhere:Thing", f"{DESK}.more"])
def test_an_environment_that_is_not_there_is_named(path: str) -> None:
    settings = WindowSettings(environment=path)
    if not path:
        assert replay_of(settings) is None
        return
    with pytest.raises(UsageError, match="environment cannot be loaded"):
        replay_of(settings)


def breaks(data: str) -> Any:
    """An environment in which what was pruned no longer succeeds, but for the task that its data names."""
    return lambda trajectory, actions: trajectory.task.id == data


def test_plan_and_run_replay_what_they_prune(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    steps = (call("cancel", "Error: wrong", id="x"), call("cancel", {"ok": True}, id="41"), reply("Done."))
    put(desk.store, [run(*steps, name=f"r{i}", task=f"t{i}", ask=f"Cancel 41 for {i}", at=i) for i in range(8)])
    named = with_changes(SETTINGS, recovery_share=0.0, environment=f"{__name__}:breaks", environment_data="t3")
    planned = next_plan(desk.store, named, TRAINER, None)
    tools = plan_tools(planned, named, TRAINER, desk.base, desk.state / "students")
    report = plan_report(desk.store, planned, named, TRAINER.render().for_model(desk.base), desk.base, tools)
    prune = next(s for s in report["stages"] if s["name"] == "prune")
    assert prune["kept"] == 1 and prune["dropped"] == {"replay_failed": prune["in"] - 1}
    result = desk.job(named, replay=replay_of(named)).run(windows.plan(desk.store, named))
    assert result.waterfall["stages"] == report["stages"]


def test_a_plan_says_where_no_task_can_judge(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    put(desk.store, [trajectory(i) for i in range(40)])
    shares = {"test_share": 0.0, "validation_share": 0.5}
    settings = with_changes(SETTINGS, **shares)
    view = TRAINER.render().for_model(desk.base)
    report = plan_report(desk.store, next_plan(desk.store, settings, TRAINER, None), settings, view, desk.base)
    assert [n.partition(";")[0] for n in report["notes"]] == ["a, b: no task is on the test side"]
    assert set(report["stages"][0]["notes"]["tasks"]) == {"train", "validation"}
    assert sum(report["stages"][0]["notes"]["tasks"].values()) == 40
    both = with_changes(SETTINGS, test_share=0.4, validation_share=0.4)
    assert plan_report(desk.store, windows.plan(desk.store, both), both, view, desk.base)["notes"] == ()
