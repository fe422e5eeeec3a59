"""One `stillhouse.toml`, overridable by `STILLHOUSE_*`, and the state folder.

Each plane keeps its own frozen msgspec Struct beside its code and asks for it by section. What nobody knows is refused
with the nearest name that somebody does.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec

from stillhouse.schemas.errors import PermanentError, UsageError
from stillhouse.sdk.config_state import LAYOUT, check_format, claim_format

T = TypeVar("T", bound=msgspec.Struct)

FILE = "stillhouse.toml"
PREFIX = "STILLHOUSE_"
SECTIONS = ("kafka", "store", "ingest", "signals", "trainer", "window", "routes", "canary", "prices", "privacy")


class Secret:
    """A text that no repr, log line or error shows. `reveal()` gives it to whom it is for."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The secret itself."""
        return self._text

    def __repr__(self) -> str:
        """Stars."""
        return "Secret('***')"

    __str__ = __repr__

    def __bool__(self) -> bool:
        """False for an empty secret: none was set."""
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        """Equal secrets are equal, and a plain text never is one."""
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        """By the text."""
        return hash(self._text)


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """What the reader probably meant, as a sentence."""
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else f"Known are: {', '.join(sorted(known))}."


@dataclass(frozen=True)
class Value:
    """One setting as somebody wrote it. `from_text` values (environment) are read leniently: "5" is a number there."""

    value: Any
    source: str
    from_text: bool = False


def _walk(tree: Mapping[str, Any], source: str, parts: tuple[str, ...]) -> dict[str, Any]:
    return {
        key: _walk(value, source, (*parts, key)) if isinstance(value, dict) else Value(value, f"{source} [{'.'.join(parts)}] {key}")
        for key, value in tree.items()
    }


