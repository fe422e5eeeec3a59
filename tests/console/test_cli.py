"""Exit codes and messages of the command line, without a stack."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.console import cli, context
from stillhouse.schemas.errors import UnreachableError
from stillhouse.sdk.kafka import KafkaSettings
from tests.support.cli import CLEAN, stillhouse


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    return cli.run(arguments)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*cli.COMMANDS, *cli.GROUPS))


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("up", "--nonsense"),
        ("import", "nobody", "x"),
        ("import", "tau-bench", "absent.json"),
        ("trajectories", "show", "a/b"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    assert run(*arguments) == 2


def test_a_broker_that_is_not_there_is_not_reachable(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("dlq", "list") == 3
    assert "stillhouse up --detach" in capsys.readouterr().err


def test_a_configured_broker_that_does_not_answer_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    assert run("topics", "apply") == 3
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_a_state_folder_of_a_newer_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".stillhouse").mkdir()
    (tmp_path / ".stillhouse" / "version.json").write_text(json.dumps({"format": 99}))
    assert run("status") == 1
    assert "format 99" in capsys.readouterr().err


def test_an_unknown_setting_is_refused_with_the_nearest_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stillhouse.toml").write_text('[window]\nlinage = "a"\n')
    assert run("windows", "plan") == 1
    assert "lineage" in capsys.readouterr().err


def test_empty_lists_say_what_would_bring_something(capsys: pytest.CaptureFixture[str]) -> None:
    for group in ("trajectories", "windows", "students"):
        assert run(group, "list") == 0
        assert "stillhouse" in capsys.readouterr().out
        assert run(group, "list", "--json") == 0
        assert json.loads(capsys.readouterr().out) == {"items": []}


def test_doctor_says_what_is_wrong_and_status_why_it_waits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--json") == 0
    found = json.loads(capsys.readouterr().out)["items"]
    assert {"grade", "what", "fix"} == set(found[0])
    assert run("status", "--json") == 0
    assert "stillhouse up" in json.loads(capsys.readouterr().out)["waits"]


def test_down_without_a_stack_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("down", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"stopped": []}


def test_a_real_teacher_needs_address_and_model() -> None:
    assert run("demo", "--teacher-url", "http://127.0.0.1:1/v1") == 2


def test_without_the_extra_the_command_line_says_how_to_get_it() -> None:
    blocked = "import sys; sys.modules['typer'] = None; sys.argv = ['stillhouse', '--help']\nfrom stillhouse.console import main\nmain()"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, env=CLEAN)
    assert done.returncode == 2
    assert "pip install 'stillhouse[local]'" in done.stderr


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("lancedb", ("trajectories", "list"), "streams"),
        ("genai_prices", ("demo", "--help"), "local"),
        ("openai", ("demo", "--help"), "local"),
        ("matplotlib", ("demo", "--help"), "local"),
    ],
)
def test_a_command_without_its_packages_names_the_extra(package: str, arguments: tuple[str, ...], extra: str) -> None:
    blocked = f"import sys; sys.modules[{package!r}] = None\nfrom stillhouse.console.cli import run\nsys.exit(run({list(arguments)!r}))"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, env=CLEAN)
    assert done.returncode == 2 and f"stillhouse[{extra}]" in done.stderr and "Traceback" not in done.stderr


def test_the_embedded_broker_runs_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stillhouse.console", "broker", "--port", "0", "--dir", str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=CLEAN) as broker:
        assert broker.stdout is not None
        servers = json.loads(broker.stdout.readline())["bootstrap_servers"]
        taken = stillhouse("broker", "--port", servers.rpartition(":")[2], "--dir", tmp_path / "other")
        broker.terminate()
    assert broker.returncode == 0
    assert taken.code == 1 and "another --port" in taken.err


def test_whatever_listens_at_the_default_address_is_not_ours_unless_configured(tmp_path: Path) -> None:
    servers = KafkaSettings().bootstrap_servers
    assert context.load(tmp_path).has_broker is False
    configured = context.load(tmp_path, overrides={"kafka.bootstrap_servers": servers})  # the same address, but said
    assert configured.has_broker and configured.external == configured.kafka.bootstrap_servers == servers
    with pytest.raises(UnreachableError, match="no broker is known"):
        _ = context.load(tmp_path).kafka
