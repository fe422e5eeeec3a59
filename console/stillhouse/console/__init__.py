"""The command line, the local stack and the demo."""

import sys

from stillhouse.schemas.errors import MissingExtraError


def main() -> None:
    """Entry point of `stillhouse`. Without the command line's packages it says how to get them, and ends with exit code 2."""
    try:
        import rich
        import typer  # noqa: F401
    except ImportError:
        print(f"stillhouse: {MissingExtraError('the command line', 'local')}", file=sys.stderr)
        raise SystemExit(2) from None
    del rich
    from stillhouse.console.cli import run

    raise SystemExit(run(sys.argv[1:]))
