"""What a person decides: by the command line, kept in the log, refused where it makes no sense."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.console import cli
from stillhouse.schemas.facts import StudentStage, StudentState
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.serving.canary.publish import StudentsLog
from stillhouse.trainer import students
from tests.serving.canary_process.world import ROUTE
from tests.support.cli import stillhouse
from tests.trainer.test_students import make_candidate
from tests.trainer.training_factory import manifest


class Line:
    """The command line on one state folder."""

    def __init__(self, state: Path, kafka: KafkaSettings, capsys: pytest.CaptureFixture[str]) -> None:
        self.state, self.kafka, self._capsys = state, kafka, capsys

    def run(self, *arguments: str, code: int = 0) -> Any:
        """What it prints as JSON, or what it says on standard error."""
        self._capsys.readouterr()
        ended = cli.run([*arguments, "--state", str(self.state), "--json"])
        said = self._capsys.readouterr()
        assert ended == code, said.err
        return json.loads(said.out) if code == 0 else said.err

    def write(self, *records: StudentState) -> list[bool]:
        """Decisions of others."""

        async def write() -> list[bool]:
            log = StudentsLog(self.kafka)
            await log.start()
            try:
                return [await log.publish(record) for record in records]
            finally:
                await log.stop()

        return asyncio.run(write())


@pytest.fixture
def line(tmp_path: Path, kafka: KafkaSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Line:
    config = tmp_path / "stillhouse.toml"
    config.write_text(f'[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\nprefix = "{kafka.prefix}"\n')
    monkeypatch.setenv("STILLHOUSE_CONFIG", str(config))
    return Line(tmp_path / "state", kafka, capsys)


@pytest.fixture
def student(line: Line, tmp_path: Path) -> str:
    line.state.mkdir()
    return students.register(line.state / "students", make_candidate(tmp_path / "candidate", 1.0), manifest()).name


def canary(name: str = "student-1", **fields: Any) -> StudentState:
    return StudentState(student=name, stage=StudentStage.CANARY, route=ROUTE, share=0.25, plan="{}", **fields)


def test_a_release_is_in_the_log_with_its_author_and_reason(line: Line, student: str) -> None:
    said = line.run("students", "release", student, "--route", ROUTE, code=0)
    assert (said["stage"], said["reason"]) == ("shadow", "released by hand")
    assert said["by"].startswith("cli/")
    again = line.run("students", "release", student, "--route", ROUTE, "--skip-gate", "--reason", "A/A")
    assert again["reason"] == "A/A"
    (route,) = line.run("canary", "status")["items"]
    assert (route["route"], route["next"], route["canary"], route["students"]) == (ROUTE, student, None, {student: "shadow"})


def test_a_release_that_is_refused(line: Line, student: str) -> None:
    assert "needs a reason" in line.run("students", "release", student, "--route", ROUTE, "--skip-gate", code=2)
    assert "no such student" in line.run("students", "release", "student-9-00000000", "--route", ROUTE, code=2)
    line.write(canary(student))
    assert f"{student} is canary" in line.run("students", "release", student, "--route", ROUTE, code=4)
    line.write(StudentState(student=student, stage=StudentStage.ROLLED_BACK, route=ROUTE))
    assert "under a new name" in line.run("students", "release", student, "--route", ROUTE, "--skip-gate", "--reason", "x", code=4)
    (line.state / "students" / student / "probes.json").write_text("[]")
    assert "not as it was registered" in line.run("students", "release", student, "--route", "mail", code=4)


def test_pause_resume_promote(line: Line) -> None:
    assert "no canary runs" in line.run("canary", "pause", "--reason", "lunch", code=4)
    line.write(canary(stage_index=1, final=True))
    paused = line.run("canary", "pause", "--reason", "lunch")
    assert (paused["paused"], paused["share"], paused["canary"], paused["reason"]) == (True, 0.25, "student-1", "lunch")
    assert "already paused" in line.run("canary", "pause", "--reason", "lunch", code=4)
    (route,) = line.run("canary", "status")["items"]
    assert (route["stage"], route["final"], route["epoch"], route["paused"]) == (1, True, 0, True)
    assert line.run("canary", "resume", "--reason", "back")["paused"] is False
    crowned = line.run("canary", "promote", "--reason", "seen enough")
    assert (crowned["champion"], crowned["canary"], crowned["stage"]) == ("student-1", None, "champion")


def test_rollback_and_revoke(line: Line) -> None:
    line.write(canary())
    assert "needs a reason" in line.run("canary", "rollback", "--reason", " ", code=2)
    back = line.run("canary", "rollback", "--reason", "a customer called", "--route", ROUTE)
    assert (back["canary"], back["stage"]) == (None, "rolled_back")
    assert "already" in line.run("students", "revoke", "student-1", "--reason", "x", code=4)
    assert "no route knows" in line.run("students", "revoke", "student-2", "--reason", "x", code=2)
    line.write(canary("student-2"), StudentState(student="student-2", stage=StudentStage.CHAMPION, route=ROUTE))
    (gone,) = line.run("students", "revoke", "student-2", "--reason", "leaked data")["items"]
    assert (gone["champion"], gone["stage"], gone["reason"]) == (None, "revoked", "leaked data")


def test_with_two_canaries_a_route_must_be_named(line: Line) -> None:
    line.write(canary(), StudentState(student="student-2", stage=StudentStage.CANARY, route="mail", share=0.5))
    assert "--route desk | mail" in line.run("canary", "rollback", "--reason", "x", code=2)
    assert line.run("canary", "rollback", "--reason", "x", "--route", "mail")["student"] == "student-2"


def test_as_a_process_of_its_own(line: Line, tmp_path: Path) -> None:
    line.write(canary())
    ran = stillhouse("canary", "rollback", "--reason", "smoke", "--json", "--config", tmp_path / "stillhouse.toml", state=line.state)
    assert (ran.code, ran.json["stage"]) == (0, "rolled_back")
