"""The command line: one file a command in `commands/`, put together here."""

import importlib
from collections.abc import Sequence
from typing import Any

import typer

from stillhouse.console import output
from stillhouse.schemas.errors import ExitCode, MissingExtraError, StillhouseError

# Single commands, then groups: module in `commands/`, what it is.
COMMANDS = {
    "up": "Start everything on this machine.",
    "down": "Stop what `up --detach` started.",
    "demo": "The whole loop on the order desk, with a report at the end.",
    "broker": "Run the embedded broker alone (laptops, demos and tests only).",
    "import": "Send recorded runs of agents through the SDK, the broker and ingest.",
    "status": "Where the loop is, and why it waits.",
    "doctor": "Check this machine and this state folder, and say what to do.",
}
GROUPS = {
    "trajectories": "Stored runs.",
    "windows": "What is trained on, and why.",
    "students": "What came out.",
    "canary": "Who is on trial, and what a person decides about it.",
    "dlq": "Records that could not become part of a row.",
    "topics": "Topics of the broker.",
    "models": "Base models of students.",
}
# The smallest extra that brings a package; `local` brings them all.
EXTRAS = {
    "lancedb": "streams",
    "aiokafka": "streams",
    "pyarrow": "streams",
    "torch": "trainer",
    "transformers": "trainer",
    "trl": "trainer",
    "peft": "trainer",
}


def application(only: str | None = None) -> typer.Typer:
    """The command line with all its commands, or with the one that was asked for: importing them all takes seconds."""
    app = typer.Typer(
        name="stillhouse",
        help="Continuous agent distillation: a frontier model's runs in, a student at a fraction of the cost out.",
        no_args_is_help=True,
        add_completion=False,
        callback=_stay_a_group,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    known = only in COMMANDS or only in GROUPS
    for name, text in COMMANDS.items():
        if known and name != only:
            continue
        app.command(name, help=text)(_module(name).command)
    for name, text in GROUPS.items():
        if known and name != only:
            continue
        app.add_typer(_module(name).group, name=name, help=text, no_args_is_help=True)
    return app


def _stay_a_group() -> None:
    """A command line of one command would otherwise take no command name."""


def _module(name: str) -> Any:
    return importlib.import_module(f"stillhouse.console.commands.{name}_" if name == "import" else f"stillhouse.console.commands.{name}")


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code (0 done, 1 failed, 2 usage, 3 not reachable, 4 a gate said no)."""
    try:
        application(arguments[0] if arguments else None)(args=list(arguments), prog_name="stillhouse")
    except SystemExit as stop:  # how the library ends a command, in order or after a usage error that it has printed
        return int(stop.code or 0)
    except KeyboardInterrupt:
        output.err.print("stopped")
        return ExitCode.FAILED
    except StillhouseError as error:
        output.print_error(error)
        return error.exit_code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "stillhouse"):  # ours: no package that could be installed
            raise
        missing = MissingExtraError(f"this command ({error.name})", EXTRAS.get(package, "local"))
        output.print_error(missing)
        return missing.exit_code
    return ExitCode.OK
