"""Settings: file, environment and command line; what nobody knows is refused."""

import json
import logging
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from stillhouse.schemas.errors import PermanentError, UsageError
from stillhouse.sdk.config import Config, Secret


class Nested(msgspec.Struct, frozen=True):
    share: float = 0.5


class Settings(msgspec.Struct, frozen=True):
    bootstrap_servers: str = "default:1"
    partitions: Annotated[int, msgspec.Meta(ge=1)] = 6
    password: Secret = Secret("")
    steps: tuple[float, ...] = ()
    strict: bool = False
    extra: dict[str, str] = {}
    nested: Nested = Nested()


class Needs(msgspec.Struct, frozen=True):
    url: str


def load(tmp_path: Path, text: str = "", env: dict[str, str] | None = None, **kw: object) -> Config:
    path = tmp_path / "stillhouse.toml"
    path.write_text(text)
    return Config.load(path, env or {}, tmp_path / "state", **kw)  # type: ignore[arg-type]


def test_file_environment_and_command_line_in_that_order(tmp_path: Path) -> None:
    text = '[kafka]\nbootstrap_servers = "file:1"\npartitions = 3\nsteps = [1, 0.5]\n[kafka.nested]\nshare = 0.1\n'
    env = {"STILLHOUSE_KAFKA__PARTITIONS": "4", "STILLHOUSE_KAFKA__STRICT": "true", "STILLHOUSE_KAFKA__NESTED__SHARE": "0.2", "HOME": "/"}
    config = load(tmp_path, text, env, overrides={"kafka.bootstrap_servers": "line:1", "kafka.partitions": None})
    assert config.section("kafka", Settings) == Settings("line:1", 4, steps=(1.0, 0.5), strict=True, nested=Nested(0.2))


def test_collections_from_the_environment_are_json(tmp_path: Path) -> None:
    env = {
        "STILLHOUSE_KAFKA__STEPS": "[0.01, 0.1]",
        "STILLHOUSE_KAFKA__EXTRA": '{"a.b": "c"}',
        "STILLHOUSE_KAFKA__BOOTSTRAP_SERVERS": "[::1]:9",
    }
    got = load(tmp_path, env=env).section("kafka", Settings)
    assert (got.steps, got.extra, got.bootstrap_servers) == ((0.01, 0.1), {"a.b": "c"}, "[::1]:9")


def test_no_file_means_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config.load(env={})
    assert config.section("kafka", Settings) == Settings()
    assert (config.state, config.path) == (Path(".stillhouse"), None)


def test_the_file_and_the_state_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stillhouse.toml").write_text("[kafka]\npartitions = 7\n")
    other = tmp_path / "other.toml"
    other.write_text("[kafka]\npartitions = 8\n")
    assert Config.load(env={}).section("kafka", Settings).partitions == 7
    env = {"STILLHOUSE_CONFIG": str(other), "STILLHOUSE_STATE": "elsewhere"}
    config = Config.load(env=env)
    assert (config.section("kafka", Settings).partitions, config.state) == (8, Path("elsewhere"))
    assert Config.load(env=env, state=Path("here")).state == Path("here")


@pytest.mark.parametrize(
    ("text", "env", "said"),
    [
        (
            '[kafka]\nbootstrap_server = "x"',
            {},
            ("unknown key bootstrap_server", "stillhouse.toml [kafka]", "Did you mean bootstrap_servers?"),
        ),
        ("[kafak]\nx = 1", {}, ("unknown section [kafak]", "stillhouse.toml", "Did you mean kafka?")),
        ('[kafka]\npartitions = "many"', {}, ("kafka.partitions", "Expected `int`, got `str`", "stillhouse.toml [kafka] partitions")),
        ("[kafka]\npartitions = 0", {}, ("kafka.partitions", "`int` >= 1")),
        ("[kafka.nested]\nshares = 1", {}, ("unknown key shares", "[kafka.nested]", "Did you mean share?")),
        ("[kafka]\nsteps = ['a']", {}, ("kafka.steps", "Expected `float`", "$[0]")),
        ("[kafka\n", {}, ("cannot be read", "stillhouse.toml")),
        ("", {"STILLHOUSE_KAFKA__PARTITONS": "1"}, ("unknown key partitons", "STILLHOUSE_KAFKA__PARTITONS", "Did you mean partitions?")),
        ("", {"STILLHOUSE_KAFKA__PARTITIONS": "six"}, ("kafka.partitions", "STILLHOUSE_KAFKA__PARTITIONS")),
        ("", {"STILLHOUSE_KAFKA_PARTITIONS": "6"}, ("unknown variable", "Did you mean STILLHOUSE_KAFKA__PARTITIONS?")),
        ("", {"STILLHOUSE_KAFAK__PARTITIONS": "6"}, ("unknown section", "STILLHOUSE_KAFAK__PARTITIONS", "Did you mean kafka?")),
        ("[kafka]\npartitions = 1", {"STILLHOUSE_KAFKA__PARTITIONS__X": "6"}, ("is a value, not a section",)),
        ("kafka = 1", {}, ("is a section, not a value",)),
    ],
)
def test_what_is_wrong_is_said_with_file_section_and_key(tmp_path: Path, text: str, env: dict[str, str], said: tuple[str, ...]) -> None:
    with pytest.raises(PermanentError) as error:
        load(tmp_path, text, env).section("kafka", Settings)
    for part in said:
        assert part in str(error.value)


def test_a_missing_setting_names_its_variable(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"url not set.*STILLHOUSE_ROUTES__ORDER_DESK__URL"):
        load(tmp_path).section("routes.order-desk", Needs)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such configuration file"):
        Config.load(tmp_path / "none.toml", {})


def test_routes_by_name_and_the_environment_reaches_a_hyphen(tmp_path: Path) -> None:
    text = '[routes.order-desk]\nurl = "a"\n[routes.other]\nurl = "b"\n'
    routes = load(tmp_path, text, {"STILLHOUSE_ROUTES__ORDER_DESK__URL": "c"}).sections("routes", Needs)
    assert routes == {"order-desk": Needs("c"), "other": Needs("b")}


def test_secrets_are_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = load(tmp_path, '[kafka]\npassword = "hunter2"', {}).section("kafka", Settings)
    assert settings.password.reveal() == "hunter2"
    logging.getLogger("x").warning("%s %r %s", settings, settings.password, f"{settings.password}")
    assert "hunter2" not in caplog.text
    assert "***" in caplog.text
    with pytest.raises(PermanentError) as error:
        load(tmp_path, "[kafka]\npassword = 12345").section("kafka", Settings)
    assert "12345" not in str(error.value)
    assert settings.password == Secret("hunter2") != "hunter2"


def test_the_config_itself_does_not_show_values(tmp_path: Path) -> None:
    assert "hunter2" not in repr(load(tmp_path, '[kafka]\npassword = "hunter2"'))


def test_state_folders_are_made_and_others_refused(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert not config.state.exists()
    assert config.state_dir("lance").is_dir()
    assert config.state_dir("secrets").stat().st_mode & 0o077 == 0
    assert json.loads((config.state / "version.json").read_text()) == {"format": 1}
    assert sorted(p.name for p in config.state.iterdir()) == ["lance", "secrets", "version.json"]
    with pytest.raises(UsageError, match="Did you mean students"):
        config.state_dir("student")


@pytest.mark.parametrize("text", ['{"format": 2}', '{"format": "x"}', "{}", "nonsense"])
def test_a_newer_or_broken_state_folder_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "version.json").write_text(text)
    with pytest.raises(PermanentError, match="--state"):
        load(tmp_path)