@dataclass(frozen=True)
class Config:
    """Settings and the state folder of one process.

    Args:
        state: the state folder; made when something is first put there.
        path: the file that was read, or None.
    """

    state: Path
    path: Path | None = None
    _tree: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def load(
        cls,
        path: Path | None = None,
        env: Mapping[str, str] = os.environ,
        state: Path | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> "Config":
        """Read file, environment and overrides; the later ones win.

        Args:
            path: the file; default `STILLHOUSE_CONFIG`, else `stillhouse.toml` here if there is one.
            env: the environment.
            state: the state folder; default `STILLHOUSE_STATE`, else `./.stillhouse`.
            overrides: from the command line, by `section.key`; None values are not set.

        Raises:
            PermanentError: no such file, no TOML, an unknown section, or a state folder of a newer format.
        """
        path = path or (Path(env["STILLHOUSE_CONFIG"]) if env.get("STILLHOUSE_CONFIG") else None)
        if path is None and Path(FILE).exists():
            path = Path(FILE)
        tree = _walk(_read(path), path.name, ()) if path is not None else {}
        for section in tree:
            _known_section(section, str(path))
        _add_environment(tree, env)
        for dotted, value in (overrides or {}).items():
            if value is not None:
                _put(tree, dotted.split("."), Value(value, f"command line, {dotted}"))
        folder = state or Path(env.get("STILLHOUSE_STATE") or ".stillhouse")
        check_format(folder)
        return cls(folder, path, tree)

    def section(self, name: str, kind: type[T]) -> T:
        """The settings of a section (`kafka`, `routes.desk`) as its class; defaults where nothing was said.

        Raises:
            PermanentError: an unknown key, a wrong type or a missing setting, with file, section and key.
        """
        tree: Any = self._tree
        for part in name.split("."):
            tree = tree.get(part, {})
        if not isinstance(tree, dict):
            raise PermanentError(f"{name} is a section, not a value", where=tree.source)
        return _build(tree, kind, name)

    def sections(self, name: str, kind: type[T]) -> dict[str, T]:
        """All sections below one (`routes`), by name.

        Raises:
            PermanentError: as `section`.
        """
        return {key: self.section(f"{name}.{key}", kind) for key in self._tree.get(name, {})}

    def is_set(self, dotted: str) -> bool:
        """Whether somebody wrote this setting (`kafka.prefix`) down, even if with the value that it has by default."""
        tree: Any = self._tree
        for part in dotted.split("."):
            if not isinstance(tree, dict) or part not in tree:
                return False
            tree = tree[part]
        return True

    def state_dir(self, name: str) -> Path:
        """A folder of the state folder, made if need be.

        Raises:
            UsageError: not one of the layout's names.
            PermanentError: the state folder is of a newer format.
        """
        if name not in LAYOUT:
            raise UsageError(f"the state folder has no {name}", where=str(self.state), fix=nearest(name, LAYOUT))
        claim_format(self.state)
        folder = self.state / name
        folder.mkdir(mode=0o700 if name == "secrets" else 0o777, exist_ok=True)
        return folder


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError("no such configuration file", where=str(path)) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PermanentError(f"the configuration cannot be read: {error}", where=str(path)) from error


def _known_section(section: str, where: str) -> None:
    if section not in SECTIONS:
        raise PermanentError(f"unknown section [{section}]", where=where, fix=nearest(section, SECTIONS))


def _add_environment(tree: dict[str, Any], env: Mapping[str, str]) -> None:
    for variable in sorted(env):
        if not variable.startswith(PREFIX):
            continue
        rest = variable.removeprefix(PREFIX).lower()
        parts = rest.split("__")
        if len(parts) > 1:
            _known_section(parts[0], variable)
            _put(tree, parts, Value(env[variable], variable, from_text=True))
        elif (section := rest.partition("_"))[0] in SECTIONS and section[2]:
            right = variable_of(section[0], section[2])
            raise PermanentError(f"unknown variable {variable}", where="environment", fix=f"Did you mean {right}?")


def _put(tree: dict[str, Any], parts: list[str], value: Value) -> None:
    """Set one value; a name that the file spells with a hyphen or in capitals is the same name."""
    for depth, part in enumerate(parts):
        same = next((key for key in tree if key.lower().replace("-", "_") == part.replace("-", "_")), part)
        if depth == len(parts) - 1:
            tree[same] = value
            return
        tree = tree.setdefault(same, {})
        if not isinstance(tree, dict):
            raise PermanentError(f"{'.'.join(parts[: depth + 1])} is a value, not a section", where=value.source)


def _build(tree: dict[str, Any], kind: type[T], name: str) -> T:
    hints = get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    for key, node in tree.items():
        if key not in hints:
            where = node.source if isinstance(node, Value) else f"[{name}.{key}]"
            raise PermanentError(f"unknown key {key} in [{name}]", where=where, fix=nearest(key, list(hints)))
        values[key] = _convert(node, hints[key], f"{name}.{key}")
    missing = [f.name for f in msgspec.structs.fields(kind) if f.required and f.name not in values]
    if missing:
        where = f"[{name}]"
        raise PermanentError(f"{', '.join(missing)} not set", where=where, fix=f"Set it in {FILE} or as {variable_of(name, missing[0])}.")
    try:
        return kind(**values)
    except ValueError as error:  # a class may check its own fields against each other
        raise PermanentError(str(error), where=f"[{name}]") from error


def variable_of(section: str, key: str) -> str:
    """The environment variable that sets a key."""
    return PREFIX + "__".join([*section.replace("-", "_").split("."), key]).upper()


def _convert(node: Any, hint: Any, name: str) -> Any:
    if isinstance(node, dict) and isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _build(node, hint, name)
    source = node.source if isinstance(node, Value) else f"[{name}]"
    lenient = isinstance(node, Value) and node.from_text
    value = _plain(node)
    try:
        if lenient and isinstance(value, str) and value[:1] in ("[", "{") and hint not in (str, Secret):
            return msgspec.json.decode(value, type=hint, dec_hook=_hook)
        return msgspec.convert(value, hint, strict=not lenient, dec_hook=_hook)
    except msgspec.MsgspecError as error:
        raise PermanentError(f"{name}: {error}", where=source) from error


def _plain(node: Any) -> Any:
    if isinstance(node, Value):
        return node.value
    return {key: _plain(value) for key, value in node.items()}


def _hook(kind: type, value: Any) -> Any:
    if kind in (Secret, Path) and isinstance(value, str):
        return kind(value)
    raise TypeError(f"Expected `str` for a {kind.__name__}, got `{type(value).__name__}`")
