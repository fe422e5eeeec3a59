"""What settings name as `module:name`: the trainer knows no environment of its own."""

import importlib
from typing import Any

from stillhouse.schemas.errors import UsageError


def load_named(path: str, *, setting: str, what: str, takes: str) -> Any:
    """The thing that a setting names.

    Args:
        path: `module:name`; the name may have dots.
        setting: the setting, for the error.
        what: what it should be, for the error.
        takes: the arguments that it takes, for the error.

    Raises:
        UsageError: no such module or name.
    """
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found
    except (ImportError, AttributeError, ValueError) as error:
        fix = f"Give it as module:name of something that takes {takes}."
        raise UsageError(f"the {what} cannot be loaded: {error}", where=f"{setting} = {path}", fix=fix) from error
